// SPDX-License-Identifier: MIT
#pragma once

#include "moe/version.hpp"

// Every public name lives in an inline namespace that carries the version, the instruction set and whether OpenMP is on,
// because these change the layout of types (alignment, panel width) and the number of workers that buffers are made for.
// Translation units built with different -m or -fopenmp flags therefore do not mix silently: passing a moe type between
// them is a link error instead of a crash.

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

#if defined(_OPENMP)
#define MOE_DETAIL_THREADS omp
#else
#define MOE_DETAIL_THREADS serial
#endif

#define MOE_DETAIL_JOIN_(major, minor, patch, isa, threads) v##major##_##minor##_##patch##_##isa##_##threads
#define MOE_DETAIL_JOIN(major, minor, patch, isa, threads) MOE_DETAIL_JOIN_(major, minor, patch, isa, threads)

/// Name of the inline namespace, for example v0_1_0_avx2_fma_omp.
#define MOE_ABI \
  MOE_DETAIL_JOIN(MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH, MOE_DETAIL_ISA, MOE_DETAIL_THREADS)
