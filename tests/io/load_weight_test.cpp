// SPDX-License-Identifier: MIT
#include <bit>
#include <limits>
#include <vector>

#include "io/stored_weight.hpp"
#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::PanelMatrix;
using moe::PanelOrder;
using moe::WeightLayout;
using test::Stored;
using test::TemporaryDirectory;

/// A slice for a whole matrix, or gates and ups.
using Slices = std::vector<moe::WeightSlice>;

Slices in_turns(const moe::WeightSlice& fused) { return {fused.every_output(2, 0), fused.every_output(2, 1)}; }

void load(const Slices& slices, PanelMatrix<moe::F32>& to) {
  moe::WeightLoader loader;
  if (slices.size() == 2)
    loader.add_gate_up(slices[0], slices[1], to);
  else
    loader.add(slices[0], to);
  loader.run();
}

/// Whether panels hold expected(output, input) everywhere and zero as padding; they start as NaN.
template <class F>
void require_loads(const Slices& slices, Index outputs, Index inputs, PanelOrder order, const F& expected) {
  PanelMatrix<moe::F32> panels(outputs, inputs, order);
  for (float& value : panels.span()) value = std::numeric_limits<float>::quiet_NaN();
  load(slices, panels);
  for (Index o = 0; o < outputs; ++o)
    for (Index i = 0; i < inputs; ++i)
      if (panels(o, i) != expected(o, i)) FAIL("(" << o << ", " << i << "): " << panels(o, i));
  // Everything beside the logical values within the panels (but for the line that keeps panels apart) is zero.
  Index zeros = 0, numbers = 0;
  for (Index p = 0; p < panels.panels(); ++p)
    for (Index j = 0; j < inputs * PanelMatrix<moe::F32>::kWidth; ++j) {
      const float value = panels.panel(p)[j];
      numbers += value == value;
      zeros += value == 0;
    }
  Index logical_zeros = 0;
  for (Index o = 0; o < outputs; ++o)
    for (Index i = 0; i < inputs; ++i) logical_zeros += expected(o, i) == 0;
  REQUIRE(numbers == panels.width() * inputs);
  REQUIRE(zeros - logical_zeros == (panels.width() - outputs) * inputs);
}

/// Sizes below, at and above registers, panels, and the pieces in which weights are decoded.
const std::vector<std::pair<Index, Index>> kSizes{{1, 1},  {2, 3},    {15, 16},  {16, 33},
                                                  {66, 7}, {40, 512}, {34, 530}, {1100, 3}};

}  // namespace

TEST_CASE("load_weight: rows of inputs reach plain panels", "[io]") {
  for (const auto& [outputs, inputs] : kSizes) {
    CAPTURE(outputs, inputs);
    const Stored w({2, outputs, inputs});
    const Index n = inputs, first = outputs * inputs;
    require_loads({moe::weight_slice(w.source(), WeightLayout::OutIn, 1)}, outputs, inputs, PanelOrder::Plain,
                  [&](Index o, Index i) { return w.at(first + o * n + i); });
  }
}

TEST_CASE("load_weight: rows of outputs reach plain panels", "[io]") {
  for (const auto& [outputs, inputs] : kSizes) {
    CAPTURE(outputs, inputs);
    const Stored w({2, inputs, outputs}, moe::Dtype::F32);
    const Index n = outputs, first = outputs * inputs;
    require_loads({moe::weight_slice(w.source(), WeightLayout::InOut, 1)}, outputs, inputs, PanelOrder::Plain,
                  [&](Index o, Index i) { return w.at(first + i * n + o); });
  }
}

TEST_CASE("load_weight: gate and up in halves or in turns, by rows of inputs or outputs, reach panels", "[io]") {
  for (const PanelOrder order : {PanelOrder::Paired, PanelOrder::Plain})
    for (const auto& [hidden, inputs] : kSizes) {
      CAPTURE(hidden, inputs, order == PanelOrder::Paired);
      const Index ff = hidden, d = inputs;
      const Stored out_in({2, 2 * ff, d}), in_out({2, d, 2 * ff});
      const moe::WeightSlice rows = moe::weight_slice(out_in.source(), WeightLayout::OutIn, 1);
      const moe::WeightSlice columns = moe::weight_slice(in_out.source(), WeightLayout::InOut, 1);
      const Index first = 2 * ff * d;
      // Output o of the panels is gate o or up o - ff, which stands at place 2 o or 2 (o - ff) + 1 in turns.
      const auto turn = [&](Index o) { return o < ff ? 2 * o : 2 * (o - ff) + 1; };
      const auto check = [&](const Slices& slices, const auto& expected) {
        require_loads(slices, 2 * ff, d, order, expected);
      };
      check({rows}, [&](Index o, Index i) { return out_in.at(first + o * d + i); });
      check({rows.output_range(0, ff), rows.output_range(ff, ff)},
            [&](Index o, Index i) { return out_in.at(first + o * d + i); });
      check(in_turns(rows), [&](Index o, Index i) { return out_in.at(first + turn(o) * d + i); });
      check({columns}, [&](Index o, Index i) { return in_out.at(first + i * 2 * ff + o); });
      check({columns.output_range(0, ff), columns.output_range(ff, ff)},
            [&](Index o, Index i) { return in_out.at(first + i * 2 * ff + o); });
      check(in_turns(columns), [&](Index o, Index i) { return in_out.at(first + i * 2 * ff + turn(o)); });
      check({rows.output_range(0, ff), columns.every_output(2, 1)}, [&](Index o, Index i) {
        return o < ff ? out_in.at(first + o * d + i) : in_out.at(first + i * 2 * ff + turn(o));
      });
    }
}

TEST_CASE("load_weight: every code of BF16 gets the bits of its float, wherever it stands", "[io]") {
  const Index rows = 128, columns = 512;  // as outputs x inputs, and the other way round
  std::vector<std::uint16_t> codes(65536);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint16_t>(i);
  const TemporaryDirectory directory;
  test::write_tensors(directory / "x", {{"w", moe::Dtype::BF16, {rows, columns}, test::bytes_of(codes)}});
  const auto source = moe::WeightSource::find(moe::Checkpoint::open(directory / "x"), "w");
  const auto bits = [](float value) { return std::bit_cast<std::uint32_t>(value); };
  PanelMatrix<moe::F32> out_in(rows, columns), in_out(columns, rows), turns(columns, rows, PanelOrder::Paired);
  moe::load_weight(moe::weight_slice(source, WeightLayout::OutIn), out_in);
  moe::load_weight(moe::weight_slice(source, WeightLayout::InOut), in_out);
  load(in_turns(moe::weight_slice(source, WeightLayout::InOut)), turns);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < columns; ++c) {
      const auto expected = static_cast<std::uint32_t>(r * columns + c) << 16;
      const bool same = bits(out_in(r, c)) == expected && bits(in_out(c, r)) == expected &&
                        bits(turns(c % 2 * (columns / 2) + c / 2, r)) == expected;
      if (!same) FAIL("row " << r << ", column " << c);
    }
}

TEST_CASE("load_weight: every format, in either layout, in pieces, gives what the source reads", "[io]") {
  const Index rows = 70,
              columns = 2080;  // 2080 outputs x 70 inputs are more than one piece, and so the other way round
  const std::size_t size = static_cast<std::size_t>(rows * columns);
  const auto coded = [](std::size_t count, std::size_t most) {
    std::string bytes(count, '\0');
    for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>(i * 29 % most);
    return bytes;
  };
  using moe::Dtype;
  const std::vector<std::vector<test::Tensor>> formats{
      {{"w", Dtype::F32, {rows, columns}, test::bytes_of(test::numbered(rows * columns))}},
      {{"a", Dtype::U8, {3}, "odd"}, {"w", Dtype::BF16, {rows, columns}, coded(2 * size, 60)}},
      {{"w", Dtype::F16, {rows, columns}, coded(2 * size, 60)}},
      {{"w", Dtype::F8_E5M2, {rows, columns}, coded(size, 120)}},
      {{"w", Dtype::F8_E4M3, {rows, columns}, coded(size, 127)},
       {"w_scale_inv", Dtype::F32, {1, 17}, test::bytes_of(test::numbered(17))}},
      {{"w_blocks", Dtype::U8, {rows, columns / 32, 16}, coded(size / 2, 256)},
       {"w_scales", Dtype::U8, {rows, columns / 32}, coded(size / 32, 254)}}};
  for (const auto& tensors : formats) {
    const TemporaryDirectory directory;
    test::write_tensors(directory / "x", tensors);
    const auto source = moe::WeightSource::find(moe::Checkpoint::open(directory / "x"), "w");
    CAPTURE(source.format());
    std::vector<float> values(size);
    source.read_values(0, values);
    const auto at = [&](Index r, Index c) { return values[static_cast<std::size_t>(r * columns + c)]; };
    const auto turned = [&](Index c) { return c < columns / 2 ? 2 * c : 2 * c - columns + 1; };
    const auto out_in = moe::weight_slice(source, WeightLayout::OutIn);
    const auto in_out = moe::weight_slice(source, WeightLayout::InOut);
    require_loads({out_in}, rows, columns, PanelOrder::Plain, at);
    require_loads({in_out}, columns, rows, PanelOrder::Plain, [&](Index o, Index i) { return at(i, o); });
    require_loads(in_turns(in_out), columns, rows, PanelOrder::Paired,
                  [&](Index o, Index i) { return at(i, turned(o)); });
    require_loads({out_in}, rows, columns, PanelOrder::Paired, at);
  }
}

TEST_CASE("load_weight: stacked experts are ranges of outputs or inputs", "[io]") {
  const Index experts = 3, ff = 20, d = 24;
  const Stored w({experts * ff, d});
  for (Index e = 0; e < experts; ++e) {
    require_loads({moe::weight_slice(w.source(), WeightLayout::OutIn).output_range(e * ff, ff)}, ff, d,
                  PanelOrder::Plain, [&](Index o, Index i) { return w.at((e * ff + o) * d + i); });
    require_loads({moe::weight_slice(w.source(), WeightLayout::InOut).input_range(e * ff, ff)}, d, ff,
                  PanelOrder::Plain, [&](Index o, Index i) { return w.at((e * ff + i) * d + o); });
  }
}

TEST_CASE("load_weight: biases in halves and in turns reach panels of one input", "[io]") {
  const Index ff = 21;
  const Stored w({3, 2 * ff}, moe::Dtype::F32);
  const moe::WeightSlice bias = moe::bias_slice(w.source(), 2);
  require_loads({bias}, 2 * ff, 1, PanelOrder::Plain, [&](Index o, Index) { return w.at(4 * ff + o); });
  require_loads({bias}, 2 * ff, 1, PanelOrder::Paired, [&](Index o, Index) { return w.at(4 * ff + o); });
  require_loads(in_turns(bias), 2 * ff, 1, PanelOrder::Paired,
                [&](Index o, Index) { return w.at(4 * ff + (o < ff ? 2 * o : 2 * (o - ff) + 1)); });
}

TEST_CASE("load_weight: a weight of another shape is an error that names it", "[io][error]") {
  const Stored w({6, 4});
  PanelMatrix<moe::F32> panels(4, 6), paired(12, 4, PanelOrder::Paired), odd(3, 4);
  const moe::WeightSlice slice = moe::weight_slice(w.source(), WeightLayout::OutIn);
  REQUIRE_THROWS_WITH(moe::load_weight(slice, panels),
                      ContainsSubstring("'w' with shape [6, 4] gives a matrix [6, 4], expected [4, 6]"));
  REQUIRE_THROWS_AS(moe::load_weight(slice, panels), std::runtime_error);
  REQUIRE_THROWS_AS(moe::load_weight(slice, paired), std::runtime_error);
  REQUIRE_THROWS_WITH(load(in_turns(slice), paired),
                      ContainsSubstring("'w' with shape [6, 4] gives a matrix [3, 4], expected [6, 4]"));
  REQUIRE_THROWS_AS(load(in_turns(slice), odd), std::invalid_argument);
}

TEST_CASE("weight_slice: what is not there is an error", "[io][error]") {
  const Stored w({3, 6, 4}), vector({5});
  const moe::WeightSlice slice = moe::weight_slice(w.source(), WeightLayout::InOut, 2);
  REQUIRE_THROWS_AS(moe::weight_slice(w.source(), WeightLayout::OutIn, 3), std::invalid_argument);
  REQUIRE_THROWS_AS(moe::weight_slice(w.source(), WeightLayout::OutIn, -1), std::invalid_argument);
  REQUIRE_THROWS_AS(moe::bias_slice(w.source(), 18), std::invalid_argument);
  REQUIRE_THROWS_WITH(moe::weight_slice(vector.source(), WeightLayout::OutIn), ContainsSubstring("'w' has shape [5]"));
  REQUIRE_THROWS_AS(slice.output_range(1, 4), std::invalid_argument);
  REQUIRE_THROWS_AS(slice.input_range(-1, 4), std::invalid_argument);
  REQUIRE_THROWS_AS(slice.every_output(2, 2), std::invalid_argument);
  REQUIRE_THROWS_AS(in_turns(moe::bias_slice(vector.source())), std::runtime_error);
}
