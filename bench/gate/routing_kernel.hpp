// SPDX-License-Identifier: MIT
// How a gate, or any other way from logits to a routing, is put on the list of gate/top_k_bench.cpp.
#pragma once

#include <span>

#include "google.hpp"
#include "moe/routing/routing.hpp"
#include "moe/routing/step.hpp"

namespace bench {

/// How many experts there are, and how many of them a token gets.
struct RoutingSize {
  Index num_experts, k;
};
inline constexpr RoutingSize kRoutingSizes[] = {{8, 2},   {16, 2},  {64, 1},   {64, 8},  {64, 12},  {64, 16},
                                                {64, 32}, {128, 8}, {128, 64}, {256, 8}, {256, 32}, {512, 10}};

/// For gates that give a token to every expert.
inline constexpr RoutingSize kDenseSizes[] = {{8, 8}, {16, 16}, {64, 64}, {128, 128}, {256, 256}, {512, 512}};

/// Registers gate/<name>/... for the sizes and all patterns. route(logits, k, routing) fills `routing` [num_tokens, k]
/// from `logits` [num_tokens, num_experts]; it is copied for each benchmark and may keep buffers of its own.
template <class Route>
void add_routing_kernel(const std::string& name, const Route& route,
                        std::span<const RoutingSize> sizes = kRoutingSizes) {
  for (const RoutingSize size : sizes)
    for (const Pattern pattern : kPatterns)
      add("gate/" + name + "/experts:" + std::to_string(size.num_experts) + "/k:" + std::to_string(size.k) + "/" +
              name_of(pattern),
          [=](benchmark::State& state) {
            Route own = route;
            LogitBatches batches(pattern, state.range(0), size.num_experts);
            moe::Routing<float> routing;
            own(batches.front(), size.k, routing);
            // Logits in, ids and weights out, 32 bits each.
            const double bytes = 4.0 * static_cast<double>(batches.front().size() + 2 * routing.num_assignments());
            measure(state, {.flop = 0, .bytes = bytes}, [&] { own(batches.next(), size.k, routing); });
          });
}

/// The same for a gate: make(k) returns one.
template <class Make>
void add_gate(const std::string& name, const Make& make, std::span<const RoutingSize> sizes = kRoutingSizes) {
  const auto route = [make, step = moe::Step{}, scratch = moe::Scratch()](const moe::Matrix<float>& logits, Index k,
                                                                          moe::Routing<float>& routing) mutable {
    make(k).route(moe::Logits<float>(logits), {step, scratch}, routing);
  };
  add_routing_kernel(name, route, sizes);
}

}  // namespace bench
