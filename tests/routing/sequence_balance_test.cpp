// SPDX-License-Identifier: MIT
#include "moe/routing/balance/sequence_balance.hpp"

#include <map>

#include "moe/routing/balance/load_balancing.hpp"
#include "support/catch.hpp"
#include "support/gradient.hpp"
#include "support/routings.hpp"
#include "support/text.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::Matrix;
using moe::RoutingGradient;
using moe::Step;

namespace {

template <class S>
double value(const Matrix<S>& score, const moe::Routing<S>& routing, const Step& step = {}) {
  RoutingGradient<S> ignored;
  return moe::sequence_balance_loss<S>(score, routing, step, 1, ignored);
}

/// Scores as sigmoids give them, of no particular sum.
template <class S>
Matrix<S> sigmoids(Index rows, Index cols) {
  return test::random_logits<S>(rows, cols).unaryExpr([](S z) { return 1 / (1 + std::exp(-z)); });
}

/// Ids in no order, with padding: what steps refer to.
struct Batch {
  std::vector<std::int64_t> group;
  std::vector<std::uint8_t> valid;

  explicit Batch(Index num_tokens, Index num_sequences) : valid(test::every_nth_padding(num_tokens, 5)) {
    const moe::RandomField random(moe::Purpose::User, 3);
    for (Index t = 0; t < num_tokens; ++t)
      group.push_back(-7 * static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(num_sequences), t)));
  }
  Step step() const {
    Step step;
    step.group_id = group;
    step.valid = valid;
    return step;
  }
};

/// Sequence by sequence from the formula.
double reference(const Matrix<double>& score, const moe::Routing<double>& routing, const Step& step) {
  std::map<std::int64_t, std::vector<Index>> sequences;
  for (Index t = 0; t < score.rows(); ++t)
    if (step.is_valid(t)) sequences[step.group(t)].push_back(t);
  double sum = 0;
  for (const auto& [id, tokens] : sequences)
    for (Index e = 0; e < score.cols(); ++e) {
      double named = 0, choices = 0, mean = 0;
      for (const Index t : tokens) {
        choices += static_cast<double>(routing.experts(t).size());
        for (const Index chosen : routing.experts(t)) named += chosen == e ? 1 : 0;
        mean += score(t, e) / score.row(t).sum() / static_cast<double>(tokens.size());
      }
      if (choices != 0) sum += static_cast<double>(score.cols()) * named / choices * mean;
    }
  return sum / static_cast<double>(sequences.size());
}

}  // namespace

TEST_CASE("sequence_balance_loss: what a batch evens out, a sequence does not", "[loss]") {
  Matrix<double> score = Matrix<double>::Zero(6, 3);
  std::vector<std::int64_t> group;
  for (Index t = 0; t < 6; ++t) {
    score(t, t / 2) = 0.7;  // of no sum 1
    group.push_back(10 + t / 2);
  }
  const auto routing = test::top_k_routing(score, 1);
  Step step;
  step.group_id = group;
  CHECK(value(score, routing, step) == 3);
  CHECK_THAT(value(score, routing), WithinAbs(1, 1e-15));  // as one sequence
}

TEST_CASE("sequence_balance_loss: even use gives 1, every sequence counts once", "[loss]") {
  const Matrix<double> even = Matrix<double>::Constant(8, 4, 0.25);
  CHECK(value(even, test::routing_of({{0}, {1}, {2}, {3}, {0}, {1}, {2}, {3}})) == 1);
  // Three tokens on one of two experts, and a sequence of one token that is as even as can be: (2 + 1) / 2.
  auto score = test::matrix<double>({{1, 0}, {1, 0}, {1, 0}, {.5, .5}});
  const std::vector<std::int64_t> group{4, 4, 4, 9};
  Step step;
  step.group_id = group;
  CHECK(value(score, test::routing_of({{0}, {0}, {0}, {1}}), step) == 1.5);
}

TEST_CASE("sequence_balance_loss: follows the formula for sequences that do not stand together", "[loss]") {
  for (const Index sequences : {1, 3, 90}) {
    CAPTURE(sequences);
    const Batch batch(300, sequences);
    const auto score = sigmoids<double>(300, 6);
    auto routing = test::random_ragged_routing(300, 6);
    routing.drop(5, moe::kDroppedByCapacity);
    CHECK_THAT(value(score, routing, batch.step()), WithinAbs(reference(score, routing, batch.step()), 1e-12));
  }
}

TEST_CASE("sequence_balance_loss: one sequence with probabilities is the loss of the batch", "[loss]") {
  const auto p = test::probabilities_of(test::random_logits<double>(40, 6));
  const auto routing = test::top_k_routing(p, 2);
  RoutingGradient<double> ignored;
  CHECK_THAT(value(p, routing), WithinAbs(moe::load_balancing_loss<double>(p, routing, Step{}, 1, ignored), 1e-13));
}

TEST_CASE("sequence_balance_loss: the size of a token's scores means nothing", "[loss][property]") {
  const Batch batch(40, 3);
  const auto score = sigmoids<double>(40, 6);
  Matrix<double> scaled = score;
  for (Index t = 0; t < 40; ++t) scaled.row(t) *= static_cast<double>(t + 1);
  const auto routing = test::top_k_routing(score, 2);
  CHECK_THAT(value(scaled, routing, batch.step()), WithinAbs(value(score, routing, batch.step()), 1e-14));
}

TEST_CASE("sequence_balance_loss: gradient equals central differences, the normalisation included", "[loss]") {
  const Batch batch(17, 3);
  auto score = sigmoids<double>(17, 5);
  const auto routing = test::top_k_routing(score, 2);
  RoutingGradient<double> gradient;
  moe::sequence_balance_loss<double>(score, routing, batch.step(), 0.3, gradient);
  const auto loss = [&] { return 0.3 * value(score, routing, batch.step()); };
  CHECK(test::gradient_error(loss, score, gradient.probability) < 1e-6);
  const Matrix<double> once = gradient.probability;
  moe::sequence_balance_loss<double>(score, routing, batch.step(), 0.3, gradient);
  CHECK(gradient.probability == 2 * once);
}

TEST_CASE("sequence_balance_loss: any number of threads gives the same bits", "[loss]") {
  const Batch batch(1300, 9);
  const auto score = sigmoids<float>(1300, 7);
  const auto routing = test::top_k_routing(score, 2);
  CHECK(test::all_equal(test::on_thread_counts([&] {
    RoutingGradient<float> gradient;
    const double loss = moe::sequence_balance_loss<float>(score, routing, batch.step(), 0.01, gradient);
    return std::pair(loss, gradient.probability);
  })));
}

TEST_CASE("sequence_balance_loss: padding and scores of 0 leave no trace", "[loss]") {
  const auto score = sigmoids<double>(3, 4);
  const auto routing = test::top_k_routing(score, 2);
  Matrix<double> padded = test::nan_matrix<double>(4, 4);
  padded.topRows(3) = score;
  auto longer = test::routing_of({{0, 1}, {0, 1}, {0, 1}, {3, 3}});
  std::ranges::copy(routing.experts(), longer.experts().begin());
  const std::vector<std::uint8_t> valid{1, 1, 1, 0};
  const std::vector<std::int64_t> group{0, 0, 0, 1};
  Step step;
  step.valid = valid;
  step.group_id = group;
  RoutingGradient<double> gradient;
  CHECK(moe::sequence_balance_loss<double>(padded, longer, step, 1, gradient) == value(score, routing));
  CHECK(gradient.probability.row(3).isZero(0));

  Matrix<double> zero = score;
  zero.row(1).setZero();
  RoutingGradient<double> of_zero;
  CHECK(std::isfinite(moe::sequence_balance_loss<double>(zero, routing, Step{}, 1, of_zero)));
  CHECK(of_zero.probability.row(1).isZero(0));
  CHECK(test::largest(of_zero.probability) > 0);
}

TEST_CASE("sequence_balance_loss: nothing to count gives 0, and what does not fit is an error", "[loss][error]") {
  const Matrix<double> score = Matrix<double>::Constant(2, 3, 0.4);
  const std::vector<std::uint8_t> none(2, 0);
  Step padding;
  padding.valid = none;
  CHECK(value(score, test::routing_of({{0}, {2}}), padding) == 0);
  CHECK(value(score, test::routing_of({{}, {}})) == 0);
  CHECK(value(Matrix<double>(0, 3), moe::Routing<double>{}) == 0);
  CHECK(test::message_of([&] { value(score, test::routing_of({{0}})); }) ==
        "moe::sequence_balance_loss: routing has 1 tokens, expected num_tokens = 2");
  CHECK(test::message_of([&] {
          value(score, test::routing_of({{0}, {3}}));
        }) == "moe::sequence_balance_loss: assignment 1 names expert 3, expected 0 <= expert < num_experts = 3");
  const std::vector<std::int64_t> short_group(1);
  Step step;
  step.group_id = short_group;
  CHECK(test::message_of([&] {
          value(score, test::routing_of({{0}, {1}}), step);
        }) == "moe::sequence_balance_loss: step.group_id has 1 entries, expected 0 or num_tokens = 2");
}
