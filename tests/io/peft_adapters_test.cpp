// SPDX-License-Identifier: MIT
// Adapters in files: alone under names of our own, and as PEFT writes them, read back by a plain reader and by loops
// written from PEFT's own formula.
#include <cstring>

#include "io/plain_reader.hpp"
#include "layer/fixtures.hpp"
#include "moe/io/adapter/load_peft_adapters.hpp"
#include "moe/io/adapter/save_peft_adapters.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/low_rank.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::Adapters;
using moe::FusedColumns;
using moe::GateUpOrder;
using moe::Index;
using moe::Matrix;
using moe::PeftExperts;
using moe::PeftLayout;
using moe::PeftOptions;

namespace {

constexpr Index kExperts = 3, kDim = 11, kHidden = 9;
const std::string kStart = "base_model.model.model.layers.4.mlp.experts";

template <class E = moe::Glu>
auto pool_of(const moe::LowRankOptions& options = {.rank = 2, .alpha = 6}) {
  return test::random_adapters(moe::ExpertPool<E>::random(kExperts, kDim, kHidden, 1), options, 3);
}

bool same(const Adapters& a, const Adapters& b) {
  if (a.stages != b.stages || a.experts.size() != b.experts.size()) return false;
  for (std::size_t e = 0; e < a.experts.size(); ++e)
    for (std::size_t i = 0; i < a.stages.size(); ++i) {
      const auto &x = a.experts[e][i], &y = b.experts[e][i];
      if (!x.is_shaped_as(y) || x.scale != y.scale || !test::same_bits(x.a.matrix(), y.a.matrix()) ||
          !test::same_bits(x.b.matrix(), y.b.matrix()))
        return false;
    }
  return true;
}

/// scale * B A.
Matrix<double> delta_of(const moe::LowRankUpdate<moe::F32>& update) {
  Matrix<double> delta = Matrix<double>::Zero(update.b.outputs(), update.a.outputs());
  for (Index o = 0; o < delta.rows(); ++o)
    for (Index i = 0; i < delta.cols(); ++i)
      for (Index j = 0; j < update.rank(); ++j) delta(o, i) += double(update.b(o, j)) * double(update.a(i, j));
  return update.scale * delta;
}

Matrix<float> matrix_of(const test::PlainTensor& tensor) {
  REQUIRE(tensor.dtype == "F32");
  Matrix<float> values(static_cast<Index>(tensor.shape.at(0)), static_cast<Index>(tensor.shape.at(1)));
  REQUIRE(tensor.bytes.size() == sizeof(float) * static_cast<std::size_t>(values.size()));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

/// A file of tensors [rows, columns], all 1, 2, 3, ... from `first` on.
void write_tensors(const std::filesystem::path& directory, const std::string& config,
                   const std::vector<std::tuple<std::string, int, int>>& tensors) {
  std::string header, data;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const auto& [name, rows, columns] = tensors[t];
    const std::size_t begin = data.size();
    for (int i = 0; i < rows * columns; ++i) {
      const auto value = static_cast<float>(i + 1 + static_cast<int>(t));
      data.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    header += (t ? R"(,")" : R"(")") + name + R"(":{"dtype":"F32","shape":[)" + std::to_string(rows) + "," +
              std::to_string(columns) + R"(],"data_offsets":[)" + std::to_string(begin) + "," +
              std::to_string(data.size()) + "]}";
  }
  header = "{" + header + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::filesystem::create_directories(directory);
  test::write_bytes(directory / "adapter_model.safetensors", test::safetensors_bytes(header, data));
  test::write_bytes(directory / "adapter_config.json", config);
}

const std::string kConfig = R"({"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["down_proj"]})";

}  // namespace

TEST_CASE("save_parameters: adapters alone, and whole layers with them, come back bit for bit", "[io]") {
  const test::TemporaryDirectory directory;
  const auto pool = pool_of();
  auto other = moe::with_adapters(moe::without_adapters(pool), {.rank = 2, .alpha = 1}, 9);
  moe::save_parameters(directory / "adapters", moe::adapters_of(pool));
  auto adapters = moe::adapters_of(other);
  moe::load_parameters(directory / "adapters", adapters);
  CHECK(same(adapters, moe::adapters_of(pool)));
  const auto plain = test::read_plainly(test::read_bytes(directory / "adapters"));
  CHECK(plain.tensors.size() == kExperts * 2 * 3);
  CHECK(plain.tensors.at("experts.2.down.lora_b").shape == std::vector<std::size_t>{kDim, 2});

  moe::save_parameters(directory / "pool", pool);
  auto loaded = moe::with_adapters(moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, 7), {.rank = 2}, 8);
  const auto shares = loaded;
  moe::load_parameters(directory / "pool", loaded);
  CHECK(test::same_parameters(loaded, pool));
  CHECK_FALSE(test::same_parameters(shares, pool));  // whoever shared the base keeps his own
}

TEST_CASE("SharedLowRank: adapters come back bit for bit, once in files of ours, and as copies in those of PEFT",
          "[io]") {
  const test::TemporaryDirectory directory;
  const auto base = moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, 1);
  for (const moe::SharedFactor shared : {moe::SharedFactor::A, moe::SharedFactor::B}) {
    auto set = moe::with_shared_adapters(base, shared, {.rank = 2, .alpha = 6}, 3);
    test::fill(set, [random = moe::RandomField(moe::Purpose::User, 5)](Index k) { return 0.3 * random.normal(k); });
    auto other = moe::with_shared_adapters(base, shared, {.rank = 2, .alpha = 1}, 9), third = other;
    moe::save_parameters(directory / "shared", set.adapters());
    moe::load_parameters(directory / "shared", other.adapters());
    CHECK(same(moe::adapters_of(other), moe::adapters_of(set)));
    const auto plain = test::read_plainly(test::read_bytes(directory / "shared"));
    CHECK(plain.tensors.size() == 2 * (1 + 1 + kExperts));
    CHECK(plain.tensors.contains(shared == moe::SharedFactor::A ? "2.down.lora_b" : "2.down.lora_a"));
    for (const PeftLayout layout : {PeftLayout::PerExpert, PeftLayout::Fused}) {
      moe::save_peft_adapters(directory / "peft", {{4, moe::adapters_of(set)}}, {.layout = layout});
      moe::set_adapters(third, moe::load_peft_adapters(directory / "peft").at(4));
      CHECK(test::same_parameters(third, set));
    }
  }
}

TEST_CASE("save_peft_adapters: a pair of tensors per expert and matrix, under the names of PEFT", "[io]") {
  const test::TemporaryDirectory directory;
  const auto pool = pool_of();
  moe::save_peft_adapters(directory / "peft", {{4, moe::adapters_of(pool)}}, {.base_model = "some/model"});
  const auto file = test::read_plainly(test::read_bytes(directory / "peft" / "adapter_model.safetensors"));
  CHECK(file.tensors.size() == kExperts * 3 * 2);
  for (Index e = 0; e < kExperts; ++e) {
    const auto tensor = [&](const std::string& name) {
      return matrix_of(file.tensors.at(kStart + "." + std::to_string(e) + "." + name + ".weight"));
    };
    const auto &gate_up = pool[e].update("gate_up"), &down = pool[e].update("down");
    for (Index j = 0; j < 2; ++j) {
      for (Index i = 0; i < kDim; ++i) {
        CHECK(tensor("gate_proj.lora_A")(j, i) == gate_up.a(i, j));
        CHECK(tensor("up_proj.lora_A")(j, i) == gate_up.a(i, j));
        CHECK(tensor("down_proj.lora_B")(i, j) == down.b(i, j));
      }
      for (Index h = 0; h < kHidden; ++h) {
        CHECK(tensor("gate_proj.lora_B")(h, j) == gate_up.b(h, j));
        CHECK(tensor("up_proj.lora_B")(h, j) == gate_up.b(kHidden + h, j));
        CHECK(tensor("down_proj.lora_A")(j, h) == down.a(h, j));
      }
    }
  }
  const auto config = nlohmann::json::parse(test::read_bytes(directory / "peft" / "adapter_config.json"));
  CHECK(config["peft_type"] == "LORA");
  CHECK(config["r"] == 2);
  CHECK(config["lora_alpha"] == 6);
  CHECK(config["target_modules"] == nlohmann::json({"down_proj", "gate_proj", "up_proj"}));
  CHECK(config["base_model_name_or_path"] == "some/model");
}

TEST_CASE("save_peft_adapters: fused parameters are what PEFT's own formula takes apart", "[io]") {
  const test::TemporaryDirectory directory;
  const auto pool = pool_of();
  for (const auto& [columns, order] : {std::pair{FusedColumns::Outputs, GateUpOrder::GatesFirst},
                                       {FusedColumns::Outputs, GateUpOrder::InTurns},
                                       {FusedColumns::Inputs, GateUpOrder::GatesFirst},
                                       {FusedColumns::Inputs, GateUpOrder::InTurns}}) {
    moe::save_peft_adapters(directory / "peft", {{4, moe::adapters_of(pool)}},
                            {.gate_up_order = order, .fused_columns = columns, .layout = PeftLayout::Fused});
    const auto file = test::read_plainly(test::read_bytes(directory / "peft" / "adapter_model.safetensors"));
    CHECK(file.tensors.size() == 4);
    for (const auto& [module, stage] : {std::pair{".base_layer", "gate_up"}, {"", "down"}}) {
      const auto a = matrix_of(file.tensors.at(kStart + module + ".lora_A.weight"));
      const auto b = matrix_of(file.tensors.at(kStart + module + ".lora_B.weight"));
      for (Index e = 0; e < kExperts; ++e) {
        Matrix<double> expected = delta_of(pool[e].update(stage));
        if (order == GateUpOrder::InTurns && expected.rows() == 2 * kHidden) {
          const Matrix<double> whole = expected;
          for (Index o = 0; o < 2 * kHidden; ++o) expected.row(o) = whole.row(o % 2 * kHidden + o / 2);
        }
        // "o r e, e r i -> e i o" of B reshaped to [columns, r, experts] and A to [experts, r, rows]
        for (Index row = 0; row < a.cols(); ++row)
          for (Index column = 0; column < b.rows(); ++column) {
            double sum = 0;
            for (Index j = 0; j < 2; ++j) sum += double(b(column, j * kExperts + e)) * double(a(e * 2 + j, row));
            const bool outputs_first = columns == FusedColumns::Outputs;
            // Two products of order 1, times 3, in another order: 1e-14 is twenty roundings.
            CHECK(std::abs(3 * sum - (outputs_first ? expected(row, column) : expected(column, row))) < 1e-14);
          }
      }
    }
    const auto config = nlohmann::json::parse(test::read_bytes(directory / "peft" / "adapter_config.json"));
    CHECK(config["target_modules"].empty());
    CHECK(config["target_parameters"] == nlohmann::json({"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}));
  }
}

TEST_CASE("load_peft_adapters: what was saved, in either layout, for Glu and Mlp, whatever is adapted", "[io]") {
  const test::TemporaryDirectory directory;
  for (const PeftLayout layout : {PeftLayout::PerExpert, PeftLayout::Fused})
    for (const FusedColumns columns : {FusedColumns::Outputs, FusedColumns::Inputs}) {
      const auto round_trip = [&](const Adapters& adapters, PeftExperts kind) {
        const GateUpOrder order = columns == FusedColumns::Inputs ? GateUpOrder::InTurns : GateUpOrder::GatesFirst;
        PeftOptions options{.gate_up_order = order, .fused_columns = columns, .layout = layout, .kind = kind};
        moe::save_peft_adapters(directory / "peft", {{4, adapters}, {11, adapters}}, options);
        if (columns == FusedColumns::Inputs) options.fused_columns.reset();  // as peft_version says
        const auto loaded = moe::load_peft_adapters(directory / "peft", options);
        CHECK(loaded.size() == 2);
        CHECK(same(loaded.at(4), adapters));
        CHECK(same(loaded.at(11), adapters));
      };
      CAPTURE(static_cast<int>(layout), static_cast<int>(columns));
      round_trip(moe::adapters_of(pool_of()), PeftExperts::Gated);
      round_trip(moe::adapters_of(pool_of({.rank = 1, .alpha = 5, .targets = {"down"}})), PeftExperts::Gated);
      round_trip(moe::adapters_of(pool_of({.rank = 3, .alpha = 5, .targets = {"gate_up"}})), PeftExperts::Gated);
      round_trip(moe::adapters_of(pool_of<moe::Mlp>()), PeftExperts::Plain);
      auto mixed = pool_of();  // ranks and scales of their own
      const auto wide = pool_of({.rank = 4, .alpha = 2});
      for (Index e = 0; e < kExperts; ++e) mixed[e].update("down") = wide[e].update("down");
      round_trip(moe::adapters_of(mixed), PeftExperts::Gated);
    }
}

TEST_CASE("save_peft_adapters: what others adapt is written as zeros, so that it can be read", "[io]") {
  const test::TemporaryDirectory directory;
  const Adapters whole = moe::adapters_of(pool_of());
  const moe::LowRankUpdate<moe::F32> none;
  for (const PeftLayout layout : {PeftLayout::PerExpert, PeftLayout::Fused})
    for (const FusedColumns columns : {FusedColumns::Outputs, FusedColumns::Inputs}) {
      CAPTURE(static_cast<int>(layout), static_cast<int>(columns));
      const bool is_fused = layout == PeftLayout::Fused;
      const PeftOptions options{.fused_columns = columns, .layout = layout};
      for (std::size_t gap = 0; gap < kExperts; ++gap) {  // an expert without updates, another without one
        Adapters gaps = whole;
        gaps.experts[gap] = {none, none};
        gaps.experts[(gap + 1) % kExperts][gap % 2] = none;
        moe::save_peft_adapters(directory / "peft", {{4, gaps}}, options);
        const Adapters loaded = moe::load_peft_adapters(directory / "peft", options).at(4);
        REQUIRE(loaded.experts.size() == kExperts);
        for (std::size_t e = 0; e < kExperts; ++e)
          for (std::size_t i = 0; i < 2; ++i) {
            const auto &expected = gaps.experts[e][i], &found = loaded.experts[e][i];
            REQUIRE(found.is_shaped_as(whole.experts[e][i]));
            CHECK(delta_of(found) ==
                  (expected.empty() ? Matrix<double>(0 * delta_of(whole.experts[e][i])) : delta_of(expected)));
          }
      }
      // Another layer, with other hidden units, adapts one stage alone.
      for (const std::size_t absent : {0u, 1u}) {
        auto narrow = moe::adapters_of(test::random_adapters(
            moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden - 2, 1), {.rank = 2, .alpha = 6}, 3));
        const Adapters shape = narrow;
        for (auto& updates : narrow.experts) updates[absent] = none;
        moe::save_peft_adapters(directory / "peft", {{4, whole}, {5, narrow}}, options);
        const auto loaded = moe::load_peft_adapters(directory / "peft", options);
        CHECK(same(loaded.at(4), whole));
        for (std::size_t e = 0; e < kExperts; ++e) {
          CHECK(delta_of(loaded.at(5).experts[e][1 - absent]) == delta_of(narrow.experts[e][1 - absent]));
          const auto& filled = loaded.at(5).experts[e][absent];
          CHECK(filled.empty() != is_fused);
          if (is_fused) CHECK((filled.is_shaped_as(shape.experts[e][absent]) && delta_of(filled).isZero(0)));
        }
      }
    }
}

TEST_CASE("load_peft_adapters: gates and ups with A's of their own become one update of both ranks", "[io]") {
  const test::TemporaryDirectory directory;
  const std::string expert = kStart + ".0.";
  write_tensors(directory / "peft", R"({"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":"all-linear"})",
                {{expert + "gate_proj.lora_A.weight", 2, 5},
                 {expert + "gate_proj.lora_B.weight", 3, 2},
                 {expert + "up_proj.lora_A.weight", 2, 5},
                 {expert + "up_proj.lora_B.weight", 3, 2}});
  const Adapters adapters = moe::load_peft_adapters(directory / "peft").at(4);
  const auto& update = adapters.experts.at(0)[0];
  CHECK(update.rank() == 4);
  CHECK(update.scale == 2);
  CHECK(adapters.experts[0][1].empty());
  const auto delta = delta_of(update);
  const auto file = test::read_plainly(test::read_bytes(directory / "peft" / "adapter_model.safetensors"));
  for (const auto& [name, first] : {std::pair{"gate_proj", Index{0}}, {"up_proj", Index{3}}}) {
    const auto a = matrix_of(file.tensors.at(expert + name + ".lora_A.weight"));
    const auto b = matrix_of(file.tensors.at(expert + name + ".lora_B.weight"));
    for (Index o = 0; o < 3; ++o)
      for (Index i = 0; i < 5; ++i)
        CHECK(delta(first + o, i) == 2.0 * (b(o, 0) * a(0, i) + b(o, 1) * a(1, i)));  // small integers: exact
  }
}

TEST_CASE("load_peft_adapters: ranks, scales and names are those that the configuration says", "[io]") {
  const test::TemporaryDirectory directory;
  const std::string expert = "base_model.model.model.layers.0.block_sparse_moe.experts.0.w2";
  write_tensors(directory / "peft",
                R"({"peft_type":"LORA","r":8,"lora_alpha":5,"use_rslora":true,"rank_pattern":{"w2":4},
                    "alpha_pattern":{"w2":6},"target_modules":["w2"]})",
                {{expert + ".lora_A.weight", 4, 5},
                 {expert + ".lora_B.weight", 3, 4},
                 {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", 8, 5}});
  PeftOptions options{.experts = "model.layers.{}.block_sparse_moe.experts", .gate = "w1", .up = "w3", .down = "w2"};
  CHECK_THROWS_WITH(moe::load_peft_adapters(directory / "peft", options), ContainsSubstring("is none of the experts"));
  options.others = moe::OtherModules::Ignore;
  const auto layers = moe::load_peft_adapters(directory / "peft", options);
  CHECK(layers.at(0).experts[0][1].scale == 3);  // 6 / sqrt(4)
  CHECK(layers.at(0).experts[0][1].rank() == 4);
}

TEST_CASE("load_peft_adapters: the first pattern that is of the end of a name counts, as in PEFT", "[io]") {
  const test::TemporaryDirectory directory;
  const std::string down = kStart + ".0.down_proj";
  const auto load = [&](const std::string& patterns) {
    write_tensors(directory / "peft", R"({"peft_type":"LORA","r":2,"lora_alpha":4,"alpha_pattern":{)" + patterns + "}}",
                  {{down + ".lora_A.weight", 2, 5}, {down + ".lora_B.weight", 3, 2}});
    return moe::load_peft_adapters(directory / "peft", {.others = moe::OtherModules::Ignore}).at(4).experts[0][1].scale;
  };
  const auto scale_of = [&](const std::string& pattern) { return load("\"" + pattern + "\":64"); };
  for (const char* pattern :
       {"down_proj", "0.down_proj", "experts.0.down_proj", "model.layers.4.mlp.experts.0.down_proj", "down.proj",
        "0......proj", ".*", "down_pro[j]", ".*experts.*", "layers\\\\.4\\\\..*", "(up|down)_proj", "down)_(proj",
        "^model.*", "experts\\\\.\\\\d+\\\\.down_proj"})
    CHECK(scale_of(pattern) == 32);
  for (const char* other : {"q_proj", "0.......proj", "self_attn.q_proj", "xdown_proj", "own_proj", "down_proj.x",
                            "mlp.down_projx", "0.gate_proj", "experts.0", "1.down_proj", "experts", ".*experts",
                            "own_pro[j]", "^down_proj", "layers\\\\.5\\\\..*"})
    CHECK(scale_of(other) == 2);
  CHECK(load(R"("z.*":8,"down_proj":16,"0.down_proj":64)") == 8);  // z.* is of no name, the next one is
  CHECK(load(R"("0.down_proj":64,"down_proj":16)") == 32);
  for (const char* unknown : {"down_pro{1}j", "(?!gate).*", "(", "\\\\s"})
    CHECK_THROWS_WITH(scale_of(unknown), ContainsSubstring("adapter_config.json: alpha_pattern has the key '"));
  std::string many = R"("[a]":1)";
  for (int i = 0; i < 3000; ++i) many += ",\"[a]" + std::to_string(i) + "\":1";
  CHECK_THROWS_WITH(load(many), ContainsSubstring("characters and more, expected at most 2048"));
}

TEST_CASE("load_peft_adapters: modules that a configuration does not target are refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  const std::string down = kStart + ".0.down_proj";
  const auto load = [&](const std::string& fields) {
    write_tensors(directory / "peft", R"({"peft_type":"LORA","r":2,"lora_alpha":4,)" + fields + "}",
                  {{down + ".lora_A.weight", 2, 5}, {down + ".lora_B.weight", 3, 2}});
    return moe::load_peft_adapters(directory / "peft").at(4).experts.size();
  };
  for (const char* fields :
       {R"("target_modules":["down_proj"])", R"("target_modules":["q_proj","experts.0.down_proj"])",
        R"("target_modules":"All-Linear")", R"("target_modules":".*(up|down)_proj")", R"("target_modules":null)",
        R"("target_modules":"(?!counted)x{2}","exclude_modules":["q_proj"])",  // not understood: tensors say
        R"("target_modules":["down_proj"],"exclude_modules":".*gate_proj")"})
    CHECK(load(fields) == 1);
  for (const char* fields :
       {R"("target_modules":["q_proj"])", R"("target_modules":["own_proj"])", R"("target_modules":["down.proj"])",
        R"("target_modules":"down_proj")", R"("target_modules":".*experts\\.1\\..*")", R"("target_modules":[])",
        R"("target_parameters":["experts.down_proj"])"})
    CHECK_THROWS_WITH(load(fields),
                      ContainsSubstring("target_modules is ") &&
                          ContainsSubstring("to name 'model.layers.4.mlp.experts.0.down_proj', of which there are"));
  CHECK_THROWS_WITH(load(R"("target_modules":["down_proj"],"exclude_modules":["0.down_proj"])"),
                    ContainsSubstring("exclude_modules is [\"0.down_proj\"], expected not to name"));
  CHECK_THROWS_WITH(load(R"("target_modules":7)"), ContainsSubstring("target_modules is 7, expected a list of"));
}

TEST_CASE("load_peft_adapters: modules of layers that a configuration leaves out are refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  const std::string down = kStart + ".1.down_proj";  // of layer 4
  const auto load = [&](const std::string& fields, const std::string& targets = R"(["down_proj"])",
                        const std::string& version = R"("0.20.0")") {
    write_tensors(directory / "peft",
                  R"({"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":)" + targets + R"(,"peft_version":)" +
                      version + "," + fields + "}",
                  {{kStart + ".0.down_proj.lora_A.weight", 2, 5},
                   {kStart + ".0.down_proj.lora_B.weight", 3, 2},
                   {down + ".lora_A.weight", 2, 5},
                   {down + ".lora_B.weight", 3, 2}});
    return moe::load_peft_adapters(directory / "peft").at(4).experts.size();
  };
  for (const char* fields :
       {R"("layers_to_transform":4)", R"("layers_to_transform":[2,4])", R"("layers_to_transform":null)",
        R"("layers_to_transform":[])", R"("layers_to_transform":[4],"layers_pattern":"layers")",
        R"("layers_to_transform":[4],"layers_pattern":["h","layers"])", R"("layers_pattern":[])",
        R"("layers_to_transform":[4],"layers_pattern":"")", R"("layers_to_transform":[4],"layers_pattern":null)",
        R"("layers_to_transform":[0,1],"layers_pattern":"experts")"})
    CHECK(load(fields) == 2);
  for (const char* fields :
       {R"("layers_to_transform":[0,1])", R"("layers_to_transform":3)",  // not the numbers of the experts
        R"("layers_to_transform":[4],"layers_pattern":"h")", R"("layers_to_transform":[4],"layers_pattern":"model")",
        R"("layers_to_transform":[4],"layers_pattern":"experts")",
        R"("layers_to_transform":[4],"layers_pattern":["experts","layers"])"})
    CHECK_THROWS_WITH(
        load(fields),
        ContainsSubstring("adapter_config.json: layers_to_transform is ") &&
            ContainsSubstring("expected the layer of 'model.layers.4.mlp.experts.0.down_proj', of which"));
  for (const char* fields : {R"("layers_to_transform":"4")", R"("layers_to_transform":[4.5])",
                             R"("layers_to_transform":-1)", R"("layers_to_transform":true)"})
    CHECK_THROWS_WITH(load(fields), ContainsSubstring("layers_to_transform is "));
  for (const char* fields : {R"("layers_to_transform":4,"layers_pattern":"lay.*")", R"("layers_pattern":"layers")",
                             R"("layers_to_transform":4,"layers_pattern":7)"})
    CHECK_THROWS_WITH(load(fields), ContainsSubstring("layers_pattern is "));
  CHECK_THROWS_WITH(load(R"("layers_to_transform":4)", R"(".*down_proj")"),
                    ContainsSubstring("layers_to_transform is 4, expected none beside an expression"));
  // Before 0.20 the last number counts, here that of the expert; both do for a file that does not say its version.
  const std::string names = R"(["down_proj"])";
  for (const char* version : {R"("0.19.1")", R"("0.18.0")", "null"}) {
    CHECK(load(R"("layers_to_transform":[0,1])", names, version) == 2);
    CHECK(load(R"("layers_to_transform":[4],"layers_pattern":"layers")", names, version) == 2);
    CHECK_THROWS_WITH(load(R"("layers_to_transform":[3])", names, version),
                      ContainsSubstring("before 0.20 the last number of a name is its layer"));
  }
  CHECK_THROWS_WITH(load(R"("layers_to_transform":[4])", names, R"("0.19.1")"),
                    ContainsSubstring("(peft_version is '0.19.1'; before 0.20"));
  CHECK(load(R"("layers_to_transform":[4])", names, "null") == 2);
  // Named whole, a module is adapted whatever its layer is.
  const std::string whole = R"(["model.layers.4.mlp.experts.0.down_proj","model.layers.4.mlp.experts.1.down_proj"])";
  CHECK(load(R"("layers_to_transform":[0])", whole) == 2);
  CHECK_THROWS_WITH(
      load(R"("layers_to_transform":[0])", R"(["model.layers.4.mlp.experts.0.down_proj","experts.1.down_proj"])"),
      ContainsSubstring("expected the layer of 'model.layers.4.mlp.experts.1.down_proj', of which"));
}

TEST_CASE("load_peft_adapters: parameters of all experts are those that target_parameters names", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto load = [&](const std::string& fields, const PeftOptions& options = {}) {
    write_tensors(directory / "peft", R"({"peft_type":"LORA","r":2,"lora_alpha":4,)" + fields + "}",
                  {{kStart + ".lora_A.weight", 6, 5}, {kStart + ".lora_B.weight", 4, 6}});
    return moe::load_peft_adapters(directory / "peft", options).at(4);
  };
  const std::string named = R"("target_parameters":["4.mlp.experts.down_proj","9.mlp.experts.gate_up_proj"],)";
  const Adapters inputs = load(named + R"("peft_version":"0.19.1")");
  CHECK(inputs.experts.size() == 3);
  CHECK(inputs.experts[0][0].empty());
  CHECK(inputs.experts[2][1].a.outputs() == 5);
  CHECK(load(named + R"("peft_version":"0.20.1.dev0")").experts[2][1].a.outputs() == 5);
  const Adapters outputs = load(named + R"("peft_version":"0.18.1")", {.fused_columns = FusedColumns::Outputs});
  CHECK(outputs.experts[2][1].a.outputs() == 4);
  for (const std::string version : {"0.18.0", "0.19.0", "0.19"})
    CHECK_THROWS_WITH(load(named + R"("peft_version":")" + version + "\""),
                      ContainsSubstring("peft_version is '" + version + "', expected 0.19.1"));
  CHECK_THROWS_WITH(load(named + R"("r":2)"), ContainsSubstring("occurs twice"));
  CHECK_THROWS_WITH(load(named + R"("bias":"none")"), ContainsSubstring("peft_version is missing, expected 0.19.1"));
  CHECK_THROWS_WITH(load(named + R"("peft_version":"x")"), ContainsSubstring("peft_version is \"x\", expected a"));
  for (const char* other : {"[]", R"(["5.mlp.experts.down_proj"])", R"(["mlp.experts.gate_up_proj","down_proj"])"})
    CHECK_THROWS_WITH(load(R"("peft_version":"0.19.1","target_parameters":)" + std::string(other)),
                      ContainsSubstring("adapter_config.json: target_parameters is ") &&
                          ContainsSubstring("expected to name one of 'gate_up_proj' and 'down_proj' of layer 4"));
  const std::string scaled =
      named + R"("peft_version":"0.19.1","rank_pattern":{".*down_proj":3},"alpha_pattern":{"experts.down_proj":12})";
  CHECK(load(scaled).experts.size() == 2);  // as PEFT has it of adapters whose gates and ups it has joined
  CHECK(load(scaled).experts[0][1].scale == 4);
}

TEST_CASE("load_peft_adapters: files that are broken or say more are refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  const std::string down = kStart + ".0.down_proj", all = kStart;
  const auto refuses = [&](const std::string& config, const std::vector<std::tuple<std::string, int, int>>& tensors,
                           const std::string& message) {
    write_tensors(directory / "peft", config, tensors);
    CHECK_THROWS_WITH(moe::load_peft_adapters(directory / "peft"), ContainsSubstring(message));
    CHECK_THROWS_AS(moe::load_peft_adapters(directory / "peft"), std::runtime_error);
  };
  const std::vector<std::tuple<std::string, int, int>> good = {{down + ".lora_A.weight", 2, 5},
                                                               {down + ".lora_B.weight", 3, 2}};
  const auto with = [](const std::string& field) {
    return R"({"peft_type":"LORA","r":2,"lora_alpha":4,)" + field + "}";
  };
  write_tensors(directory / "peft", kConfig, good);
  CHECK_NOTHROW(moe::load_peft_adapters(directory / "peft"));
  refuses(R"({"peft_type":"IA3"})", good, "peft_type is \"IA3\", expected 'LORA'");
  refuses(R"({"peft_type":"LORA","r":0,"lora_alpha":1})", good, "r is 0");
  refuses(R"({"peft_type":"LORA","r":2})", good, "lora_alpha is missing");
  refuses(R"({"peft_type":"LORA","r":2,"lora_alpha":1e39})", good, "experts.0.down_proj' is 1e+39");
  refuses(with(R"("use_dora":true)"), good, "use_dora is true, expected false");
  refuses(with(R"("bias":"all")"), good, "bias is \"all\"");
  refuses(with(R"("modules_to_save":["lm_head"])"), good, "modules_to_save");
  refuses(with(R"("rank_pattern":{".*down_proj":0})"), good, ".*down_proj is 0, expected an integer of at least 1");
  for (const char* field :
       {R"("alora_invocation_tokens":[1])", R"("kasa_config":{"beta":1})", R"("layer_replication":[[0,4],[2,5]])",
        R"("use_bdlora":{"nblocks":2})", R"("init_lora_weights":"pissa_niter_16")", R"("init_lora_weights":"loftq")"})
    refuses(with(field), good, std::string("expected ") + (field[1] == 'i' ? "a start that leaves" : "none"));
  refuses("{", good, "not JSON");
  refuses(kConfig, {good[0]}, "has no counterpart");
  refuses(kConfig, {{down + ".lora_A.weight", 3, 5}, good[1]}, "has shape [3, 5], expected [2, any]");
  refuses(kConfig, {{down + ".lora_A.weight", 2, 0}, good[1]}, "has shape [2, 0], expected [2, any]");
  refuses(kConfig, {good[0], {down + ".lora_B.weight", 3, 1}}, "has shape [3, 1], expected [any, 2]");
  refuses(kConfig, {{"x", 1, 1}}, "'x' is none of the experts");
  refuses(kConfig, {{kStart + ".7.down_proj.lora_A.weight", 2, 5}, {kStart + ".7.down_proj.lora_B.weight", 3, 2}},
          "adapters of expert 7 and none of 0");
  refuses(kConfig, {{kStart + ".1234567.down_proj.lora_A.weight", 2, 5}}, "is none of the experts");
  refuses(kConfig, {good[0], good[1], {all + ".lora_A.weight", 2, 5}, {all + ".lora_B.weight", 3, 2}},
          "adapters of single experts and of all");
  refuses(kConfig, {{all + ".lora_A.weight", 4, 5}, {all + ".lora_B.weight", 3, 4}},
          "expected to name one of 'gate_up_proj' and 'down_proj'");
  const std::string fused = with(R"("peft_version":"0.19.1","target_parameters":["mlp.experts.down_proj"])");
  refuses(fused, {{all + ".lora_A.weight", 3, 5}, {all + ".lora_B.weight", 3, 3}}, "expected experts times r = 2");
  refuses(fused, {{all + ".lora_A.weight", 4, 5}, {all + ".lora_B.weight", 3, 2}}, "expected [any, 4]");
  refuses(with(R"("peft_version":"0.19.1","target_parameters":["mlp.experts.gate_up_proj"])"),
          {{all + ".lora_A.weight", 4, 5}, {all + ".lora_B.weight", 3, 4}}, "expected gates and as many ups");

  write_tensors(directory / "peft", kConfig, good);
  const std::string bytes = test::read_bytes(directory / "peft" / "adapter_model.safetensors");
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    test::write_bytes(directory / "peft" / "adapter_model.safetensors", bytes.substr(0, length));
    CHECK_THROWS_AS(moe::load_peft_adapters(directory / "peft"), std::runtime_error);
  }
}

TEST_CASE("load_peft_adapters: whatever byte is changed, files are read or refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto pool = pool_of();
  for (const PeftLayout layout : {PeftLayout::PerExpert, PeftLayout::Fused}) {
    moe::save_peft_adapters(directory / "peft", {{4, moe::adapters_of(pool)}}, {.layout = layout});
    for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
      const std::string good = test::read_bytes(directory / "peft" / name);
      std::size_t refused = 0;
      for (std::size_t i = 0; i < std::min<std::size_t>(good.size(), 1500); i += 7) {
        std::string bad = good;
        bad[i] = "0921\"]}-\0\xFF"[i % 10];
        test::write_bytes(directory / "peft" / name, bad);
        try {
          moe::load_peft_adapters(directory / "peft");
        } catch (const std::runtime_error&) {
          ++refused;
        }
      }
      CHECK(refused > 5);
      test::write_bytes(directory / "peft" / name, good);
    }
  }
}

TEST_CASE("save_peft_adapters: what PEFT has no names or numbers for is refused", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto saves = [&](const Adapters& adapters, const PeftOptions& options = {}) {
    moe::save_peft_adapters(directory / "peft", {{0, adapters}}, options);
  };
  const auto linear = moe::with_adapters(moe::ExpertPool<moe::Linear>::random(2, 5, 5, 1), {}, 1);
  CHECK_THROWS_WITH(saves(moe::adapters_of(linear)), ContainsSubstring("has stages 'weight', expected"));
  auto adapters = moe::adapters_of(pool_of());
  CHECK_THROWS_WITH(
      moe::save_peft_adapters(directory / "peft", {{0, adapters}, {1, moe::adapters_of(pool_of<moe::Mlp>())}}),
      ContainsSubstring("layer 1 has a stage 'up', expected 'gate_up'"));
  CHECK_THROWS_WITH(saves(adapters, {.experts = "experts"}), ContainsSubstring("expected a name with {}"));
  adapters.experts[1][1].scale = 2;
  CHECK_THROWS_WITH(saves(adapters), ContainsSubstring("PEFT has one of each per name"));
  for (auto& updates : adapters.experts) updates = std::vector<moe::LowRankUpdate<moe::F32>>(2);
  CHECK_THROWS_WITH(saves(adapters), ContainsSubstring("have no update"));
  CHECK_FALSE(std::filesystem::exists(directory / "peft"));
}
