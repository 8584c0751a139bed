// SPDX-License-Identifier: MIT
// Floats of 8 and 4 bits with the scales that published files have.
#include "io/layout_checks.hpp"

namespace {

using test::complaint;
using test::Dtype;
using test::Index;
using test::require_values;
using test::StoredTensors;
using test::Tensor;
using Format = moe::WeightFormat;
using Catch::Matchers::ContainsSubstring;

unsigned byte(const std::string& bytes, Index i) {
  return static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
}
std::string numbered_bytes(Index count, unsigned step) {
  std::string bytes;
  for (unsigned i = 0; i < static_cast<unsigned>(count); ++i) bytes += static_cast<char>(i * step + i / 256);
  return bytes;
}

/// A float of 8 bits, as the tables of arXiv:2209.05433 have it.
float e4m3(unsigned code) {
  const unsigned magnitude = code & 127, exponent = magnitude >> 3, fraction = magnitude & 7;
  const double value = magnitude == 127 ? std::nan("")
                       : exponent == 0  ? std::ldexp(fraction, -9)
                                        : std::ldexp(8 + fraction, static_cast<int>(exponent) - 10);
  return static_cast<float>(code >= 128 ? -value : value);
}
float e5m2(unsigned code) {
  const unsigned magnitude = code & 127, exponent = magnitude >> 2, fraction = magnitude & 3;
  const double value = magnitude > 124    ? std::nan("")
                       : magnitude == 124 ? std::numeric_limits<double>::infinity()
                       : exponent == 0    ? std::ldexp(fraction, -16)
                                          : std::ldexp(4 + fraction, static_cast<int>(exponent) - 17);
  return static_cast<float>(code >= 128 ? -value : value);
}
float e8m0(unsigned code) {
  return code == 255 ? std::nanf("") : static_cast<float>(std::ldexp(1.0, static_cast<int>(code) - 127));
}
float e2m1(unsigned code) {
  const std::vector<float> values{0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return code < 8 ? values[code] : -values[code - 8];
}
/// Code of value i of bytes of two, the first in the low half.
unsigned nibble(const std::string& bytes, Index i) { return byte(bytes, i / 2) >> (i % 2 * 4) & 15; }

/// Safetensors files with tensors F8_E8M0, which the writer does not know: written as U8, then renamed in the header.
struct StoredE8m0 {
  test::TemporaryDirectory directory;
  moe::Checkpoint checkpoint;

  StoredE8m0(const std::vector<Tensor>& tensors, const std::string& name) : checkpoint(write(tensors, name)) {}

 private:
  moe::Checkpoint write(const std::vector<Tensor>& tensors, const std::string& name) const {
    nlohmann::json header;
    std::string data;
    for (const Tensor& tensor : tensors) {
      const std::size_t begin = data.size();
      data += tensor.bytes;
      header[tensor.name] = {{"dtype", tensor.name == name ? "F8_E8M0" : std::string(moe::dtype_name(tensor.dtype))},
                             {"shape", tensor.shape},
                             {"data_offsets", {begin, data.size()}}};
    }
    test::write_bytes(directory / "x", test::safetensors_bytes(header.dump(), data));
    return moe::Checkpoint::open(directory / "x");
  }
};

/// Values [matrices, rows, columns] of codes times the scale that `scale_of(matrix, row, column)` says.
template <class Decode, class ScaleOf>
std::vector<float> scaled(const std::string& codes, Index matrices, Index rows, Index columns, const Decode& decode,
                          const ScaleOf& scale_of) {
  std::vector<float> values;
  for (Index m = 0; m < matrices; ++m)
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < columns; ++c)
        values.push_back(decode(byte(codes, (m * rows + r) * columns + c)) * scale_of(m, r, c));
  return values;
}

}  // namespace

TEST_CASE("WeightSource: FP8 with a scale per matrix or per output, which multiplies", "[io]") {
  const Index rows = 19, columns = 45;
  const std::string codes = numbered_bytes(rows * columns, 1);
  const std::vector<float> scales = test::small_scales(rows);
  const auto at = [&](Index i) { return scales[static_cast<std::size_t>(i)]; };
  for (const Dtype dtype : {Dtype::F32, Dtype::BF16, Dtype::F16}) {
    Format format = Format::fp8(0, test::kept_type(dtype));
    const std::string all = test::scale_bytes(dtype, scales), one = test::scale_bytes(dtype, {0.375f});
    for (const std::vector<Index>& shape : {std::vector<Index>{rows}, {rows, 1}}) {
      const StoredTensors stored({{"m.weight", Dtype::F8_E4M3, {rows, columns}, codes},
                                  {"m.weight_scale", dtype, shape, all},
                                  {"m.input_scale", Dtype::F32, {}, std::string(4, '\0')}});
      const moe::WeightSource source = stored.find();
      require_values(source, scaled(codes, 1, rows, columns, e4m3, [&](Index, Index r, Index) { return at(r); }),
                     format);
      CHECK(source.format() == "F8_E4M3 x output");
      CHECK(source.method() == moe::QuantMethod::Fp8);
      CHECK(source.stored_names() == std::vector<std::string>{"m.weight", "m.weight_scale", "m.input_scale"});
      CHECK(source.bytes() == codes.size() + all.size());
    }
    for (const std::vector<Index>& shape : {std::vector<Index>{}, {1}})
      for (const char* name : {"m.weight_scale", "m.weight_scale_inv"}) {
        const StoredTensors stored({{"m.weight", Dtype::F8_E5M2, {rows, columns}, codes}, {name, dtype, shape, one}});
        require_values(stored.find(), scaled(codes, 1, rows, columns, e5m2, [](Index, Index, Index) { return 0.375f; }),
                       Format::fp8_e5m2(0, format.scale));
        CHECK(stored.find().format() == "F8_E5M2 x tensor");
      }
  }
}

TEST_CASE("WeightSource: FP8 in blocks of any size, under both names", "[io]") {
  struct Block {
    Index a, b;
  };
  const Index matrices = 2, rows = 21, columns = 50;
  const std::string codes = numbered_bytes(matrices * rows * columns, 3);
  for (const Block& block : {Block{8, 16}, Block{1, 24}, Block{32, 8}, Block{128, 128}}) {
    const Index down = (rows + block.a - 1) / block.a, across = (columns + block.b - 1) / block.b;
    const std::vector<float> scales = test::small_scales(matrices * down * across);
    const auto scale_of = [&](Index m, Index r, Index c) {
      return scales[static_cast<std::size_t>((m * down + r / block.a) * across + c / block.b)];
    };
    const std::vector<float> values = scaled(codes, matrices, rows, columns, e4m3, scale_of);
    const moe::StatedStorage stated{.block_outputs = block.a, .block_inputs = block.b};
    for (const char* name : {"m.weight_scale", "m.weight_scale_inv"}) {
      CAPTURE(block.a, block.b, name);
      const StoredTensors stored({{"m.weight", Dtype::F8_E4M3, {matrices, rows, columns}, codes},
                                  {name, Dtype::F16, {matrices, down, across}, test::f16_bytes(scales)}});
      require_values(stored.find("m.weight", stated), values, Format::fp8(block.b, moe::ScaleType::F16));
      CHECK(stored.find("m.weight", stated).method() == moe::QuantMethod::Fp8Blocks);
    }
  }
  const StoredTensors stored({{"m.weight", Dtype::F8_E4M3, {1, 30}, codes.substr(0, 30)},
                              {"m.weight_scale_inv", Dtype::F32, {1, 3}, std::string(12, '\0')}});
  CHECK_FALSE(stored.find("m.weight", {.block_inputs = 10}).kept_format());
}

TEST_CASE("WeightSource: every code of 8 bits with every scale F8_E8M0", "[io]") {
  const std::string codes = numbered_bytes(65536, 1).substr(0, 0) + [] {
    std::string all;
    for (int row = 0; row < 256; ++row)
      for (int code = 0; code < 256; ++code) all += static_cast<char>(code);
    return all;
  }();
  std::string scales;
  for (int scale = 0; scale < 256; ++scale) scales += static_cast<char>(scale);
  const auto scale_of = [](Index, Index r, Index) { return e8m0(static_cast<unsigned>(r)); };
  for (const auto& [dtype, decode, format] :
       {std::tuple(Dtype::F8_E4M3, &e4m3, Format::fp8(0, moe::ScaleType::E8M0)),
        std::tuple(Dtype::F8_E5M2, &e5m2, Format::fp8_e5m2(0, moe::ScaleType::E8M0))}) {
    const StoredE8m0 stored({{"w", dtype, {256, 256}, codes}, {"w_scale", Dtype::U8, {256, 1}, scales}}, "w_scale");
    require_values(moe::WeightSource::find(stored.checkpoint, "w"), scaled(codes, 1, 256, 256, decode, scale_of),
                   format,
                   test::AsPanels::Skip);  // E4M3 with scales of 2^119 and more is in no matrix
  }
  const StoredE8m0 blocks(
      {{"w", Dtype::F8_E4M3, {256, 256}, codes}, {"w_scale_inv", Dtype::U8, {2, 2}, "\x70\x7f\x80\x01"}},
      "w_scale_inv");
  require_values(
      moe::WeightSource::find(blocks.checkpoint, "w"),
      scaled(codes, 1, 256, 256, e4m3,
             [](Index, Index r, Index c) {
               return e8m0(std::vector{0x70u, 0x7fu, 0x80u, 1u}[static_cast<std::size_t>(r / 128 * 2 + c / 128)]);
             }),
      Format::fp8(128, moe::ScaleType::E8M0));
}

TEST_CASE("WeightSource: NVFP4 of modelopt and compressed-tensors, every code with every scale", "[io]") {
  for (const Index columns : {16, 38}) {
    const Index rows = 256, groups = (columns + 15) / 16;
    const std::string codes = numbered_bytes(rows * columns / 2, 17), scales = numbered_bytes(rows * groups, 1);
    for (const float matrix_scale : {1.0f, 0.013f, 3e-30f}) {
      std::vector<float> values;
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < columns; ++c) {
          const float scale = e4m3(byte(scales, r * groups + c / 16)) * matrix_scale;
          values.push_back(e2m1(nibble(codes, r * columns + c)) * scale);
        }
      CAPTURE(columns, matrix_scale);
      const Tensor small{"m.weight_scale", Dtype::F8_E4M3, {rows, groups}, scales};
      for (const std::vector<Index>& shape : {std::vector<Index>{}, {1}}) {
        const StoredTensors modelopt(
            {{"m.weight", Dtype::U8, {rows, columns / 2}, codes},
             small,
             {"m.weight_scale_2", Dtype::F32, shape, test::bytes_of(std::vector{matrix_scale})},
             {"m.input_scale", Dtype::F32, {}, std::string(4, '\0')}});
        require_values(modelopt.find(), values, Format::nvfp4());
        CHECK(modelopt.find().matrix_scale() == matrix_scale);
        CHECK(modelopt.find().stored_names().size() == 4);
        CHECK(modelopt.find().format() == "NVFP4");
      }
      if (matrix_scale != 1) continue;
      const StoredTensors divided({{"m.weight_packed", Dtype::U8, {rows, columns / 2}, codes},
                                   small,
                                   {"m.weight_global_scale", Dtype::F32, {1}, test::bytes_of(std::vector{1.0f})},
                                   {"m.input_global_scale", Dtype::F32, {1}, std::string(4, '\0')}});
      require_values(divided.find(), values, Format::nvfp4());
    }
  }
}

TEST_CASE("WeightSource: a global scale of compressed-tensors divides", "[io]") {
  const std::string codes = numbered_bytes(8, 31);
  for (const float global : {4.0f, 2688.0f, 1234.5f}) {
    const StoredTensors stored({{"m.weight_packed", Dtype::U8, {1, 8}, codes},
                                {"m.weight_scale", Dtype::F8_E4M3, {1, 1}, "\x5a"},
                                {"m.weight_global_scale", Dtype::F32, {}, test::bytes_of(std::vector{global})}});
    std::vector<float> values;
    const float reciprocal = 1 / global;
    for (Index i = 0; i < 16; ++i) values.push_back(e2m1(nibble(codes, i)) * (e4m3(0x5a) * reciprocal));
    require_values(stored.find(), values, Format::nvfp4());
    for (Index i = 0; i < 16; ++i) {
      const double exact =
          static_cast<double>(e2m1(nibble(codes, i))) * static_cast<double>(e4m3(0x5a)) / static_cast<double>(global);
      // The reciprocal, its product with the scale and that with the code are rounded.
      CHECK_THAT(static_cast<double>(values[static_cast<std::size_t>(i)]),
                 Catch::Matchers::WithinRel(exact, 3 * 0x1p-24));
    }
  }
}

TEST_CASE("WeightSource: MXFP4 of compressed-tensors, every code with every scale", "[io]") {
  for (const Index columns : {32, 70}) {
    const Index rows = 256, groups = (columns + 31) / 32;
    const std::string codes = numbered_bytes(rows * columns / 2, 17), scales = numbered_bytes(rows * groups, 1);
    std::vector<float> values;
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < columns; ++c)
        values.push_back(e2m1(nibble(codes, r * columns + c)) * e8m0(byte(scales, r * groups + c / 32)));
    const std::vector<Tensor> tensors{{"m.weight_packed", Dtype::U8, {rows, columns / 2}, codes},
                                      {"m.weight_scale", Dtype::U8, {rows, groups}, scales}};
    require_values(StoredTensors(tensors).find(), values, Format::mxfp4());
    const StoredE8m0 typed(tensors, "m.weight_scale");
    const auto source = moe::WeightSource::find(typed.checkpoint, "m.weight");
    require_values(source, values, Format::mxfp4());
    CHECK(source.method() == moe::QuantMethod::Mxfp4);
  }
}

TEST_CASE("WeightSource: floats whose scales do not fit are errors that name the tensor", "[io][error]") {
  const std::string b(64, '\0');
  const auto bytes = [&](std::size_t count) { return b.substr(0, count); };
  const Tensor fp8{"m.weight", Dtype::F8_E4M3, {4, 16}, b}, pairs{"m.weight", Dtype::U8, {4, 8}, bytes(32)};
  const Tensor packed{"m.weight_packed", Dtype::U8, {4, 8}, bytes(32)},
      one{"m.weight_scale_2", Dtype::F32, {}, bytes(4)};
  const Tensor scale{"m.weight_scale", Dtype::F8_E4M3, {4, 1}, bytes(4)},
      global{"m.weight_global_scale", Dtype::F32, {1}, bytes(4)};
  const auto refuses = [&](const std::vector<Tensor>& tensors, const std::string& message) {
    CHECK_THAT(complaint(tensors), ContainsSubstring(message));
  };
  refuses({fp8, {"m.weight_scale", Dtype::F32, {3}, bytes(12)}},
          "'m.weight_scale' has shape [3], expected [], [1], [4], [4, 1] or [1, 1]");
  refuses({fp8, {"m.weight_scale_inv", Dtype::F32, {4, 1}, bytes(16)}},
          "'m.weight_scale_inv' has shape [4, 1], expected [1, 1]");
  refuses({fp8, {"m.weight_scale", Dtype::U8, {}, bytes(1)}},
          "'m.weight_scale' is U8, expected a floating-point type or F8_E8M0");
  refuses({fp8, {"m.weight_scale", Dtype::F32, {}, bytes(4)}, {"m.weight_scale_inv", Dtype::F32, {}, bytes(4)}},
          "'m.weight_scale' is no part of the format of 'm.weight', which is F8_E4M3");
  refuses({fp8, {"m.weight_scale", Dtype::F32, {}, bytes(4)}, {"m.weight_zero_point", Dtype::I8, {}, bytes(1)}},
          "'m.weight_zero_point' is no part");
  refuses({fp8, one}, "'m.weight_scale_2' is no part of the format");
  refuses({pairs}, "'m.weight' is U8, expected a floating-point type");
  refuses({pairs, scale}, "'m.weight_scale_2' is missing");
  refuses({pairs, one}, "'m.weight_scale' is missing");
  refuses({pairs, one, {"m.weight_scale", Dtype::U8, {4, 1}, bytes(4)}}, "'m.weight_scale' is U8, expected F8_E4M3");
  refuses({pairs, one, {"m.weight_scale", Dtype::F8_E4M3, {4, 2}, bytes(8)}},
          "'m.weight_scale' has shape [4, 2], expected [4, 1]");
  refuses({pairs, scale, {"m.weight_scale_2", Dtype::F32, {2}, bytes(8)}},
          "'m.weight_scale_2' has shape [2], expected [] or [1]");
  refuses({pairs, scale, {"m.weight_scale_2", Dtype::I32, {}, bytes(4)}}, "'m.weight_scale_2' is I32");
  refuses({packed, scale}, "'m.weight_scale' is F8_E4M3, expected U8 or F8_E8M0, as there is no global scale");
  refuses({packed, global}, "'m.weight_scale' is missing");
  refuses({packed, global, scale, one}, "'m.weight_scale_2' is no part of the format of 'm.weight_packed'");
  refuses({{"m.weight_packed", Dtype::I16, {4, 8}, b}, global, scale}, "'m.weight_packed' is I16, expected U8");
  refuses({{"m.weight_packed", Dtype::U8, {32}, bytes(32)}, global, scale}, "expected [.., outputs, inputs / 2]");
  refuses({packed, pairs, scale, global}, "both 'm.weight' and 'm.weight_packed' are there");
}
