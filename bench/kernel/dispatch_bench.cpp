// SPDX-License-Identifier: MIT
// kernel/dispatch: gathers each expert's rows, beside a loop of std::copy; both on one thread.
#include "google.hpp"
#include "kernel/routed_rows.hpp"

namespace {

using bench::Index, bench::Pattern, bench::Shape;

void dispatch(benchmark::State& state, const Shape& shape, Pattern pattern) {
  bench::RoutedRows r(shape, pattern, state.range(0));
  bench::measure(state, {.flop = 0, .bytes = r.dispatch_bytes()},
                 [&] { moe::kernel::dispatch<float>(r.tokens, r.plan, r.rows); });
}

void reference(benchmark::State& state, const Shape& shape, Pattern pattern) {
  bench::RoutedRows r(shape, pattern, state.range(0));
  bench::measure(state, {.flop = 0, .bytes = r.dispatch_bytes()}, [&] {
    for (Index row = 0; row < r.plan.num_rows(); ++row) {
      const float* from = r.tokens.row(r.plan.token_of_row()[static_cast<std::size_t>(row)]).data();
      std::copy(from, from + r.tokens.cols(), r.rows.row(row));
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  const bench::OneThread one_thread;
  bench::add_for_all("kernel/dispatch", dispatch);
  bench::add_for_all("kernel/dispatch/reference", reference);
  return bench::run(argc, argv);
}
