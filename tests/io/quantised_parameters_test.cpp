// SPDX-License-Identifier: MIT
// Layers with weights in few bits in files: codes and scales, bit for bit; and what they are found from.
#include "layer/fixtures.hpp"
#include "moe/compress/calibration.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/files.hpp"

using moe::Index;
using moe::PanelMatrix;
using moe::Quantised;
using moe::ScaleType;
using moe::WeightFormat;
using Small = moe::BasicMlp<Quantised>;

namespace {

const std::vector<WeightFormat> kFormats = {WeightFormat::none(),
                                            WeightFormat::bf16(),
                                            WeightFormat::f16(),
                                            WeightFormat::fp8(),
                                            WeightFormat::fp8_e5m2(0, ScaleType::Unscaled),
                                            WeightFormat::int8(32, ScaleType::F32),
                                            WeightFormat::int8(8).with_zero_points(),
                                            WeightFormat::int4(32, ScaleType::Bf16),
                                            WeightFormat::int4().with_zero_points(),
                                            WeightFormat::mxfp4(),
                                            WeightFormat::nvfp4(),
                                            WeightFormat::planes(1),
                                            WeightFormat::planes(3, 32).without_zero_points(),
                                            WeightFormat::planes(7, 0, ScaleType::F32)};

Small expert_of(const WeightFormat& format) { return moe::quantise(test::random_expert<moe::Mlp>(37, 45, 1), format); }

std::string refusal(const std::filesystem::path& path, Small expert) {
  try {
    moe::load_parameters(path, expert);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("Quantised parameters: a file has the codes, and gives them back bit for bit", "[io]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "expert.safetensors";
  const auto rows = test::random_matrix<float>(5, 37);
  for (const WeightFormat& format : kFormats) {
    CAPTURE(format.name());
    const Small expert = expert_of(format);
    moe::save_parameters(path, expert);
    Small loaded(37, 45);  // of no format
    moe::load_parameters(path, loaded);
    CHECK(loaded.up().format() == format);
    CHECK(test::same_bits(test::run(loaded, rows), test::run(expert, rows)));
    const auto a = expert.down().rows(), b = loaded.down().rows();
    CHECK(a.codes == b.codes);
    CHECK(a.scales == b.scales);
    CHECK(a.zeros == b.zeros);
    CHECK(loaded.down().matrix_scale() == expert.down().matrix_scale());
    moe::save_parameters(directory / "again", loaded);
    CHECK(test::read_bytes(path) == test::read_bytes(directory / "again"));
    // Codes that are not those of rounding: as another quantiser leaves them.
    if (format.code_bits() == 0) continue;
    Small other = expert;
    other.up().set_code(44, 36, other.up().code(44, 36) ^ 1u);
    moe::save_parameters(path, other);
    moe::load_parameters(path, loaded);
    CHECK(loaded.up().code(44, 36) == other.up().code(44, 36));
  }
}

TEST_CASE("Quantised parameters: rows that are rounded stay rounded", "[io]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "expert.safetensors";
  moe::save_parameters(path, expert_of(WeightFormat::int4()));
  Small loaded = moe::with_dot(expert_of(WeightFormat::int8()), moe::Dot::Int8);
  moe::load_parameters(path, loaded);
  CHECK(loaded.up().format() == WeightFormat::int4());
  CHECK(loaded.up().dot() == moe::Dot::Int8);
  moe::save_parameters(path, expert_of(WeightFormat::f16()));  // which have no such product
  CHECK_THAT(refusal(path, loaded), Catch::Matchers::ContainsSubstring("'up.weight': moe::PanelMatrix::set_dot"));
}

TEST_CASE("Quantised parameters: the bits of a file are counted from the lowest of the first byte", "[io]") {
  const test::TemporaryDirectory directory;
  PanelMatrix<Quantised> three(1, 5, moe::PanelOrder::Plain, WeightFormat::planes(3, 32).without_zero_points());
  const std::uint32_t codes[] = {5, 2, 7, 1, 6};  // 101 010 111 001 110 from the lowest bit on
  three.set_codes(0, 0, codes);
  const auto rows = three.rows();
  REQUIRE(rows.codes.size() == 2);
  const unsigned expected = 5u | 2u << 3 | 7u << 6 | 1u << 9 | 6u << 12;
  CHECK(rows.codes[0] == static_cast<std::byte>(expected & 255u));
  CHECK(rows.codes[1] == static_cast<std::byte>(expected >> 8));
}

TEST_CASE("Quantised parameters: a file of floats is rounded to the format that the layer has", "[io]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "floats";
  const auto plain = test::random_expert<moe::Mlp>(37, 45, 1);
  moe::save_parameters(path, plain);
  Small loaded = expert_of(WeightFormat::int8());
  loaded.up().set_code(0, 0, 99);
  moe::load_parameters(path, loaded);
  const auto rows = test::random_matrix<float>(5, 37);
  CHECK(test::same_bits(test::run(loaded, rows), test::run(expert_of(WeightFormat::int8()), rows)));
  auto broken = plain;
  broken.up().set(3, 5, test::kNan<float>);
  moe::save_parameters(path, broken);
  CHECK_THAT(refusal(path, loaded), Catch::Matchers::ContainsSubstring("'up.weight': moe::PanelMatrix::write: weight "
                                                                       "of output 3, input 5 is nan"));
  Small none(37, 45);
  CHECK_THROWS_AS(moe::load_parameters(path, none), std::invalid_argument);  // as nothing says how to store them
}

TEST_CASE("Quantised parameters: broken files are refused by name", "[io]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "expert.safetensors";
  const auto with = [&](const std::string& name, const auto& change) {
    moe::save_parameters(path, expert_of(WeightFormat::int4()));
    const moe::SafetensorsReader file(path, moe::FileAccess::Read);
    moe::SafetensorsHeader header{.tensors = file.tensors()};
    std::map<std::string, std::vector<std::byte>> bytes;
    for (const auto& [tensor, info] : header.tensors) {
      const auto view = file.view(tensor).bytes;
      bytes[tensor].assign(view.begin(), view.end());
    }
    change(header.tensors, bytes[name]);
    moe::SafetensorsWriter writer(directory / "broken", header);
    for (const auto& [tensor, info] : header.tensors) writer.write_bytes(tensor, bytes[tensor]);
    writer.commit();
    return refusal(directory / "broken", Small(37, 45));
  };
  const auto contains = [](const char* text) { return Catch::Matchers::ContainsSubstring(text); };
  CHECK(with("", [](auto&, auto&) {}) == "accepted");
  const auto number = [&](std::size_t place, std::int64_t value) {
    return with("up.weight.format", [&](auto&, auto& bytes) { std::memcpy(bytes.data() + 8 * place, &value, 8); });
  };
  CHECK_THAT(number(0, 44), contains("'up.weight' is of [44, 37] weights, expected [45, 37]"));
  CHECK_THAT(number(2, 9), contains("'up.weight.format' is [9, "));
  CHECK_THAT(number(3, -1), contains("expected numbers of a WeightFormat"));
  CHECK_THAT(number(4, 12), contains("group is 12"));
  CHECK_THAT(number(4, 64), contains("tensor 'up.weight.scales' has shape [45, 2], expected [45, 1]"));
  CHECK_THAT(number(5, 3), contains("bits is 3"));
  CHECK_THAT(number(4, 9223372036854775800), contains("tensor 'up.weight.scales' has shape [45, 2], expected [45, 1]"));
  CHECK_THAT(number(6, 1), contains("'up.weight.zeros' is missing"));
  CHECK_THAT(with("up.weight.scales", [](auto& tensors, auto&) { tensors.erase("up.weight.scales"); }),
             contains("'up.weight.scales' is missing"));
  CHECK_THAT(
      with("up.weight.scales", [](auto& tensors, auto&) { tensors["up.weight.scales"].dtype = moe::Dtype::BF16; }),
      contains("tensor 'up.weight.scales' is BF16, expected F16"));
  CHECK_THAT(with("up.weight.zeros",
                  [](auto& tensors, auto& bytes) {
                    tensors["up.weight.zeros"] = {.dtype = moe::Dtype::I8, .shape = {45, 2}};
                    bytes.resize(90);
                  }),
             contains("tensor 'up.weight.zeros' is not a parameter of the layer"));
}

TEST_CASE("Calibration: what experts have read is in a file again, bit for bit", "[io]") {
  const auto check = [](const auto& layer, const moe::CalibrationOptions& options) {
    const auto x = test::random_matrix<float>(60, layer.input_dim(), 5);
    const test::TemporaryDirectory directory;
    const auto path = directory / "calibration.safetensors";
    const moe::Calibration saved = moe::calibrate(layer, x, options);
    moe::save_parameters(path, saved);
    moe::Calibration loaded(layer.experts(), options);
    moe::load_parameters(path, loaded);
    for (Index e = 0; e < 4; ++e)
      for (const auto part : {&moe::ExpertStatistics::inputs, &moe::ExpertStatistics::hidden}) {
        const moe::SecondMoment &a = saved[e].*part, &b = loaded[e].*part;
        REQUIRE(a.dim() == b.dim());
        CHECK(a.rows() == b.rows());
        for (Index i = 0; i < a.dim(); ++i)
          for (Index j = 0; j <= i; ++j) REQUIRE(test::same_bits(a(i, j), b(i, j)));
      }
    moe::Calibration other(layer.experts(), {.experts = {2}});
    CHECK_THROWS_AS(moe::load_parameters(path, other), std::runtime_error);
  };
  check(test::layer_of<moe::Mlp, moe::TopKGate, moe::F32>(4, {.k = 2}), {});
  check(test::layer_of<moe::Mlp, moe::TopKGate, moe::F32>(4, {.k = 2}), {.experts = {1, 3}});
  check(test::layer_of<moe::Linear, moe::TopKGate, moe::F32>(4, {.k = 2}), {});
}
