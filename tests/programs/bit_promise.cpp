// SPDX-License-Identifier: MIT
// The promise of equal bits, in one binary: outputs and input gradients do not depend on the number of threads or, with
// gates that decide each token by itself, on what else is in the batch; parameter gradients do not depend on the number
// of threads. Exits with 1 after messages about what differs.
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>

#include "moe/compress/quantise.hpp"
#include "moe/compress/sparsify.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/layer/compressed_experts.hpp"
#include "moe/layer/merged_experts.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/layer/multi_gate_layer.hpp"
#include "moe/layer/soft_moe.hpp"
#include "moe/router/linear.hpp"
#include "programs/any_gate.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Index;
using moe::Matrix;

// No multiples of a register. With 300 tokens every expert has dozens of rows, with one token it has one or none.
constexpr Index kTokens = 300, kExperts = 6, kModelDim = 45, kHiddenDim = 37;

int num_different = 0;

using Bytes = std::vector<unsigned char>;
using Tokens = std::vector<std::int64_t>;

/// What a batch gives, as bytes: forward for inference and for training, backward.
struct Result {
  Bytes inferred, out, dtokens, gradient;
};

/// Runs some of the kTokens tokens through a layer.
using Runner = std::function<Result(const Tokens&)>;

template <class S>
Matrix<S> random_matrix(Index rows, Index cols, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  Matrix<S> result(rows, cols);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < cols; ++c) result(r, c) = static_cast<S>(random.normal(r, c));
  return result;
}

template <class S>
void append(Bytes& bytes, std::span<const S> values) {
  const auto raw = std::as_bytes(values);
  for (const std::byte byte : raw) bytes.push_back(static_cast<unsigned char>(byte));
}

template <class S>
Bytes bytes_of(const Matrix<S>& values) {
  Bytes bytes;
  append<S>(bytes, moe::parameter_span(values));
  return bytes;
}

template <class Layer, class S = typename Layer::Scalar>
Result run(const Layer& layer, moe::Step step, const Tokens& ids) {
  static const auto kAllTokens = random_matrix<S>(kTokens, kModelDim, 3);
  static const auto kAllDouts = random_matrix<S>(kTokens, kModelDim, 4);
  const auto count = static_cast<Index>(ids.size()), stride = kModelDim + count % 3;
  std::vector<S> memory(ids.size() * static_cast<std::size_t>(stride) + 4);  // any alignment, any distance
  Eigen::Map<Matrix<S>, 0, Eigen::OuterStride<>> tokens(memory.data() + count % 4, count, kModelDim,
                                                        Eigen::OuterStride<>(stride));
  Matrix<S> dout(count, kModelDim), inferred = dout, out = dout, dtokens = dout;
  for (Index r = 0; r < count; ++r) {
    tokens.row(r) = kAllTokens.row(ids[static_cast<std::size_t>(r)]);
    dout.row(r) = kAllDouts.row(ids[static_cast<std::size_t>(r)]);
  }
  std::vector<std::int64_t> key = ids, group = ids;
  for (std::int64_t& of_token : key) of_token %= test::kNumKeys;
  for (std::int64_t& of_token : group) of_token %= 4;
  step.token_id = ids;
  step.key = key;
  step.group_id = group;

  typename Layer::Workspace ws;
  typename Layer::Tape tape;
  Layer gradient = moe::zeros_like(layer);
  layer.forward(tokens, step, inferred, ws);
  layer.forward(tokens, step, out, tape);
  layer.backward(tokens, tape, dout, gradient, dtokens);
  Result result{bytes_of(inferred), bytes_of(out), bytes_of(dtokens), {}};
  moe::visit([&](const std::string&, const auto& leaf) { append<S>(result.gradient, moe::parameter_span(leaf)); },
             gradient);
  if constexpr (requires { gradient.gate(); }) append<double>(result.gradient, gradient.gate().parameters());
  return result;
}

void report(bool same, const std::string& experiment, const char* what, const std::string& how) {
  if (same) return;
  ++num_different;
  std::printf("%s: %s differ %s\n", experiment.c_str(), what, how.c_str());
}

/// Compares the rows of a batch with the same tokens in the whole.
void compare_rows(const Result& whole, const Result& part, const Tokens& ids, const std::string& experiment,
                  const std::string& how) {
  const std::size_t row = whole.out.size() / kTokens;
  const auto same = [&](const Bytes& all, const Bytes& some) {
    for (std::size_t r = 0; r < ids.size(); ++r)
      if (std::memcmp(&some[r * row], &all[static_cast<std::size_t>(ids[r]) * row], row) != 0) return false;
    return true;
  };
  report(same(whole.out, part.inferred), experiment, "outputs", how);
  report(same(whole.out, part.out), experiment, "outputs of training", how);
  report(same(whole.dtokens, part.dtokens), experiment, "input gradients", how);
}

Tokens all_tokens() {
  Tokens ids(kTokens);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

void check_batches(const Runner& run, const std::string& experiment) {
  const Result whole = run(all_tokens());
  Tokens shuffled = all_tokens();
  const moe::RandomField random(moe::Purpose::Shuffle, 1);
  std::ranges::sort(shuffled, {}, [&](std::int64_t t) { return random.bits(t); });
  auto next = shuffled.begin();
  for (Index size = 1; size <= 24; ++size) {  // 1 + 2 + ... + 24 = 300
    const Tokens ids(next, next + size), one = {ids.back()};
    next += size;
    compare_rows(whole, run(ids), ids, experiment, "in a batch of " + std::to_string(size));
    compare_rows(whole, run(one), one, experiment, "for token " + std::to_string(one[0]) + " alone");
  }
}

void check_threads(const Runner& run, const std::string& experiment) {
  const Tokens all = all_tokens();
  const auto on_executor = [&](Index workers) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    return run(all);
  };
  const Result serial = on_executor(1);
  const auto compare = [&](const Result& parallel, const std::string& how) {
    compare_rows(serial, parallel, all, experiment, how);
    report(serial.gradient == parallel.gradient, experiment, "parameter gradients", how);
  };
  for (const Index workers : {2, 3, 8}) compare(on_executor(workers), "on " + std::to_string(workers) + " threads");
#ifdef _OPENMP
  for (const int threads : {1, 2, 3, 8}) {
    omp_set_num_threads(threads);
    compare(run(all), "on " + std::to_string(threads) + " OpenMP threads");
  }
#endif
}

template <class Layer>
void check_layer(const Layer& layer, const std::string& name) {
  for (const moe::Step& step : {moe::Step{}, moe::Step::train(3, 5)}) {
    const Runner run_step = [&](const Tokens& ids) { return run(layer, step, ids); };
    const std::string experiment = name + (step.training() ? ", training" : ", inference");
    check_threads(run_step, experiment);
    if constexpr (Layer::kPerToken) check_batches(run_step, experiment);
  }
}

template <class Codec, class Expert>
void check(const std::string& name) {
  using S = typename Codec::Scalar;
  auto gates = test::per_token_gates<S>(kExperts);
  for (auto& gate : test::keyed_and_other_gates<S>(kExperts)) gates.push_back(std::move(gate));
  for (const auto& gate : gates) {
    const moe::MoeLayer layer(moe::BasicLinearRouter<Codec>::random(gate.num_logits(kExperts), kModelDim, 1), gate,
                              moe::ExpertPool<Expert>::random(kExperts, kModelDim, kHiddenDim, 2));
    check_layer(layer, name + ", " + gate.name);
  }
}

/// What mixes the tokens of a group, and so depends on the batch; and what auxiliary choices scale, which does not.
void check_mixtures() {
  const auto pool = moe::ExpertPool<moe::Glu>::random(kExperts, kModelDim, kHiddenDim, 2);
  check_layer(moe::MoeLayer(moe::LinearRouter::random(kExperts, kModelDim, 1),
                            test::AnyGate<float>("softmax", moe::SoftmaxGate{}), moe::MergedExperts(pool)),
              "merged experts");
  check_layer(moe::SoftMoeLayer(moe::LinearRouter::random(5 * kExperts, kModelDim, 1), pool), "soft mixture");
  check_layer(moe::MoeLayer(moe::LinearRouter::random(kExperts, kModelDim, 1),
                            test::AnyGate<float>("top-3", moe::TopKGate{.k = 3}), moe::CompressedExperts(pool, 1)),
              "compressed experts");
}

/// A gate for each of the four groups of tokens, some of whose experts are shared.
void check_gates() {
  const auto mask = moe::ExpertMask(4, kExperts).allow(0, 0, 4).allow(1, 2, 3).allow(2, 1, 5).allow(3, 0, 6);
  std::vector<moe::LinearRouter> routers;
  for (Index g = 0; g < 4; ++g)
    routers.push_back(moe::LinearRouter::random(std::ssize(mask.experts(g)), kModelDim, static_cast<std::uint64_t>(g)));
  check_layer(moe::MultiGateLayer(routers, test::AnyGate<float>("noisy top-2", moe::NoisyTopKGate{}),
                                  moe::ExpertPool<moe::Glu>::random(kExperts, kModelDim, kHiddenDim, 2), mask,
                                  std::vector<std::vector<Index>>{{0}, {1}, {2}, {3}}),
              "several gates");
}

/// Weights in few bits, one format after the other in the matrices of a pool; and of rounded rows, and with zeros.
void check_formats() {
  const auto pool = moe::ExpertPool<moe::Glu>::random(kExperts, kModelDim, kHiddenDim, 2);
  const char* const formats[] = {"bf16", "f16",       "fp8",   "fp8-e5m2", "int8", "int8-zero",
                                 "int4", "int4-zero", "mxfp4", "nvfp4",    "3bit", "2bit-symmetric"};
  const auto layer_of = [&](auto experts) {
    return moe::MoeLayer(moe::LinearRouter::random(kExperts, kModelDim, 1),
                         test::AnyGate<float>("top-2", moe::TopKGate{.k = 2}), std::move(experts));
  };
  check_layer(layer_of(moe::quantise(pool,
                                     [&](const moe::ExpertMatrix& matrix) {
                                       const Index second = matrix.name == "down.weight" ? 1 : 0;
                                       return moe::WeightFormat::named(formats[2 * matrix.expert + second]);
                                     })),
              "formats of few bits");
  const auto mask = [](const moe::ExpertMatrix&, const auto& weights) {
    return moe::wanda(weights, std::vector<float>(static_cast<std::size_t>(weights.inputs()), 1.0f), 0.7);
  };
  check_layer(layer_of(moe::skip_zeros(moe::mask_weights(pool, mask))), "zeros that are skipped");
  for (const char* format : {"int8", "int4", "mxfp4"})
    check_layer(layer_of(moe::with_dot(moe::quantise(pool, moe::WeightFormat::named(format)), moe::Dot::Int8)),
                std::string("integers of rows, ") + format);
}

}  // namespace

int main() {
#ifdef _OPENMP
  omp_set_num_threads(1);  // check_threads sets more
#endif
  // Every scalar and every kind of expert, but not every pair: each costs ten seconds of compilation.
  check<moe::F32, moe::Glu>("float glu");
  check<moe::F64, moe::BasicMlp<moe::F64>>("double mlp");
  check_mixtures();
  check_gates();
  check_formats();
  std::printf("%d differences\n", num_different);
  return num_different == 0 ? 0 : 1;
}
