// SPDX-License-Identifier: MIT
#pragma once

#include "moe/version.hpp"

// Every public name lives in an inline namespace that carries the version, the instruction set and whether OpenMP is
// on, because these change the layout of types (alignment, panel width) and the number of workers that buffers are made
// for. Translation units built with different -m or -fopenmp flags therefore do not mix silently: passing a moe type
// between them is a link error instead of a crash.

// Modes of arithmetic that break the checks for NaN and infinity, or the promise of equal bits, as far as compilers
// admit them by a macro. clang keeps silent about -fassociative-math, -freciprocal-math and -fno-signed-zeros given
// alone: do not use them either.
#if defined(__FAST_MATH__) || defined(_M_FP_FAST)
#error "moe: -ffast-math (-Ofast, /fp:fast) breaks infinities, NaN checks and equal bits; compile without it"
#elif defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "moe: -ffinite-math-only (part of -ffast-math) breaks infinities and NaN checks; compile without it"
#elif defined(__ASSOCIATIVE_MATH__)
#error "moe: -fassociative-math (part of -funsafe-math-optimizations) breaks equal bits; compile without it"
#elif defined(__RECIPROCAL_MATH__)
#error "moe: -freciprocal-math (part of -funsafe-math-optimizations) breaks equal bits; compile without it"
#elif defined(__NO_SIGNED_ZEROS__)
#error "moe: -fno-signed-zeros (part of -funsafe-math-optimizations) breaks equal bits; compile without it"
#elif defined(__FLT_EVAL_METHOD__) && (__FLT_EVAL_METHOD__ < 0 || __FLT_EVAL_METHOD__ == 1 || __FLT_EVAL_METHOD__ == 2)
#error "moe: floats are computed in a wider type (-mfpmath=387 or both), which breaks equal bits; use -mfpmath=sse"
#endif

static_assert(0.1 != static_cast<double>(0.1f),
              "moe: -fsingle-precision-constant rounds the constants of double; compile without it");

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
