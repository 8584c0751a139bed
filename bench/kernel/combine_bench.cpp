// SPDX-License-Identifier: MIT
// kernel/combine: the weighted sum of each token's rows, beside adding each expert's rows to their tokens; both on one
// thread.
#include "google.hpp"
#include "kernel/routed_rows.hpp"

namespace {

using bench::Index, bench::Pattern, bench::Shape;

void combine(benchmark::State& state, const Shape& shape, Pattern pattern) {
  bench::RoutedRows r(shape, pattern, state.range(0));
  bench::measure(state, {.flop = 0, .bytes = r.combine_bytes()},
                 [&] { moe::kernel::combine(r.rows, r.plan, r.routing, r.out); });
}

void reference(benchmark::State& state, const Shape& shape, Pattern pattern) {
  bench::RoutedRows r(shape, pattern, state.range(0));
  bench::measure(state, {.flop = 0, .bytes = r.combine_bytes()}, [&] { r.scatter_add(); });
}

}  // namespace

int main(int argc, char** argv) {
  const bench::OneThread one_thread;
  bench::add_for_all("kernel/combine", combine);
  bench::add_for_all("kernel/combine/reference", reference);
  return bench::run(argc, argv);
}
