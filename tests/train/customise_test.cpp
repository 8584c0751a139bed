// SPDX-License-Identifier: MIT
#include "moe/train/customise.hpp"

#include <cmath>
#include <vector>

#include "moe/expert/glu.hpp"
#include "moe/expert/linear.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/normalised.hpp"
#include "support/catch.hpp"
#include "support/experts.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::F32;
using moe::F64;
using moe::Index;
using moe::Matrix;

namespace {

constexpr Index kInputs = 7, kClasses = 3;

template <class E>
E random_head(std::uint64_t seed) {
  if constexpr (
      requires { E(kClasses, kInputs); } && !requires { E(moe::Widths{}); }) {
    return test::random_expert<E>(kClasses, kInputs, seed);
  } else {
    E expert(moe::Widths{.input = kInputs, .hidden = 5, .output = kClasses});
    test::randomise(expert, seed);
    return expert;
  }
}

template <class S>
struct Data {
  Matrix<S> rows;
  std::vector<Index> labels;

  operator moe::LabelledRows<S>() const { return {rows, labels}; }
};

/// Rows around one centre per class. Those of a user are the same, but his centres are those of the next class, and his
/// rows are told by their last input, which is 3 and not 0.
template <class S>
Data<S> blobs(Index per_class, bool user, std::uint64_t seed, std::vector<Index> classes = {0, 1, 2}) {
  Data<S> data;
  const auto noise = test::random_matrix<S>(per_class * std::ssize(classes), kInputs, seed, 0.3);
  data.rows = noise;
  for (Index t = 0; t < noise.rows(); ++t) {
    const Index label = classes[static_cast<std::size_t>(t % std::ssize(classes))];
    data.rows(t, user ? (label + 1) % kClasses : label) += S{2};
    if (user) data.rows(t, kInputs - 1) += S{3};
    data.labels.push_back(label);
  }
  return data;
}

/// Tells the centres of the generic classes apart.
template <class Codec>
moe::BasicLinear<Codec> generic_head() {
  moe::BasicLinear<Codec> head(kClasses, kInputs);
  for (Index c = 0; c < kClasses; ++c) head.weight().set(c, c, 1);
  return head;
}
template <class Codec>
auto sample_layer(Index locals = 1) {
  using Linear = moe::BasicLinear<Codec>;
  return moe::customise(generic_head<Codec>(),
                        std::vector<Linear>(static_cast<std::size_t>(locals), Linear(kClasses, kInputs)));
}

template <class Layer, class S = typename Layer::Scalar>
std::pair<Matrix<S>, std::vector<Index>> answers(const Layer& layer, const Matrix<S>& rows) {
  typename Layer::Workspace ws;
  auto out = test::nan_matrix<S>(rows.rows(), layer.output_dim());
  layer.forward(rows, out, ws);
  std::vector<Index> who;
  for (Index t = 0; t < rows.rows(); ++t) who.push_back(ws.routing.experts(t)[0]);
  return {out, who};
}

template <class S>
double accuracy(const Matrix<S>& scores, const std::vector<Index>& labels) {
  double right = 0;
  for (Index t = 0; t < scores.rows(); ++t) {
    Index best = 0;
    for (Index c = 0; c < scores.cols(); ++c)
      if (scores(t, c) > scores(t, best)) best = c;
    right += best == labels[static_cast<std::size_t>(t)] ? 1 : 0;
  }
  return right / static_cast<double>(labels.size());
}

template <class H, class L>
void check_bits() {
  using S = typename H::Scalar;
  const H head = random_head<H>(1);
  const L local = random_head<L>(2);
  auto router = moe::BasicLinearRouter<moe::CodecOf<S>>::random(2, kInputs, 3);
  const auto closed = moe::customise(head, std::vector{local}, router);
  auto open = closed;
  moe::set_threshold(open, -1.5);
  auto half = closed;
  moe::set_threshold(half, 0);
  for (const Index count : {0, 1, 17, 70}) {
    const auto rows = test::random_matrix<S>(count, kInputs, 5);
    const auto of_head = test::run(head, rows), of_local = test::run(local, rows);
    CHECK(test::same_bits(answers(closed, rows).first, of_head));
    CHECK(test::same_bits(answers(open, rows).first, of_local));
    const auto [out, who] = answers(half, rows);
    for (Index t = 0; t < count; ++t)
      CHECK(test::same_bits(out.row(t), (who[static_cast<std::size_t>(t)] == 0 ? of_head : of_local).row(t)));
    if (count == 70) CHECK((std::ranges::count(who, 0) > 0 && std::ranges::count(who, 1) > 0));
  }
}

/// An expert for inference alone, without names for what it holds.
struct Shift {
  using Scalar = float;
  Index input_dim() const { return kInputs; }
  Index output_dim() const { return kClasses; }
  void forward(const moe::ConstMatrixRef<float>& rows, moe::MatrixRef<float> out, const moe::Context&) const {
    for (Index r = 0; r < rows.rows(); ++r) out.row(r) = rows.row(r).segment(1, kClasses);
  }
};

}  // namespace

TEST_CASE("customise: a closed gate gives the bits of the deployed model, an open one those of the local", "[train]") {
  check_bits<moe::BasicLinear<F32>, moe::BasicLinear<F32>>();
  check_bits<moe::BasicMlp<F64>, moe::BasicLinear<F64>>();
  check_bits<moe::BasicGlu<F32>, moe::BasicMlp<F32>>();
}

TEST_CASE("customise: the deployed model need not be one that learns", "[train]") {
  auto layer = moe::customise(Shift{}, moe::Linear(kClasses, kInputs));
  const auto user = blobs<float>(8, true, 1), more = blobs<float>(6, true, 2), generic = blobs<float>(20, false, 3);
  moe::fit_local(layer, user);
  const auto fit = moe::fit_gate(layer, more, generic);
  CHECK(fit.user.customised == 1);  // where the shifted columns are wrong the local expert answers
  CHECK(fit.user.customised > fit.user.generic);
}

TEMPLATE_TEST_CASE("fit_local, fit_gate: the user gains, others do not lose, and the model is untouched", "[train]",
                   F32, F64) {
  using S = typename TestType::Scalar;
  auto layer = sample_layer<TestType>();
  const auto before = layer;
  const auto& generic_expert = *moe::detail::generic_of(layer);
  const auto head = generic_head<TestType>();
  const auto user = blobs<S>(8, true, 1), more = blobs<S>(6, true, 2), generic = blobs<S>(30, false, 3);
  const auto of_user = blobs<S>(100, true, 4), of_others = blobs<S>(100, false, 5);

  const auto local = moe::fit_local(layer, user);
  CHECK(local.generic_accuracy < 0.2);
  CHECK(local.local_accuracy == 1);
  CHECK(local.cost.samples == 24);
  CHECK(local.cost.updates == 300);
  CHECK(local.cost.multiply_adds == 3.0 * (kInputs + 1) * kClasses * 24 * 300);
  CHECK(test::same_bits(answers(layer, of_user.rows).first, answers(before, of_user.rows).first));  // gate closed

  const auto gate = moe::fit_gate(layer, more, generic, {.max_generic_drop = 0});
  CHECK(gate.informative >= 18);
  CHECK(gate.cost.samples == (18 + 90) / 2);
  CHECK(gate.user.customised == 1);
  CHECK(gate.user.bound >= gate.user.customised);
  CHECK(gate.generic.customised >= gate.generic.generic);
  CHECK(accuracy(answers(layer, of_user.rows).first, of_user.labels) > 0.95);
  CHECK(accuracy(answers(layer, of_others.rows).first, of_others.labels) >=
        accuracy(answers(before, of_others.rows).first, of_others.labels) - 0.01);

  CHECK(&*moe::detail::generic_of(layer) == &generic_expert);  // not even a copy
  CHECK(test::same_parameters(*moe::detail::generic_of(layer), head));
  CHECK(moe::num_parameters(layer) == (kInputs + 1) * kClasses + (kInputs + 3) * 2);  // all that learns
}

TEST_CASE("fit_local: ends where the gradient of the loss is zero", "[train]") {
  auto layer = sample_layer<F64>();
  Data<double> user = blobs<double>(9, true, 1);
  for (std::size_t t = 0; t < user.labels.size(); t += 4) user.labels[t] = 0;  // so that the loss has a finite minimum
  const auto of_head = test::run(generic_head<F64>(), user.rows);
  const auto largest_gradient = [&] {
    const auto scores = test::run(moe::detail::locals_of(layer)[0], user.rows);
    Matrix<double> gradient = Matrix<double>::Zero(kClasses, kInputs);
    double sum = 0;
    for (Index t = 0; t < scores.rows(); ++t) {
      const Index label = user.labels[static_cast<std::size_t>(t)];
      const double weight = accuracy(Matrix<double>(of_head.row(t)), {label}) == 1 ? 1 : 3;
      sum += weight;
      double norm = 0;
      for (Index c = 0; c < kClasses; ++c) norm += std::exp(scores(t, c));
      for (Index c = 0; c < kClasses; ++c)
        for (Index i = 0; i < kInputs; ++i)
          gradient(c, i) += weight * (std::exp(scores(t, c)) / norm - (c == label ? 1 : 0)) * user.rows(t, i);
    }
    return test::largest(Matrix<double>(gradient / sum));
  };
  const double before = largest_gradient();
  moe::fit_local(layer, user, {.updates = 4000, .weight_decay = 0, .emphasis = 2});
  CHECK(before > 0.3);
  CHECK(largest_gradient() < 0.01 * before);
}

TEMPLATE_TEST_CASE("ConfidenceRouter: reads the largest probability and the entropy behind the row", "[train]", F32,
                   F64) {
  using S = typename TestType::Scalar;
  using Mlp = moe::BasicMlp<TestType>;
  auto linear = moe::BasicLinearRouter<TestType>(4, kInputs + 2, moe::Bias::Zero);
  test::randomise(linear, 3);
  const moe::ConfidenceRouter router(linear, moe::Frozen(random_head<Mlp>(1)));
  REQUIRE(router.num_experts() == 4);
  REQUIRE(router.model_dim() == kInputs);
  auto rows = test::random_matrix<S>(17, kInputs, 2);
  rows.row(3) *= 1000;  // sure of it: p is 1 and the entropy 0
  const auto scores = test::run(*router.generic(), rows);
  Matrix<S> read(17, kInputs + 2), expected(17, 4), out(17, 4);
  for (Index t = 0; t < 17; ++t) {
    double norm = 0, most = -INFINITY, entropy = 0, largest = 0;
    for (Index c = 0; c < kClasses; ++c) most = std::max(most, static_cast<double>(scores(t, c)));
    for (Index c = 0; c < kClasses; ++c) norm += std::exp(static_cast<double>(scores(t, c)) - most);
    for (Index c = 0; c < kClasses; ++c) {
      const double p = std::exp(static_cast<double>(scores(t, c)) - most) / norm;
      largest = std::max(largest, p);
      if (p > 0) entropy -= p * std::log(p);
    }
    for (Index i = 0; i < kInputs; ++i) read(t, i) = rows(t, i);
    read(t, kInputs) = static_cast<S>(largest);
    read(t, kInputs + 1) = static_cast<S>(entropy);
  }
  linear.logits(read, moe::Step{}, expected);
  router.logits(rows, moe::Step{}, out);
  // Weights around .5 times two columns that differ by a rounding or two.
  CHECK(test::largest(Matrix<S>(out - expected)) <
        64 * static_cast<double>(std::numeric_limits<S>::epsilon()) * test::largest(Matrix<S>(expected)));
  const auto many = test::random_matrix<S>(300, kInputs, 4);  // three tasks
  const auto on_threads = test::on_thread_counts([&] {
    Matrix<S> all(300, 4);
    router.logits(many, moe::Step{}, all);
    return all;
  });
  for (const auto& all : on_threads) CHECK(test::same_bits(all, on_threads[0]));
  for (const Index t : {0, 3, 16}) {
    Matrix<S> alone(1, 4);
    router.logits(rows.row(t), moe::Step{}, alone);
    CHECK(test::same_bits(alone, out.row(t)));
  }
  const std::vector<Index> ids = {2, 0};
  Matrix<S> taken(17, 2);
  router.take(ids).logits(rows, moe::Step{}, taken);
  CHECK(test::same_bits(taken.col(0), out.col(2)));
  CHECK_THROWS_WITH(moe::ConfidenceRouter(moe::BasicLinearRouter<TestType>(4, kInputs), router.generic()),
                    ContainsSubstring("the router reads 7 columns, expected 7 + 2"));
  const auto layer = sample_layer<TestType>();
  CHECK(&*layer.router().generic() == &*moe::detail::generic_of(layer));  // the model lies once
}

TEST_CASE("fit_gate: a local expert is asked for where it alone is right", "[train]") {
  // generic right, local right; wrong, right; right, wrong; wrong, wrong; and two local ones
  CHECK(moe::detail::gate_targets({{1, 0, 1, 0}, {1, 1, 0, 0}}) == std::vector<Index>{0, 1, 0, 0});
  CHECK(moe::detail::gate_targets({{0, 0, 0, 1}, {1, 0, 0, 0}, {1, 1, 0, 1}}) == std::vector<Index>{1, 2, 0, 0});
  CHECK(moe::detail::balanced_weights(std::vector<Index>{0, 1, 0, 0}) ==
        std::vector<double>{1. / 3, 1, 1. / 3, 1. / 3});
}

namespace {

/// The rows of both that do not train the gate.
template <class Layer, class S>
std::pair<Data<S>, Data<S>> held_out(const Layer& layer, const Data<S>& user, const Data<S>& generic) {
  std::vector<Index> targets, labels;
  for (const Data<S>* data : {&user, &generic}) {
    const auto first = test::run(*moe::detail::generic_of(layer), data->rows);
    const auto second = test::run(moe::detail::locals_of(layer)[0], data->rows);
    for (std::size_t t = 0; t < data->labels.size(); ++t) {
      const auto is_right = [&](const Matrix<S>& scores) {
        return accuracy(Matrix<S>(scores.row(static_cast<Index>(t))), {data->labels[t]}) == 1;
      };
      targets.push_back(!is_right(first) && is_right(second) ? 1 : 0);
      labels.push_back(data->labels[t]);
    }
  }
  std::pair<Data<S>, Data<S>> held;
  const Index num_user = user.rows.rows();
  for (const Index t : moe::detail::gate_halves(targets, labels, num_user).second) {
    const Index row = t < num_user ? t : t - num_user;
    const Data<S>& from = t < num_user ? user : generic;
    Data<S>& to = t < num_user ? held.first : held.second;
    to.rows.conservativeResize(to.rows.rows() + 1, kInputs);
    to.rows.bottomRows(1) = from.rows.row(row);
    to.labels.push_back(from.labels[static_cast<std::size_t>(row)]);
  }
  return held;
}

}  // namespace

TEST_CASE("fit_gate: no other threshold serves the user better within what generic rows may lose", "[train]") {
  for (const double drop : {0.0, 0.02, 0.1, 1.0})
    for (const std::uint64_t seed : {1u, 2u, 3u}) {
      CAPTURE(drop, seed);
      auto layer = sample_layer<F64>();
      auto more = blobs<double>(12, true, seed + 10), generic = blobs<double>(25, false, seed + 20);
      more.rows.rightCols(1).array() -= 2;  // users are hard to tell now
      more.rows += test::random_matrix<double>(more.rows.rows(), kInputs, seed + 30, 0.9);
      generic.rows += test::random_matrix<double>(generic.rows.rows(), kInputs, seed + 40, 0.9);
      moe::fit_local(layer, blobs<double>(8, true, seed));
      const auto [held_user, held_generic] = held_out(layer, more, generic);
      const auto fit = moe::fit_gate(layer, more, generic, {.updates = 60, .max_generic_drop = drop});
      CHECK(fit.generic.customised >= fit.generic.generic - drop - 1e-12);
      CHECK(std::abs(fit.generic.customised - accuracy(answers(layer, held_generic.rows).first, held_generic.labels)) <
            1e-12);
      const double found = accuracy(answers(layer, held_user.rows).first, held_user.labels);
      CHECK(std::abs(fit.user.customised - found) < 1e-12);
      CHECK(fit.user.customised <= fit.user.bound);
      for (double threshold = -1; threshold <= 1; threshold += 1.0 / 256) {
        auto other = layer;
        moe::set_threshold(other, threshold);
        if (accuracy(answers(other, held_generic.rows).first, held_generic.labels) >=
            fit.generic.generic - drop - 1e-12)
          CHECK(accuracy(answers(other, held_user.rows).first, held_user.labels) <= found + 1e-12);
      }
    }
}

TEST_CASE("fit_gate: rows that train and rows that choose the threshold share targets and classes", "[train]") {
  const std::vector<Index> targets = {0, 1, 1, 0, 1, 1, 0, 0, 0, 0}, labels = {0, 2, 1, 0, 1, 2, 2, 1, 2, 1};
  const auto [train, held] = moe::detail::gate_halves(targets, labels, 6);
  CHECK(train == std::vector<Index>{2, 1, 0, 7, 6});
  CHECK(held == std::vector<Index>{4, 5, 3, 9, 8});
}

TEST_CASE("fit_gate: local experts of nearly equal probability do not break what generic rows may lose", "[train]") {
  // Both have next to none: the gate adds a threshold near 1 and finds them equal, so that the first answers, which is
  // always wrong, instead of the second, which is always right.
  moe::LinearRouter router(3, kInputs, moe::Bias::Zero);
  router.bias().set(0, 0, 40);
  router.bias().set(2, 0, 1);
  auto deployed = generic_head<F32>();
  deployed.weight().set(0, kInputs - 1, 2);  // the last input, 3 for the user, makes it say 0
  moe::Linear wrong(kClasses, kInputs);
  for (Index c = 0; c < kClasses; ++c) wrong.weight().set((c + 1) % kClasses, c, 1);
  auto layer = moe::customise(deployed, std::vector{wrong, generic_head<F32>()}, router);
  auto user = blobs<float>(10, false, 1);
  user.rows.rightCols(1).array() += 3;
  const auto fit = moe::fit_gate(layer, user, blobs<float>(30, false, 2), {.updates = 1, .rate = 0});
  CHECK(fit.informative >= 20);
  CHECK(fit.user.bound > fit.user.generic + 0.5);
  CHECK(fit.generic.generic > 0.8);
  CHECK(fit.generic.customised >= fit.generic.generic - 0.005);
}

TEST_CASE("fit_gate: a class that the user never wrote stays with the deployed model", "[train]") {
  auto layer = sample_layer<F32>();
  moe::fit_local(layer, blobs<float>(10, true, 1, {0, 1}));
  moe::fit_gate(layer, blobs<float>(6, true, 2, {0, 1}), blobs<float>(30, false, 3));
  const auto absent = blobs<float>(60, false, 4, {2});
  const auto [scores, who] = answers(layer, absent.rows);
  CHECK(std::ranges::count(who, 1) <= 1);
  CHECK(accuracy(scores, absent.labels) > 0.97);
}

TEST_CASE("fit_gate: stays closed where nothing tells in favour of the local expert", "[train]") {
  auto layer = sample_layer<F32>();
  const auto before = layer;
  const auto rows = blobs<float>(20, false, 1);
  Data<float> right;  // none but rows that the deployed model gets right
  const auto scores = test::run(generic_head<F32>(), rows.rows);
  for (Index t = 0; t < rows.rows.rows(); ++t)
    if (accuracy(Matrix<float>(scores.row(t)), {rows.labels[static_cast<std::size_t>(t)]}) == 1) {
      right.rows.conservativeResize(right.rows.rows() + 1, kInputs);
      right.rows.bottomRows(1) = rows.rows.row(t);
      right.labels.push_back(rows.labels[static_cast<std::size_t>(t)]);
    }
  const auto fit = moe::fit_gate(layer, right, right);
  CHECK(fit.informative == 0);
  CHECK(fit.threshold > 1);
  CHECK(fit.user.local == 0);
  CHECK(fit.cost.updates == 0);
  CHECK(test::same_parameters(layer, before));
}

TEST_CASE("fit_local, fit_gate: two users, each with a local expert of his own", "[train]") {
  auto layer = sample_layer<F32>(2);
  const auto second = [](Index per_class, std::uint64_t seed) {  // labels are two further, and the last input is -3
    auto data = blobs<float>(per_class, true, seed);
    data.rows.rightCols(1).array() -= 6;
    for (Index& label : data.labels) label = (label + 2) % kClasses;
    return data;
  };
  moe::fit_local(layer, blobs<float>(8, true, 1), {.expert = 1});
  moe::fit_local(layer, second(8, 2), {.expert = 2});
  auto both = blobs<float>(6, true, 3);
  const auto other = second(6, 4);
  both.rows.conservativeResize(2 * other.rows.rows(), kInputs);
  both.rows.bottomRows(other.rows.rows()) = other.rows;
  both.labels.insert(both.labels.end(), other.labels.begin(), other.labels.end());
  const auto fit = moe::fit_gate(layer, both, blobs<float>(30, false, 5));
  CHECK(fit.user.customised > 0.95);
  CHECK(fit.generic.customised >= fit.generic.generic - 0.005);
  for (const auto& [data, expert] : {std::pair{blobs<float>(40, true, 6), 1}, std::pair{second(40, 7), 2}}) {
    const auto [scores, who] = answers(layer, data.rows);
    CHECK(accuracy(scores, data.labels) > 0.9);
    CHECK(std::ranges::count(who, expert) > 100);
  }
}

TEST_CASE("fit_local, fit_gate: the same bits on any number of threads", "[train][property]") {
  const auto fits = test::on_thread_counts([] {
    auto layer = moe::customise(generic_head<F32>(),
                                moe::Mlp::random(moe::Widths{.input = kInputs, .hidden = 9, .output = kClasses}, 1));
    moe::fit_local(layer, blobs<float>(100, true, 1), {.updates = 20});
    moe::fit_gate(layer, blobs<float>(90, true, 2), blobs<float>(90, false, 3), {.updates = 20});
    return layer;
  });
  for (const auto& fit : fits) CHECK(test::same_parameters(fit, fits[0]));
}

TEST_CASE("fit_local, fit_gate: what does not fit is refused, and the layer stays as it is", "[train][error]") {
  auto layer = sample_layer<F32>();
  const auto before = layer;
  const auto user = blobs<float>(3, true, 1), generic = blobs<float>(3, false, 2);
  const Data<float> none{Matrix<float>(0, kInputs), {}};
  auto wide = user, unknown = user, broken = user, unlabelled = user;
  wide.rows = Matrix<float>::Zero(9, kInputs + 1);
  unknown.labels[4] = kClasses;
  broken.rows(2, 1) = NAN;
  unlabelled.labels.pop_back();
  CHECK_THROWS_WITH(moe::fit_local(layer, none), ContainsSubstring("moe::fit_local: 0 rows of the user, expected at"));
  CHECK_THROWS_WITH(moe::fit_local(layer, wide), ContainsSubstring("user is [9, 8], expected [9, 7]"));
  CHECK_THROWS_WITH(moe::fit_local(layer, unknown),
                    ContainsSubstring("label 4 of the user is 3, expected 0 to num_cl"));
  CHECK_THROWS_WITH(moe::fit_local(layer, broken), ContainsSubstring("row 2 of the user has nan, expected finite"));
  CHECK_THROWS_WITH(moe::fit_local(layer, unlabelled), ContainsSubstring("8 labels of the user, expected 9"));
  CHECK_THROWS_WITH(moe::fit_local(layer, user, {.expert = 0}), ContainsSubstring("expert is 0, expected 1 to num_ex"));
  CHECK_THROWS_WITH(moe::fit_local(layer, user, {.expert = 2}), ContainsSubstring("expert is 2, expected 1 to num_ex"));
  CHECK_THROWS_WITH(moe::fit_local(layer, user, {.updates = 0}),
                    ContainsSubstring("updates is 0, expected at least 1"));
  CHECK_THROWS_WITH(moe::fit_local(layer, user, {.emphasis = -1}), ContainsSubstring("emphasis is -1"));
  CHECK_THROWS_WITH(moe::fit_local(layer, user, {.weight_decay = -1}),
                    ContainsSubstring("moe::fit_local: weight_decay is -1"));
  // Also where no row tells in favour of a local expert, which is then not asked for an update.
  CHECK_THROWS_WITH(moe::fit_gate(layer, generic, generic, {.rate = -1}),
                    ContainsSubstring("moe::fit_gate: rate is -1"));
  CHECK_THROWS_WITH(moe::fit_gate(layer, generic, generic, {.weight_decay = NAN}),
                    ContainsSubstring("moe::fit_gate: weight_decay is nan"));
  CHECK_THROWS_WITH(moe::fit_gate(layer, generic, generic, {.updates = 0}),
                    ContainsSubstring("moe::fit_gate: updates is 0"));
  for (const double threshold : {double(NAN), double(INFINITY)})
    CHECK_THROWS_WITH(moe::set_threshold(layer, threshold), ContainsSubstring("moe::set_threshold: threshold is"));
  CHECK_THROWS_WITH(moe::fit_local(layer, user, {.rate = INFINITY}), ContainsSubstring("moe::fit_local: rate is inf"));
  CHECK_THROWS_WITH(moe::fit_gate(layer, none, generic), ContainsSubstring("moe::fit_gate: 0 rows of the user"));
  CHECK_THROWS_WITH(moe::fit_gate(layer, user, none), ContainsSubstring("0 rows of the generic, expected at least 2"));
  for (const double drop : {-0.1, 1.5, double(NAN)})
    CHECK_THROWS_WITH(moe::fit_gate(layer, user, generic, {.max_generic_drop = drop}),
                      ContainsSubstring("max_generic_drop is"));
  CHECK(test::same_parameters(layer, before));
  using Linear = moe::Linear;
  CHECK_THROWS_WITH(moe::customise(generic_head<F32>(), std::vector<Linear>()),
                    ContainsSubstring("moe::customise: 0 local experts, expected at least 1"));
  CHECK_THROWS_WITH(
      moe::customise(generic_head<F32>(), Linear(kClasses, kInputs + 1)),
      ContainsSubstring("moe::customise: local expert 0 maps 8 to 3, expected 7 to 3 as the deployed model"));
  CHECK_THROWS_WITH(
      moe::customise(generic_head<F32>(), std::vector{Linear(kClasses, kInputs)}, moe::LinearRouter(3, kInputs)),
      ContainsSubstring("the router scores 3 experts, expected 2"));
}

TEST_CASE("customise: a layer that was moved from is refused by name", "[train][error]") {
  auto layer = sample_layer<F32>();
  const auto moved = std::move(layer);
  const auto user = blobs<float>(3, true, 1);
  CHECK_THROWS_WITH(moe::customisation_cost(layer), ContainsSubstring("moe::customisation_cost: the layer has 0 dep"));
  CHECK_THROWS_WITH(moe::fit_local(layer, user), ContainsSubstring("moe::fit_local: the layer has 0 deployed"));
  CHECK_THROWS_WITH(moe::fit_gate(layer, user, user), ContainsSubstring("moe::fit_gate: the layer has 0 deployed"));
  CHECK_THROWS_WITH(moe::set_threshold(layer, 0), ContainsSubstring("moe::set_threshold: the layer has 0 deployed"));
}

TEST_CASE("customise: scores that are not finite are an error of the gate", "[train][error]") {
  auto layer = sample_layer<F32>();
  Matrix<float> rows = test::random_matrix<float>(3, kInputs, 1), out(3, kClasses);
  rows(1, 0) = INFINITY;
  moe::Workspace ws;
  CHECK_THROWS_AS(layer.forward(rows, out, ws), std::invalid_argument);
}

TEST_CASE("fit_local: experts with statistics of batches are not fitted", "[train]") {
  STATIC_REQUIRE(moe::detail::KeepsStatistics<moe::Normalised<moe::Linear>>);
  STATIC_REQUIRE_FALSE(moe::detail::KeepsStatistics<moe::Linear>);
  STATIC_REQUIRE_FALSE(moe::detail::KeepsStatistics<Shift>);
}

TEMPLATE_TEST_CASE("share_generic: after a load the model lies once again", "[train]", F32, F64) {
  using S = typename TestType::Scalar;
  auto layer = sample_layer<TestType>();
  auto saved =
      moe::customise(random_head<moe::BasicLinear<TestType>>(4), moe::BasicLinear<TestType>(kClasses, kInputs));
  moe::fit_local(saved, blobs<S>(5, true, 1), {.updates = 20});
  moe::fit_gate(saved, blobs<S>(5, true, 2), blobs<S>(9, false, 3), {.updates = 20});
  moe::set_threshold(saved, 0);
  const auto rows = test::random_matrix<S>(40, kInputs, 6);
  const auto expected = answers(saved, rows);
  moe::visit_all(  // as load_parameters() does
      [](const std::string&, auto& to, const auto& from) {
        std::vector<double> values(static_cast<std::size_t>(moe::parameter_size(from)));
        moe::read_parameter(from, std::span(values));
        moe::write_parameter(to, std::span<const double>(values));
      },
      layer, std::as_const(saved));
  CHECK(test::same_bits(answers(layer, rows).first, expected.first));
  CHECK(&*layer.router().generic() != &*moe::detail::generic_of(layer));
  moe::share_generic(layer);
  CHECK(&*layer.router().generic() == &*moe::detail::generic_of(layer));
  CHECK(test::same_bits(answers(layer, rows).first, expected.first));
  CHECK(answers(layer, rows).second == expected.second);
}

TEST_CASE("customisation_cost: counts what the parts have", "[train]") {
  const auto layer = moe::customise(moe::Linear(kClasses, kInputs),
                                    moe::Mlp(moe::Widths{.input = kInputs, .hidden = 4, .output = kClasses}));
  const moe::Linear trunk(kInputs, 20);
  const auto cost = moe::customisation_cost(layer, trunk);
  CHECK(cost.generic.parameters == kClasses * (kInputs + 1) + kInputs * 21);
  CHECK(cost.local.parameters == 4 * (kInputs + 1) + kClasses * 5);
  CHECK(cost.gate.parameters == 2 * (kInputs + 3));
  CHECK(cost.local.parameters + cost.gate.parameters == moe::num_parameters(layer));
  CHECK(cost.generic.multiply_adds == kClasses * kInputs + kInputs * 20);
  CHECK(cost.local.multiply_adds == 4 * kInputs + kClasses * 4);
  CHECK(cost.gate.multiply_adds == 2 * (kInputs + 2) + kClasses * kInputs);  // expert 0 says how sure it is
  CHECK(cost.local.bytes == moe::memory_bytes(layer.experts().set<1>()));
  CHECK(cost.generic.bytes >= static_cast<std::size_t>(cost.generic.parameters) * sizeof(float));
  CHECK(std::abs(cost.parameter_overhead() - (47.0 + 20) / (24 + 147)) < 1e-15);
  CHECK(std::abs(cost.operation_overhead() - (40.0 + 39) / (21 + 140)) < 1e-15);
  CHECK_THROWS_WITH(moe::CustomisationCost{}.parameter_overhead(),
                    ContainsSubstring("parameter_overhead: generic.parameters is 0, expected more than 0"));
  CHECK_THROWS_WITH(moe::CustomisationCost{}.operation_overhead(),
                    ContainsSubstring("operation_overhead: generic.multiply_adds is 0, expected more than 0"));
}
