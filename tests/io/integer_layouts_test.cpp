// SPDX-License-Identifier: MIT
// Integers with scales and zero points as compressed-tensors, GPTQ and AWQ store them.
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

/// A matrix of unsigned integers with scales and zero points, as one would write it down.
struct Ints {
  Index outputs, inputs, group;
  int bits;
  std::vector<int> codes, zeros;  ///< [outputs, inputs], [outputs, groups], from 0 to 2^bits - 1
  std::vector<float> scales;      ///< [outputs, groups]

  Ints(Index num_outputs, Index num_inputs, Index inputs_per_group, int num_bits)
      : outputs(num_outputs), inputs(num_inputs), group(inputs_per_group), bits(num_bits) {
    codes = test::every_integer(outputs * inputs, 1 << bits, 1);
    zeros = test::every_integer(outputs * groups(), 1 << bits, 2);
    scales = test::small_scales(outputs * groups());
  }
  Index groups() const { return (inputs + group - 1) / group; }
  int code(Index o, Index i) const { return codes[static_cast<std::size_t>(o * inputs + i)]; }
  int zero(Index o, Index g) const { return zeros[static_cast<std::size_t>(o * groups() + g)]; }
  float scale(Index o, Index g) const { return scales[static_cast<std::size_t>(o * groups() + g)]; }
  void make_symmetric() { std::fill(zeros.begin(), zeros.end(), 1 << (bits - 1)); }
  std::vector<float> values() const {
    std::vector<float> result;
    for (Index o = 0; o < outputs; ++o)
      for (Index i = 0; i < inputs; ++i)
        result.push_back(static_cast<float>(code(o, i) - zero(o, i / group)) * scale(o, i / group));
    return result;
  }
  Format format(Dtype scale_dtype) const {
    const bool is_symmetric = std::all_of(zeros.begin(), zeros.end(), [&](int z) { return z == 1 << (bits - 1); });
    const Format plain = Format::integers(bits, groups() == 1 ? 0 : group);
    Format result = is_symmetric ? plain : plain.with_zero_points();
    result.scale = test::kept_type(scale_dtype);
    return result;
  }
  /// [groups, outputs], as GPTQ and AWQ have scales.
  std::vector<float> turned_scales() const {
    std::vector<float> result;
    for (Index g = 0; g < groups(); ++g)
      for (Index o = 0; o < outputs; ++o) result.push_back(scale(o, g));
    return result;
  }
};

/// Words [rows, columns] of zeros, into which values are put one by one.
struct Words {
  Index rows, columns;
  std::vector<std::uint32_t> words;

  Words(Index num_rows, Index num_columns) : rows(num_rows), columns(num_columns) {
    words.resize(static_cast<std::size_t>(rows * columns));
  }
  void put(Index row, Index column, Index lane, int bits, int value) {
    words[static_cast<std::size_t>(row * columns + column)] |= static_cast<std::uint32_t>(value)
                                                               << (bits * static_cast<int>(lane));
  }
  Tensor tensor(const std::string& name) const { return {name, Dtype::I32, {rows, columns}, test::bytes_of(words)}; }
};

Tensor shape_tensor(Index outputs, Index inputs) {
  return {"m.weight_shape", Dtype::I64, {2}, test::bytes_of(std::vector<std::int64_t>{outputs, inputs})};
}
Tensor index_tensor(const std::string& name, Index inputs, Index group) {
  std::vector<std::int32_t> groups;
  for (Index i = 0; i < inputs; ++i) groups.push_back(static_cast<std::int32_t>(i / group));
  return {name, Dtype::I32, {inputs}, test::bytes_of(groups)};
}

/// compressed-tensors "pack-quantized", as many values in a word as fit.
std::vector<Tensor> packed(const Ints& ints, Dtype dtype, bool with_zeros) {
  const Index each = 32 / ints.bits;
  Words codes(ints.outputs, (ints.inputs + each - 1) / each), zeros((ints.outputs + each - 1) / each, ints.groups());
  for (Index o = 0; o < ints.outputs; ++o) {
    for (Index i = 0; i < ints.inputs; ++i) codes.put(o, i / each, i % each, ints.bits, ints.code(o, i));
    for (Index g = 0; g < ints.groups(); ++g) zeros.put(o / each, g, o % each, ints.bits, ints.zero(o, g));
  }
  std::vector<Tensor> tensors{
      codes.tensor("m.weight_packed"),
      shape_tensor(ints.outputs, ints.inputs),
      {"m.weight_scale", dtype, {ints.outputs, ints.groups()}, test::scale_bytes(dtype, ints.scales)}};
  if (with_zeros) tensors.push_back(zeros.tensor("m.weight_zero_point"));
  return tensors;
}

/// The same with values one behind the other, bit by bit, across words.
std::vector<Tensor> densely_packed(const Ints& ints, Dtype dtype, bool with_zeros) {
  const auto words_of = [&](Index count) { return (count * ints.bits + 31) / 32; };
  Words codes(ints.outputs, words_of(ints.inputs)), zeros(words_of(ints.outputs), ints.groups());
  for (Index o = 0; o < ints.outputs; ++o)
    for (Index b = 0; b < ints.bits; ++b) {
      for (Index i = 0; i < ints.inputs; ++i) {
        const Index bit = i * ints.bits + b;
        codes.put(o, bit / 32, bit % 32, 1, ints.code(o, i) >> b & 1);
      }
      for (Index g = 0; g < ints.groups(); ++g) {
        const Index bit = o * ints.bits + b;
        zeros.put(bit / 32, g, bit % 32, 1, ints.zero(o, g) >> b & 1);
      }
    }
  std::vector<Tensor> tensors = packed(ints, dtype, false);
  tensors[0] = codes.tensor("m.weight_packed");
  if (with_zeros) tensors.push_back(zeros.tensor("m.weight_zero_point"));
  return tensors;
}

/// compressed-tensors "int-quantized": signed bytes.
std::vector<Tensor> bytes_of_ints(const Ints& ints, bool with_zeros) {
  std::string codes, zeros;
  for (const int code : ints.codes) codes += static_cast<char>(code - 128);
  for (const int zero : ints.zeros) zeros += static_cast<char>(zero - 128);
  std::vector<Tensor> tensors{
      {"m.weight", Dtype::I8, {ints.outputs, ints.inputs}, codes},
      {"m.weight_scale", Dtype::BF16, {ints.outputs, ints.groups()}, test::bf16_bytes(ints.scales)}};
  if (with_zeros) tensors.push_back({"m.weight_zero_point", Dtype::I8, {ints.outputs, ints.groups()}, zeros});
  return tensors;
}

std::vector<Tensor> gptq(const Ints& ints, Dtype dtype, bool less_one) {
  const Index each = 32 / ints.bits;
  Words codes(ints.inputs / each, ints.outputs), zeros(ints.groups(), ints.outputs / each);
  for (Index o = 0; o < ints.outputs; ++o) {
    for (Index i = 0; i < ints.inputs; ++i) codes.put(i / each, o, i % each, ints.bits, ints.code(o, i));
    for (Index g = 0; g < ints.groups(); ++g) {
      const int all = 1 << ints.bits;
      zeros.put(g, o / each, o % each, ints.bits, less_one ? (ints.zero(o, g) + all - 1) % all : ints.zero(o, g));
    }
  }
  return {codes.tensor("m.qweight"),
          zeros.tensor("m.qzeros"),
          {"m.scales", dtype, {ints.groups(), ints.outputs}, test::scale_bytes(dtype, ints.turned_scales())}};
}

std::vector<Tensor> awq(const Ints& ints) {
  const std::vector<Index> order{0, 2, 4, 6, 1, 3, 5, 7};  // output of a word that stands at this place
  Words codes(ints.inputs, ints.outputs / 8), zeros(ints.groups(), ints.outputs / 8);
  for (Index word = 0; word < ints.outputs / 8; ++word)
    for (Index lane = 0; lane < 8; ++lane) {
      const Index o = 8 * word + order[static_cast<std::size_t>(lane)];
      for (Index i = 0; i < ints.inputs; ++i) codes.put(i, word, lane, 4, ints.code(o, i));
      for (Index g = 0; g < ints.groups(); ++g) zeros.put(g, word, lane, 4, ints.zero(o, g));
    }
  return {codes.tensor("m.qweight"),
          zeros.tensor("m.qzeros"),
          {"m.scales", Dtype::F16, {ints.groups(), ints.outputs}, test::f16_bytes(ints.turned_scales())}};
}

/// Without the tensor of a name, or with another in its place.
std::vector<Tensor> without(std::vector<Tensor> tensors, const std::string& name) {
  std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
  return tensors;
}
std::vector<Tensor> with(const std::vector<Tensor>& tensors, const Tensor& other) {
  std::vector<Tensor> result = without(tensors, other.name);
  result.push_back(other);
  return result;
}

/// Outputs, inputs, group: even and odd ones, one group, and inputs that are no multiple of the group.
struct Sizes {
  Index outputs, inputs, group;
};

}  // namespace

TEST_CASE("WeightSource: packed integers of compressed-tensors, with zero points and without", "[io]") {
  for (const int bits : {4, 8})
    for (const Sizes& size : {Sizes{9, 40, 16}, Sizes{16, 64, 32}, Sizes{3, 13, 13}, Sizes{40, 21, 8}, Sizes{1, 1, 1}})
      for (const Dtype dtype : {Dtype::BF16, Dtype::F16, Dtype::F32}) {
        CAPTURE(bits, size.outputs, size.inputs, size.group);
        Ints ints(size.outputs, size.inputs, size.group, bits);
        const moe::StatedStorage stated{.group = size.group, .bits = bits};
        require_values(StoredTensors(packed(ints, dtype, true)).find("m.weight", stated), ints.values(),
                       ints.format(dtype));
        ints.make_symmetric();
        for (const bool with_zeros : {false, true})
          require_values(StoredTensors(packed(ints, dtype, with_zeros)).find("m.weight", stated), ints.values(),
                         ints.format(dtype));
      }
}

TEST_CASE("WeightSource: packed integers of 1 to 8 bits, across words and as many in each as fit", "[io]") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const Sizes& size : {Sizes{9, 40, 8}, Sizes{35, 64, 32}, Sizes{3, 131, 131}})
      for (const Dtype dtype : {Dtype::BF16, Dtype::F32}) {
        CAPTURE(bits, size.outputs, size.inputs, size.group);
        Ints ints(size.outputs, size.inputs, size.group, bits);
        const moe::StatedStorage stated{.group = size.group, .bits = bits};
        require_values(StoredTensors(densely_packed(ints, dtype, true)).find("m.weight", stated), ints.values(),
                       ints.format(dtype));
        ints.make_symmetric();
        require_values(StoredTensors(densely_packed(ints, dtype, false)).find("m.weight", stated), ints.values(),
                       ints.format(dtype));
        const Index each = 32 / bits, words = (size.inputs + each - 1) / each;
        if (32 % bits != 0 && words == (size.inputs * bits + 31) / 32) continue;  // they lie across words then
        require_values(StoredTensors(packed(ints, dtype, false)).find("m.weight", stated), ints.values(),
                       ints.format(dtype));
      }
  for (const int bits : {3, 5, 6, 7}) {  // as many words either way: they lie across them
    const Ints ints(2, 32 / bits + 1, 32 / bits + 1, bits);
    const moe::StatedStorage stated{.bits = bits};
    require_values(StoredTensors(densely_packed(ints, Dtype::F16, true)).find("m.weight", stated), ints.values(),
                   ints.format(Dtype::F16));
    const Ints padded(9, 64, 32, bits);
    require_values(StoredTensors(packed(padded, Dtype::F16, true)).find("m.weight", stated), padded.values(),
                   padded.format(Dtype::F16));
    // Zero points tell where the words of codes do not.
    const Ints tall(64, 32 / bits + 1, 32 / bits + 1, bits);
    for (const bool is_dense : {false, true})
      require_values(StoredTensors(is_dense ? densely_packed(tall, Dtype::F16, true) : packed(tall, Dtype::F16, true))
                         .find("m.weight", stated),
                     tall.values(), tall.format(Dtype::F16));
    if (bits == 5)
      CHECK_THAT(complaint(packed(padded, Dtype::F16, true), {.bits = 3}),
                 ContainsSubstring("[9, 6] for the 3 bits that are stated, as"));
    if (bits != 7)  // of which a word has as many as of 8
      CHECK_THAT(complaint(packed(padded, Dtype::F16, true)), ContainsSubstring("for 4 bits or"));
  }
}

TEST_CASE("WeightSource: integers of 8 bits as compressed-tensors has them, per output and per group", "[io]") {
  for (const Sizes& size : {Sizes{5, 48, 16}, Sizes{3, 100, 100}, Sizes{300, 3, 3}, Sizes{2, 20, 8}}) {
    CAPTURE(size.outputs, size.inputs, size.group);
    Ints ints(size.outputs, size.inputs, size.group, 8);
    const moe::StatedStorage stated{.group = size.group};
    require_values(StoredTensors(bytes_of_ints(ints, true)).find("m.weight", stated), ints.values(),
                   ints.format(Dtype::BF16));
    ints.make_symmetric();
    const StoredTensors stored(bytes_of_ints(ints, false));
    require_values(stored.find("m.weight", stated), ints.values(), ints.format(Dtype::BF16));
    REQUIRE(stored.find("m.weight", stated).method() == moe::QuantMethod::Ints);
  }
}

TEST_CASE("WeightSource: GPTQ, whose zero points are stored less one in its first format", "[io]") {
  for (const int bits : {4, 8})
    for (const Sizes& size : {Sizes{8, 64, 32}, Sizes{24, 40, 16}, Sizes{8, 32, 32}})
      for (const bool less_one : {false, true}) {
        CAPTURE(bits, size.outputs, size.inputs, size.group, less_one);
        Ints ints(size.outputs, size.inputs, size.group, bits);
        std::vector<Tensor> tensors = gptq(ints, Dtype::F16, less_one);
        tensors.push_back(index_tensor("m.g_idx", size.inputs, size.group));
        const moe::StatedStorage stated{.group = size.group, .zeros_less_one = less_one};
        const StoredTensors stored(tensors);
        const moe::WeightSource source = stored.find("m.weight", stated);
        require_values(source, ints.values(), ints.format(Dtype::F16));
        REQUIRE(source.stored_names().size() == 4);
        REQUIRE(source.format() == "GPTQ INT" + std::to_string(bits) + " x " +
                                       (ints.groups() == 1 ? "output" : std::to_string(size.group)));
        ints.make_symmetric();
        require_values(StoredTensors(gptq(ints, Dtype::BF16, less_one)).find("m.weight", stated), ints.values(),
                       ints.format(Dtype::BF16));
      }
}

TEST_CASE("WeightSource: a bias of zeros belongs to a weight of GPTQ, another does not", "[io]") {
  const Ints ints(8, 16, 16, 4);
  for (const std::string& bias : {std::string(16, '\0'), std::string(15, '\0') + "x"}) {
    const StoredTensors stored(with(gptq(ints, Dtype::F16, true), {"m.bias", Dtype::F16, {8}, bias}));
    const std::vector<std::string> names = stored.find().stored_names();
    CHECK((std::find(names.begin(), names.end(), "m.bias") != names.end()) == (bias.back() == '\0'));
    require_values(stored.find(), ints.values(), ints.format(Dtype::F16));
  }
}

TEST_CASE("WeightSource: AWQ, whose words hold eight outputs in an order of its own", "[io]") {
  for (const Sizes& size : {Sizes{8, 64, 32}, Sizes{24, 40, 16}, Sizes{16, 7, 7}}) {
    CAPTURE(size.outputs, size.inputs, size.group);
    Ints ints(size.outputs, size.inputs, size.group, 4);
    const moe::StatedStorage stated{.group = size.group, .bits = 4};
    require_values(StoredTensors(awq(ints)).find("m.weight", stated), ints.values(), ints.format(Dtype::F16));
    ints.make_symmetric();
    const StoredTensors stored(awq(ints));
    require_values(stored.find("m.weight", stated), ints.values(), ints.format(Dtype::F16));
    REQUIRE(stored.find("m.weight", stated).method() == moe::QuantMethod::Awq);
  }
}

TEST_CASE("WeightSource: every code of 4 bits with every zero point, through all layouts", "[io]") {
  Ints ints(16, 16, 16, 4);  // an output per zero point, an input per code
  for (std::size_t i = 0; i < ints.codes.size(); ++i) ints.codes[i] = static_cast<int>(i % 16);
  for (std::size_t o = 0; o < ints.zeros.size(); ++o) ints.zeros[o] = static_cast<int>(o);
  ints.scales = std::vector<float>(16, 1);
  std::vector<float> values;
  for (int zero = 0; zero < 16; ++zero)
    for (int code = 0; code < 16; ++code) values.push_back(static_cast<float>(code - zero));
  require_values(StoredTensors(packed(ints, Dtype::F16, true)).find(), values, ints.format(Dtype::F16));
  require_values(StoredTensors(gptq(ints, Dtype::F16, true)).find(), values, ints.format(Dtype::F16));
  require_values(StoredTensors(awq(ints)).find(), values, ints.format(Dtype::F16));
}

TEST_CASE("WeightSource: where nothing is stated, groups of integers are even", "[io]") {
  const Ints even(8, 64, 32, 4), uneven(8, 40, 16, 4);
  require_values(StoredTensors(gptq(even, Dtype::F16, true)).find(), even.values(), even.format(Dtype::F16));
  CHECK_THAT(complaint(gptq(uneven, Dtype::F16, true)),
             ContainsSubstring("'m.scales' has shape [3, 8], expected a number of groups that divides 40 inputs"));
  CHECK_THAT(complaint(gptq(even, Dtype::F16, true), {.group = 16}),
             ContainsSubstring("'m.scales' has shape [2, 8], expected 4 groups of 16 for 64 inputs"));
  CHECK_THAT(complaint(packed(even, Dtype::F16, true), {.group = 0}), ContainsSubstring("expected 1 groups of 64"));
  CHECK_THAT(complaint(gptq(even, Dtype::F16, true), {.bits = 8}),
             ContainsSubstring("'m.qweight' holds integers of 4 bits, but the configuration says 8"));
  const StoredTensors stored(gptq(Ints(8, 24, 12, 4), Dtype::F16, true));
  CHECK_FALSE(stored.find().kept_format());  // groups of 12 are in no format
  CHECK_THROWS_AS(stored.find("m.weight", {.group = -1}), std::invalid_argument);
  CHECK_THROWS_AS(stored.find("m.weight", {.block_inputs = 0}), std::invalid_argument);
}

TEST_CASE("WeightSource: integers whose tensors do not fit each other are errors that name one", "[io][error]") {
  const Ints ints(16, 64, 32, 4);
  const auto ct = packed(ints, Dtype::F16, true), g = gptq(ints, Dtype::F16, true), a = awq(ints);
  const auto i8 = bytes_of_ints(Ints(4, 16, 16, 8), true);
  const std::string four(4, '\0'), bytes(1024, '\0');
  const auto refuses = [&](const std::vector<Tensor>& tensors, const std::string& message) {
    CHECK_THAT(complaint(tensors), ContainsSubstring(message));
  };
  refuses(without(ct, "m.weight_scale"), "'m.weight_scale' is missing");
  refuses(without(ct, "m.weight_shape"), "'m.weight_shape' is missing");
  refuses(with(ct, shape_tensor(16, 65)), "'m.weight_packed' has shape [16, 8], expected [16, 9] for 4 bits or");
  refuses(with(ct, shape_tensor(-1, 64)), "'m.weight_shape' holds [-1, 64], expected extents");
  refuses(with(ct, {"m.weight_shape", Dtype::I64, {1}, bytes.substr(0, 8)}), "'m.weight_shape' has shape [1]");
  refuses(with(ct, {"m.weight_shape", Dtype::F32, {2}, bytes.substr(0, 8)}), "'m.weight_shape' is F32");
  refuses(with(ct, {"m.weight_scale", Dtype::I16, {16, 2}, bytes.substr(0, 64)}), "'m.weight_scale' is I16");
  refuses(with(ct, {"m.weight_scale", Dtype::F16, {8, 4}, bytes.substr(0, 64)}), "expected [16, groups]");
  refuses(with(ct, {"m.weight_zero_point", Dtype::I32, {2, 1}, bytes.substr(0, 8)}), "expected [2, 2]");
  refuses(with(ct, {"m.weight_zero_point", Dtype::I8, {2, 2}, four}), "'m.weight_zero_point' is I8");
  refuses(with(ct, index_tensor("m.weight_g_idx", 64, 16)), "puts input 16 into group 1, expected 0");
  refuses(with(ct, index_tensor("m.weight_g_idx", 63, 32)), "'m.weight_g_idx' has shape [63], expected [64]");
  refuses(with(ct, {"m.weight", Dtype::F32, {1}, four}), "both 'm.weight' and 'm.weight_packed' are there");
  refuses(with(ct, {"m.weight_scale_2", Dtype::F32, {}, four}), "'m.weight_scale_2' is no part of the format of");
  refuses(without(i8, "m.weight_scale"), "'m.weight' is I8, expected a floating-point type");
  refuses(with(i8, {"m.weight_scale", Dtype::F32, {2, 2}, bytes.substr(0, 16)}), "expected [4, groups]");
  refuses(with(i8, {"m.weight_zero_point", Dtype::I8, {4, 2}, bytes.substr(0, 8)}), "expected [4, 1]");
  refuses(without(g, "m.qzeros"), "'m.qzeros' is missing");
  refuses(without(g, "m.scales"), "'m.scales' is missing");
  refuses(with(g, {"m.qzeros", Dtype::I32, {2, 3}, bytes.substr(0, 24)}),
          "'m.qzeros' has shape [2, 3], expected [2, 16");
  refuses(with(g, {"m.qzeros", Dtype::F32, {2, 2}, bytes.substr(0, 16)}), "'m.qzeros' is F32, expected I32");
  refuses(with(g, {"m.qweight", Dtype::I32, {8, 15}, bytes.substr(0, 480)}), "'m.qweight' has shape [8, 15], expected");
  refuses(with(g, {"m.scales", Dtype::F16, {16}, bytes.substr(0, 32)}), "expected [groups, outputs]");
  refuses(with(g, index_tensor("m.g_idx", 64, 1)),
          "'m.g_idx' puts input 1 into group 1, expected 0: groups in the order");
  refuses(with(g, {"m.weight", Dtype::F32, {1}, four}), "both 'm.weight' and 'm.qweight' are there");
  refuses(with(a, {"m.qzeros", Dtype::I32, {1, 2}, bytes.substr(0, 8)}),
          "'m.qzeros' has shape [1, 2], expected [2, 2]");
  refuses(with(a, index_tensor("m.g_idx", 64, 32)), "'m.g_idx' is no part of the format");
  refuses(without(a, "m.qzeros"), "'m.qzeros' is missing");
}
