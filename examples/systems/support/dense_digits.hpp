// SPDX-License-Identifier: MIT
// A dense classifier of digits, one ReLU layer of 512 units below a linear head, trained once per seed: what pages
// about dense networks that become mixtures start from.
#pragma once

#include "cache.hpp"
#include "digits.hpp"

namespace systems {

/// Its layer has one expert, which every digit goes to.
inline DigitsModel dense_digits(const Page& page, std::uint64_t seed) {
  constexpr moe::Index kHidden = 512;
  const Training how{.updates = page.amount<std::uint64_t>(840, 60), .weight_decay = 0.05, .max_norm = 5};
  Hash hash;
  hash << "dense digits 1" << kHidden << how;
  DigitsModel model{ReluLayer(moe::LinearRouter(1, kPixels), moe::TopKGate{.k = 1},
                              moe::ExpertPool<ReluMlp>::random(1, kPixels, kHidden, seed + 10)),
                    moe::Linear::random(kDigits, kPixels, seed + 20)};
  return cached(page, "dense_digits", seed, hash, std::move(model), [&](DigitsModel& out) {
    train(out, how, seed, [&](std::uint64_t update) { return draw_batch(digits().train, 64, seed, update); });
  });
}

/// The same with some of its hidden units.
inline DigitsModel with_units(const DigitsModel& dense, std::span<const moe::Index> units) {
  DigitsModel narrow = dense;
  narrow.layer().experts()[0] = dense.layer().experts()[0].take_hidden(units);
  return narrow;
}

}  // namespace systems
