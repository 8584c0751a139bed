// SPDX-License-Identifier: MIT
#pragma once

#include "moe/version.hpp"

// Every public name lives in an inline namespace that carries the version and the instruction set, because both change
// the layout of types (alignment, panel width). Translation units built with different -m flags therefore do not mix
// silently: passing a moe type between them is a link error instead of a crash.

#if defined(__FAST_MATH__)
#error "moe: -ffast-math breaks infinities, NaN checks and the promise of equal bits; compile without it"
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define MOE_DETAIL_ISA avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define MOE_DETAIL_ISA avx2_fma
#elif defined(__AVX2__)
#define MOE_DETAIL_ISA avx2
#elif defined(__AVX__)
#define MOE_DETAIL_ISA avx
#elif defined(__SSE4_2__)
#define MOE_DETAIL_ISA sse4
#elif defined(__aarch64__)
#define MOE_DETAIL_ISA neon64
#else
#define MOE_DETAIL_ISA base
#endif

#define MOE_DETAIL_JOIN_(major, minor, patch, isa) v##major##_##minor##_##patch##_##isa
#define MOE_DETAIL_JOIN(major, minor, patch, isa) MOE_DETAIL_JOIN_(major, minor, patch, isa)

/// Name of the inline namespace, for example v0_1_0_avx2_fma.
#define MOE_ABI MOE_DETAIL_JOIN(MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH, MOE_DETAIL_ISA)
