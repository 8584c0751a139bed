// SPDX-License-Identifier: MIT
// Classifiers of the handwritten digits of examples/data, trained once per seed: ReLU experts of 24 units, top-2 and no
// residual, so that all that a digit's scores are made of has gone through two experts.
#pragma once

#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>

#include "labelled.hpp"
#include "page.hpp"
#include "with_head.hpp"

namespace systems {

using ReluMlp = moe::BasicMlp<moe::F32, moe::Relu>;
using ReluLayer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<ReluMlp>>;
using DigitsModel = WithHead<ReluLayer>;

inline constexpr moe::Index kPixels = 64, kDigits = 10;

struct Digits {
  Labelled train, test;  // 1347 and 450 images
};
/// Read once.
const Digits& digits();

/// `experts` experts trained from nothing. With more than one copy, each of them then stands `copies` times in a row
/// with noise on every weight that is not zero, times the root mean square of its matrix, and all are trained a little
/// more: upcycling (Komatsuzaki et al., arXiv:2212.05055), which leaves experts that resemble each other.
struct DigitsExperts {
  moe::Index experts = 16, copies = 1;
  double noise = 0.05;
};
DigitsModel digits_model(const Page& page, const DigitsExperts& what, std::uint64_t seed);

inline DigitsModel digits16(const Page& page, std::uint64_t seed) { return digits_model(page, {}, seed); }
inline DigitsModel digits32(const Page& page, std::uint64_t seed) { return digits_model(page, {.copies = 2}, seed); }

}  // namespace systems
