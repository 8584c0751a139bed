// SPDX-License-Identifier: MIT
// What is kept and not learned, in files.
#include <set>
#include <string>

#include "io/patterns.hpp"
#include "layer/fixtures.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/one_of.hpp"
#include "moe/expert/scaled_identity.hpp"
#include "moe/gate/softmax.hpp"
#include "moe/gate/wrap/with_capacity.hpp"
#include "moe/gate/wrap/with_chance.hpp"
#include "moe/io/file/parameters.hpp"
#include "moe/layer/branches.hpp"
#include "moe/layer/layer_expert.hpp"
#include "moe/train/adam_w.hpp"
#include "moe/train/sgd.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"
#include "support/parameters.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using moe::TopKGate;
using test::TemporaryDirectory;
using Bias = Eigen::RowVectorXd;
using Mlp = moe::BasicMlp<moe::F32>;
using Identity = moe::BasicScaledIdentity<moe::F32>;

/// A gate of one's own that serves inference alone, and keeps who may be chosen: nothing to learn, so no visit.
struct TableGate {
  Bias allowed = Bias::Ones(3);
  static constexpr bool kPerToken = true;

  void route(const moe::Logits<float>& logits, const moe::Context& context, moe::Routing<float>& routing) const {
    moe::SoftmaxGate{}.route(moe::Logits<float>(logits + allowed.cast<float>().replicate(logits.rows(), 1)), context,
                             routing);
  }
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    f("allowed", self.allowed...);
  }
};

TopKGate biased_gate(double value) {
  return {.k = 1, .selection_bias = Bias::Constant(3, value), .weight_bias = Bias::Constant(3, -value)};
}
template <class Gate>
auto layer_with(Gate gate) {
  return test::layer_of<Mlp, Gate, moe::F32>(3, std::move(gate));
}

/// Layers in branches of layers, with state in each.
auto tower(double value) {
  using Inner = moe::LayerExpert<decltype(layer_with(biased_gate(0)))>;
  using Either = moe::OneOf<Identity, Inner>;
  using Limited = moe::WithCapacity<moe::WithChance<TopKGate>>;
  const Inner inner(layer_with(biased_gate(value)));
  const Identity identity{test::kModelDim};
  moe::MoeLayer outer(moe::LinearRouter(3, test::kModelDim), Limited{.gate = {.gate = biased_gate(value + 1)}},
                      moe::ExpertPool<Either>({inner, identity, inner}));
  return moe::WithBranches(std::move(outer), moe::GatedExpert<Inner, moe::F32>(inner, {1, test::kModelDim}));
}

std::set<std::string> kept_names_in(const std::filesystem::path& path) {
  std::set<std::string> names;
  const moe::SafetensorsReader reader(path);
  for (const auto& [name, info] : reader.tensors())
    if (name.ends_with("selection_bias")) names.insert(name);
  return names;
}

/// A gate, and the first moment of an optimiser, as versions before 0.2.0 saw them: all parameters.
struct OldGate {
  Bias selection_bias, weight_bias;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("selection_bias", self.selection_bias...);
    f("weight_bias", self.weight_bias...);
  }
};
struct OldVelocity {
  OldGate velocity;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    moe::visit_part(f, "velocity", self.velocity...);
  }
};

}  // namespace

TEST_CASE("State: a composite of composites saves and loads that of all its parts", "[io]") {
  const TemporaryDirectory directory;
  const auto saved = tower(0.25);
  auto loaded = tower(-3);
  moe::save_parameters(directory / "x", saved);
  CHECK(kept_names_in(directory / "x") == std::set<std::string>{"gate.selection_bias", "experts.0.gate.selection_bias",
                                                                "experts.2.gate.selection_bias",
                                                                "branches.0.expert.gate.selection_bias"});
  moe::load_parameters(directory / "x", loaded);
  CHECK(test::same_parameters(loaded, saved));
  CHECK(loaded.layer().gate().gate.gate.selection_bias == Bias::Constant(3, 1.25));
}

TEST_CASE("State: that of a part which learns nothing is saved and loaded with its layer", "[io]") {
  const TemporaryDirectory directory;
  const auto saved = layer_with(TableGate{Bias{{0, -50, 1}}});
  auto loaded = layer_with(TableGate{});
  moe::save_parameters(directory / "x", saved);
  CHECK_FALSE(test::same_parameters(loaded, saved));
  moe::load_parameters(directory / "x", loaded);
  CHECK(test::same_parameters(loaded, saved));
  TableGate alone;
  moe::save_parameters(directory / "gate", saved.gate());
  moe::load_parameters(directory / "gate", alone);
  CHECK(alone.allowed == saved.gate().allowed);
}

TEST_CASE("State: its shape is checked as that of a parameter, and nothing changes", "[io][error]") {
  const TemporaryDirectory directory;
  moe::save_parameters(directory / "x", biased_gate(1));
  TopKGate other{.selection_bias = Bias::Zero(4), .weight_bias = Bias::Zero(3)};
  CHECK_THROWS_WITH(moe::load_parameters(directory / "x", other),
                    ContainsSubstring("tensor 'selection_bias' has shape [3], expected [4]"));
  CHECK(other.weight_bias == Bias::Zero(3));
  TopKGate none{.weight_bias = Bias::Zero(3)};
  CHECK_THROWS_WITH(moe::load_parameters(directory / "x", none),
                    ContainsSubstring("'selection_bias' is not a parameter"));
  moe::save_parameters(directory / "y", none);
  TopKGate both = biased_gate(2);
  CHECK_THROWS_WITH(moe::load_parameters(directory / "y", both),
                    ContainsSubstring("tensor 'selection_bias' is missing"));
}

TEST_CASE("State: files are as they were when a selection bias was a parameter", "[io]") {
  const TemporaryDirectory directory;
  moe::save_parameters(directory / "old", OldGate{Bias{{1, 2, 3}}, Bias{{4, 5, 6}}});
  TopKGate gate = biased_gate(0);
  moe::load_parameters(directory / "old", gate);
  CHECK(gate.selection_bias == Bias{{1, 2, 3}});
  CHECK(gate.weight_bias == Bias{{4, 5, 6}});
  moe::save_parameters(directory / "new", gate);
  CHECK(test::read_bytes(directory / "new") == test::read_bytes(directory / "old"));
}

TEST_CASE("State: that of moments is not written, and an old file of them is read", "[io]") {
  const TemporaryDirectory directory;
  moe::Sgd::State<TopKGate> state(biased_gate(0));
  moe::save_parameters(directory / "old", OldVelocity{{Bias::Zero(3), Bias{{4, 5, 6}}}});
  moe::load_parameters(directory / "old", state);
  CHECK(state.velocity.weight_bias == Bias{{4, 5, 6}});
  moe::save_parameters(directory / "new", state);
  CHECK(moe::SafetensorsReader(directory / "new").tensors().size() == 1);
  moe::AdamW::State<TopKGate> adam(biased_gate(0));
  moe::save_parameters(directory / "adam", adam);
  CHECK(kept_names_in(directory / "adam").empty());
}

TEST_CASE("State: optimisers continue from a file that was written before a controller set a bias", "[io]") {
  const TemporaryDirectory directory;
  moe::Sgd::State<TopKGate> before(TopKGate{.weight_bias = Bias::Ones(3)});
  before.velocity.weight_bias = Bias{{4, 5, 6}};
  moe::save_parameters(directory / "x", before);
  moe::Sgd::State<TopKGate> after(biased_gate(1));
  moe::load_parameters(directory / "x", after);
  CHECK(after.velocity.weight_bias == Bias{{4, 5, 6}});
}
