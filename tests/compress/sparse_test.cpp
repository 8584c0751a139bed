// SPDX-License-Identifier: MIT
// Masks by Wanda and OWL, and matrices that do not store their zeros: the bits of floats with zeros, everywhere.
#include <limits>
#include <numeric>

#include "layer/fixtures.hpp"
#include "moe/compress/sparsify.hpp"
#include "moe/core/memory_bytes.hpp"
#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Bias;
using moe::ExpertMatrix;
using moe::F32;
using moe::Index;
using moe::Matrix;
using moe::PanelMatrix;
using moe::PanelOrder;
using moe::Sparse;
using moe::WeightMask;

namespace {

constexpr Index kExperts = 4;

/// Random weights of which about the given share is zero, some of them -0.
PanelMatrix<F32> with_zeros(Index outputs, Index inputs, double sparsity, PanelOrder order = PanelOrder::Plain) {
  Matrix<float> weights = test::random_matrix<float>(outputs, inputs, 3, 0.2);
  const moe::RandomField random(moe::Purpose::User, 5);
  for (Index o = 0; o < outputs; ++o)
    for (Index i = 0; i < inputs; ++i)
      if (random.uniform(o, i) < sparsity) weights(o, i) = random.uniform(i, o) < 0.1 ? -0.0f : 0.0f;
  return PanelMatrix<F32>::from(weights, order);
}

std::vector<float> norms(Index inputs, std::uint64_t seed) {
  std::vector<float> result;
  for (Index i = 0; i < inputs; ++i)
    result.push_back(static_cast<float>(0.1 + moe::RandomField(moe::Purpose::User, seed).uniform(i)));
  return result;
}

/// Every matrix of every expert by Wanda, with norms of its own.
WeightMask any_mask(const ExpertMatrix& matrix, const PanelMatrix<F32>& weights) {
  const double sparsity[] = {0, 0.5, 0.8, 0.97};
  return moe::wanda(weights, norms(weights.inputs(), std::uint64_t(matrix.expert)),
                    sparsity[(matrix.expert + (matrix.name == "down.weight" ? 1 : 0)) % 4]);
}

template <class E>
auto layer_of_experts(const moe::Widths& widths) {
  std::vector<E> experts;
  for (std::uint64_t e = 0; e < kExperts; ++e) {
    E expert(widths, Bias::Zero);
    test::randomise(expert, 10 * e, 0.2);
    experts.push_back(std::move(expert));
  }
  return moe::MoeLayer(moe::LinearRouter::random(kExperts, widths.input, 3), moe::TopKGate{.k = 2},
                       moe::ExpertPool<E>(std::move(experts)));
}

/// All bits that do not depend on whether weights have a gradient.
template <class A, class B>
void check_same_passes(const A& a, const B& b, const Matrix<float>& tokens) {
  CHECK(test::same_bits(test::forward(a, tokens), test::forward(b, tokens)));
  const auto dout = test::random_matrix<float>(tokens.rows(), a.output_dim(), 9);
  const test::TrainingPass of_a(a, tokens, dout);
  const test::TrainingPass of_b(b, tokens, dout);
  CHECK(test::same_bits(of_a.out, of_b.out));
  CHECK(test::same_bits(of_a.dtokens, of_b.dtokens));
  for (Index e = 0; e < kExperts; ++e)
    CHECK(test::same_bits(of_a.gradient.experts()[e].down_bias().matrix(),
                          of_b.gradient.experts()[e].down_bias().matrix()));
}

template <class Layer>
void check_sparse(const Layer& pruned) {
  const auto sparse = moe::skip_zeros(pruned);
  for (const Index tokens : {0, 1, 2, 7, 9, 90})
    for (const Index threads : {1, 3}) {
      test::ThreadExecutor executor(threads);
      const moe::UseExecutor use(executor);
      CAPTURE(tokens, threads);
      check_same_passes(sparse, pruned, test::random_matrix<float>(tokens, pruned.input_dim(), 5));
    }
}

}  // namespace

TEST_CASE("wanda: the largest weight goes where its input is small", "[compress]") {
  const Matrix<float> weights{{1, -4, 2}};
  const std::vector<float> columns = {10, 1, 3};  // scores 10, 4, 6
  const auto panels = PanelMatrix<F32>::from(weights);
  CHECK(moe::wanda(panels, columns, 1.0 / 3) == WeightMask{{1, 0, 1}});
  CHECK(moe::wanda(panels, columns, 2.0 / 3) == WeightMask{{1, 0, 0}});
  CHECK(moe::wanda(panels, columns, 0) == WeightMask{{1, 1, 1}});
  CHECK(moe::wanda(panels, columns, 1) == WeightMask{{0, 0, 0}});
  CHECK(moe::wanda(panels, std::vector<float>{0, 1, 3}, 0.34) == WeightMask{{0, 1, 1}});
  CHECK(moe::wanda(panels, std::vector<float>{4, 1, 2}, 0.34) == WeightMask{{0, 1, 1}});  // all 4: the lower input
  auto masked = panels;
  moe::apply_mask(masked, moe::wanda(panels, columns, 1.0 / 3));
  CHECK(masked.matrix() == Matrix<float>{{1, 0, 2}});
}

TEST_CASE("wanda: the lowest scores of every output go, exactly so many", "[compress][property]") {
  const Index outputs = 9, inputs = 29;
  const auto weights = PanelMatrix<F32>::from(test::random_matrix<float>(outputs, inputs, 1));
  const auto columns = norms(inputs, 2);
  const auto score = [&](Index o, Index i) {
    return std::abs(double(weights(o, i))) * double(columns[static_cast<std::size_t>(i)]);
  };
  for (const double sparsity : {0.1, 0.29, 0.5, 0.8}) {
    const WeightMask mask = moe::wanda(weights, columns, sparsity);
    for (Index o = 0; o < outputs; ++o) {
      Index zeros = 0;
      double most_gone = 0, least_kept = INFINITY;
      for (Index i = 0; i < inputs; ++i) {
        zeros += mask(o, i) == 0 ? 1 : 0;
        (mask(o, i) == 0 ? most_gone : least_kept) =
            mask(o, i) == 0 ? std::max(most_gone, score(o, i)) : std::min(least_kept, score(o, i));
      }
      CHECK(zeros == Index(std::floor(sparsity * double(inputs))));
      CHECK(most_gone <= least_kept);
    }
  }
  // A share of 0.29 of 100 is 28.999999999999996 in double.
  CHECK((moe::wanda(with_zeros(1, 100, 0), norms(100, 1), 0.29).array() == 0).count() == 29);
}

TEST_CASE("wanda: N:M holds in every block", "[compress][property]") {
  const auto weights = PanelMatrix<F32>::from(test::random_matrix<float>(5, 24, 1));
  for (const moe::ZerosIn pattern :
       {moe::ZerosIn{}, {.zeros = 1, .of = 3}, {.zeros = 0, .of = 8}, {.zeros = 6, .of = 6}}) {
    const WeightMask mask = moe::wanda(weights, norms(24, 4), pattern);
    for (Index o = 0; o < 5; ++o)
      for (Index b = 0; b < 24; b += pattern.of)
        CHECK((mask.row(o).segment(b, pattern.of).array() == 0).count() == pattern.zeros);
  }
}

TEST_CASE("wanda: what cannot be scored is named", "[compress][error]") {
  auto weights = with_zeros(3, 4, 0);
  const std::vector<float> ones(4, 1.0f);
  CHECK_THROWS_WITH(moe::wanda(weights, std::vector<float>(3, 1.0f), 0.5),
                    "moe::wanda: 3 norms, expected one per input = 4");
  CHECK_THROWS_WITH(moe::wanda(weights, std::vector<float>{1, 1, -1, 1}, 0.5),
                    "moe::wanda: the norm of input 2 is -1, expected a finite number >= 0");
  CHECK_THROWS_WITH(moe::wanda(weights, ones, 1.5), "moe::wanda: sparsity is 1.5, expected a value in [0, 1]");
  CHECK_THROWS_WITH(moe::wanda(weights, ones, moe::ZerosIn{.zeros = 1, .of = 3}),
                    "moe::wanda: of is 3, expected a divisor of the inputs = 4");
  CHECK_THROWS_WITH(moe::wanda(weights, ones, moe::ZerosIn{.zeros = 5, .of = 4}),
                    "moe::wanda: zeros is 5, expected 0 <= zeros <= of = 4");
  CHECK_THROWS_WITH(moe::apply_mask(weights, WeightMask(3, 3)), "moe::apply_mask: mask is [3, 3], expected [3, 4]");
  weights(1, 2) = INFINITY;
  CHECK_THROWS_WITH(moe::wanda(weights, ones, 0.5),
                    "moe::wanda: weight of output 1, input 2 is inf, expected a finite number");
}

TEST_CASE("owl_sparsities: layers with outliers keep more, and the mean stays", "[compress]") {
  const std::vector<double> ratios = {0.01, 0.03, 0.02, 0.05};
  const auto sparsities = moe::owl_sparsities(ratios, 0.7);
  CHECK_THAT(std::accumulate(sparsities.begin(), sparsities.end(), 0.0) / 4, Catch::Matchers::WithinAbs(0.7, 1e-12));
  // By hand: d = (0, .08, .04, .16), mean .07.
  CHECK_THAT(sparsities[0], Catch::Matchers::WithinAbs(0.77, 1e-12));
  CHECK_THAT(sparsities[3], Catch::Matchers::WithinAbs(0.61, 1e-12));
  CHECK(moe::owl_sparsities(std::vector<double>{0.2, 0.2}, 0.7) == std::vector<double>{0.7, 0.7});
  CHECK(moe::owl_sparsities(std::vector<double>{}, 0.7).empty());
  for (const double s : moe::owl_sparsities(ratios, 0.99, 0.5)) CHECK((s >= 0 && s <= 1));
  CHECK_THROWS_AS(moe::owl_sparsities(std::vector<double>{NAN}, 0.5), std::invalid_argument);
  CHECK_THROWS_AS(moe::owl_sparsities(ratios, -0.1), std::invalid_argument);
  // Scores 1, 1, 1, 1, 96: mean 20, of which 5 times is exceeded by none, 4 times by one.
  const auto weights = PanelMatrix<F32>::from(Matrix<float>{{1, -1, 1, -1, 48}});
  const std::vector<float> columns = {1, 1, 1, 1, 2};
  CHECK(moe::outlier_ratio(weights, columns) == 0);
  CHECK(moe::outlier_ratio(weights, columns, 4) == 0.2);
}

TEST_CASE("PanelMatrix<Sparse>: stores all weights but zeros, and gives them back", "[compress]") {
  for (const PanelOrder order : {PanelOrder::Plain, PanelOrder::Paired})
    for (const double sparsity : {0.0, 0.5, 0.9, 1.0})
      for (const Index outputs : {2, 32, 70})
        for (const Index inputs : {0, 1, 33, 130}) {
          CAPTURE(int(order), sparsity, outputs, inputs);
          const auto dense = with_zeros(outputs, inputs, sparsity, order);
          const auto sparse = PanelMatrix<Sparse>::from(dense);
          REQUIRE(test::same_bits(sparse.decoded().matrix(), dense.matrix()));
          CHECK(std::ranges::equal(sparse.decoded().span(), dense.span()));  // padding, too
          Index kept = 0;
          for (Index o = 0; o < outputs; ++o)
            for (Index i = 0; i < inputs; ++i) {
              kept += moe::detail::SparseStore::is_kept(dense(o, i)) ? 1 : 0;
              REQUIRE(test::same_bits(sparse.get(o, i), dense(o, i)));
            }
          CHECK(sparse.num_weights() == kept);
          CHECK(sparse.order() == order);
          CHECK(sparse.panels() == dense.panels());
          std::vector<double> values(static_cast<std::size_t>(outputs * inputs));
          sparse.read(std::span<double>(values));
          PanelMatrix<Sparse> copy(outputs, inputs, order);
          CHECK(copy.num_weights() == 0);
          copy.write(std::span<const double>(values));
          CHECK(test::same_bits(copy.decoded().matrix(), dense.matrix()));
        }
  const auto sparse = PanelMatrix<Sparse>::from(with_zeros(1024, 1024, 0.8));
  CHECK(100 * sparse.bytes() < std::size_t{40} * 4 * 1024 * 1024);  // 28% are not +0; a byte may hold four lanes
  CHECK_THROWS_AS(sparse.get(1024, 0), std::invalid_argument);
  CHECK_THROWS_AS(PanelMatrix<Sparse>(3, 2, PanelOrder::Paired), std::invalid_argument);
  CHECK(PanelMatrix<Sparse>().empty());
}

TEST_CASE("skip_zeros: a layer has the bits of its floats with zeros, forward and backward", "[compress]") {
  for (const moe::Widths& widths : {moe::Widths{.input = 130, .hidden = 70, .output = 19}, {5, 7, 3}, {64, 515, 64}}) {
    check_sparse(moe::mask_weights(layer_of_experts<moe::Glu>(widths), any_mask));
    check_sparse(moe::mask_weights(layer_of_experts<moe::Mlp>(widths), any_mask));
  }
}

TEST_CASE("skip_zeros: infinities and NaN meet zeros as they do among floats", "[compress]") {
  const auto pruned = moe::mask_weights(layer_of_experts<moe::Mlp>({64, 96, 64}), any_mask);
  auto tokens = test::random_matrix<float>(9, 64);
  tokens(2, 5) = std::numeric_limits<float>::infinity();
  tokens(3, 7) = -1e38f;
  tokens(4, 1) = 1e-42f;
  for (Index e = 0; e < kExperts; ++e) {
    const auto dense = test::run(pruned.experts()[e], tokens),
               sparse = test::run(moe::skip_zeros(pruned.experts()[e]), tokens);
    for (Index t = 0; t < 9; ++t)
      for (Index c = 0; c < 64; ++c)
        REQUIRE((test::same_bits(dense(t, c), sparse(t, c)) || (std::isnan(dense(t, c)) && std::isnan(sparse(t, c)))));
  }
}

TEST_CASE("skip_zeros: weights become state, which copies share, and floats again", "[compress]") {
  const auto layer = layer_of_experts<moe::Glu>({.input = 64, .hidden = 96, .output = 64});
  const auto pruned = moe::mask_weights(layer, [](const ExpertMatrix&, const PanelMatrix<F32>& weights) {
    return moe::wanda(weights, std::vector<float>(std::size_t(weights.inputs()), 1.0f), 0.9);
  });
  const auto sparse = moe::skip_zeros(pruned);
  CHECK(moe::num_state(sparse) == kExperts * (2 * 96 * 64 + 64 * 96));
  CHECK(moe::num_parameters(sparse) == moe::num_parameters(layer) - kExperts * (2 * 96 * 64 + 64 * 96));
  CHECK(4 * moe::memory_bytes(sparse) < moe::memory_bytes(layer));
  const auto gradient = moe::zeros_like(sparse);
  CHECK(gradient.experts()[1].down().source().matrix == sparse.experts()[1].down().source().matrix);
  const auto floats = moe::dequantise(sparse);
  CHECK(test::same_parameters(floats, pruned));
  CHECK(sparse.experts()[2].down().num_weights() == 64 * (96 - 86));
  auto broken = layer;
  broken.experts()[2].down().set(2, 1, test::kNan<float>);
  CHECK_THROWS_WITH(moe::mask_weights(broken, any_mask),
                    "moe::mask_weights: expert 2, down.weight: moe::wanda: weight of output 2, input 1 is nan, "
                    "expected a finite number");
}
