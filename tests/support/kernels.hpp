// SPDX-License-Identifier: MIT
// The kernels that all layers share, compiled once, in kernels.cpp: who includes this does not instantiate them. The
// tests of the kernels themselves do without.
#pragma once

#include "moe/kernel/bfloat_product.hpp"
#include "moe/kernel/code_product.hpp"
#include "moe/kernel/combine.hpp"
#include "moe/kernel/combine_backward.hpp"
#include "moe/kernel/grouped_gemm.hpp"
#include "moe/kernel/grouped_gradient.hpp"
#include "moe/kernel/integer_product.hpp"
#include "moe/numeric/activation.hpp"
#include "moe/numeric/elementary.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/numeric/top_k.hpp"
#include "moe/numeric/top_k_lanes.hpp"

#ifndef MOE_TEST_KERNEL
#define MOE_TEST_KERNEL extern template
#endif

namespace moe::inline MOE_ABI {

// Products with panels.
#define MOE_TEST_KERNELS_OF(S)                                                                                         \
  MOE_TEST_KERNEL void kernel::multiply<S>(const kernel::RowSource<S>&, Index, Index, const kernel::PanelRange<S>&,    \
                                           const kernel::FinishRef<S>&);                                               \
  MOE_TEST_KERNEL void kernel::add_to_rows<S>(const S*, Index, S*);                                                    \
  MOE_TEST_KERNEL class kernel::detail::TransposedPanel<S>;                                                            \
  MOE_TEST_KERNEL void kernel::detail::add_outer_products<S>(kernel::OuterRows<S>, Index, kernel::OuterRows<S>, Index, \
                                                             S*, const S*);                                            \
  MOE_TEST_KERNEL void kernel::outer_product_tile<1, S>(kernel::OuterRows<S>, kernel::OuterRows<S>, Index, S*,         \
                                                        const S*) noexcept;                                            \
  MOE_TEST_KERNEL void kernel::detail::sum_row<S>(const kernel::detail::Slots<S>&, bool, Index, S*);                   \
  MOE_TEST_KERNEL S kernel::detail::scale_and_dot<kernel::detail::PutScaled::Store, S>(const S*, const S*, S, Index,   \
                                                                                       S*);                            \
  MOE_TEST_KERNEL S kernel::detail::scale_and_dot<kernel::detail::PutScaled::Stream, S>(const S*, const S*, S, Index,  \
                                                                                        S*);                           \
  MOE_TEST_KERNEL S kernel::detail::scale_and_dot<kernel::detail::PutScaled::Add, S>(const S*, const S*, S, Index, S*);
MOE_TEST_KERNELS_OF(float)
MOE_TEST_KERNELS_OF(double)
#undef MOE_TEST_KERNELS_OF

// Choices.
#define MOE_TEST_KERNELS_OF(S)                                                                   \
  MOE_TEST_KERNEL std::uint32_t detail::top_k_lanes<S>(Index, const S* const*, Index, S*, S*);   \
  MOE_TEST_KERNEL std::uint32_t detail::top_k_network<S>(Index, const S* const*, Index, S*, S*); \
  MOE_TEST_KERNEL bool detail::choose_by_bound<S>(const S*, Index, std::span<Index>);            \
  MOE_TEST_KERNEL void top_k<S>(const S*, Index, std::span<Index>);
MOE_TEST_KERNELS_OF(float)
MOE_TEST_KERNELS_OF(double)
#undef MOE_TEST_KERNELS_OF

// Products with codes.
#define MOE_TEST_KERNELS_OF(Codes)                                                                                     \
  MOE_TEST_KERNEL void kernel::detail::decode_codes<Codes>(const void*, Index, Index, Index, float*);                  \
  MOE_TEST_KERNEL void kernel::detail::multiply_coded<Codes>(const void*, const float* const*, int, Index, Index, int, \
                                                             float*);
MOE_TEST_KERNELS_OF(kernel::detail::Bf16Codes)
MOE_TEST_KERNELS_OF(kernel::detail::F16Codes)
MOE_TEST_KERNELS_OF(kernel::detail::E4M3Codes)
MOE_TEST_KERNELS_OF(kernel::detail::E5M2Codes)
MOE_TEST_KERNELS_OF(kernel::detail::Int8Codes<false>)
MOE_TEST_KERNELS_OF(kernel::detail::Int8Codes<true>)
MOE_TEST_KERNELS_OF(kernel::detail::Int4Codes<false>)
MOE_TEST_KERNELS_OF(kernel::detail::Int4Codes<true>)
MOE_TEST_KERNELS_OF(kernel::detail::E2M1Codes)
MOE_TEST_KERNELS_OF(kernel::detail::PlaneCodes<false>)
MOE_TEST_KERNELS_OF(kernel::detail::PlaneCodes<true>)
#undef MOE_TEST_KERNELS_OF
MOE_TEST_KERNEL void kernel::detail::decode_codes<kernel::detail::ExactE4M3Codes>(const void*, Index, Index, Index,
                                                                                  float*);

#define MOE_TEST_KERNELS_OF(Bytes)                               \
  MOE_TEST_KERNEL void kernel::detail::multiply_integers<Bytes>( \
      const kernel::ConvertedRows&, const kernel::PanelRange<float>&, const kernel::FinishRef<float>&);
MOE_TEST_KERNELS_OF(kernel::detail::Int8Bytes)
MOE_TEST_KERNELS_OF(kernel::detail::Int4Bytes)
MOE_TEST_KERNELS_OF(kernel::detail::E2M1Bytes)
#undef MOE_TEST_KERNELS_OF

// Functions of registers. A caller that is optimised has them inlined, as users have.
#if !defined(__OPTIMIZE__) || defined(MOE_TEST_KERNELS_HERE)
#define MOE_TEST_KERNELS_OF(V)                                     \
  MOE_TEST_KERNEL V simd::expm1_nonpositive(const V&);             \
  MOE_TEST_KERNEL V simd::log1p_of_fraction(const V&);             \
  MOE_TEST_KERNEL simd::NormalTail<V> simd::normal_tail(const V&); \
  MOE_TEST_KERNEL V Tanh::value(const V&);                         \
  MOE_TEST_KERNEL V Tanh::derivative(const V&);                    \
  MOE_TEST_KERNEL V Sigmoid::value(const V&);                      \
  MOE_TEST_KERNEL V Sigmoid::derivative(const V&);                 \
  MOE_TEST_KERNEL V Softplus::value(const V&);                     \
  MOE_TEST_KERNEL V Silu::value(const V&);                         \
  MOE_TEST_KERNEL V Silu::derivative(const V&);                    \
  MOE_TEST_KERNEL V Gelu::value(const V&);                         \
  MOE_TEST_KERNEL V Gelu::derivative(const V&);                    \
  MOE_TEST_KERNEL V GeluTanh::value(const V&);                     \
  MOE_TEST_KERNEL V GeluTanh::derivative(const V&);
MOE_TEST_KERNELS_OF(simd::Batch<float>)
MOE_TEST_KERNELS_OF(simd::Batch<double>)
#undef MOE_TEST_KERNELS_OF
#endif

}  // namespace moe::inline MOE_ABI
