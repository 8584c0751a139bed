// SPDX-License-Identifier: MIT
#include "moe/layer/film_experts.hpp"

#include "layer/fixtures.hpp"
#include "layer/gradient_check.hpp"
#include "moe/expert/film.hpp"
#include "support/catch.hpp"
#include "support/routings.hpp"

using Catch::Matchers::ContainsSubstring;
using moe::ExpertPool;
using moe::F64;
using moe::FilmExperts;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Step;
using moe::TopKGate;
using moe::VectorFilm;
using test::kHiddenDim;
using test::kModelDim;
using Linear = moe::BasicLinear<F64>;
using Mlp = moe::BasicMlp<F64>;
using LowRank = moe::BasicMlp<F64, moe::Identity>;
using Router = moe::BasicLinearRouter<F64>;
using Vector = FilmExperts<Mlp>;
template <class M>
using Modulated = FilmExperts<Mlp, moe::RoutedExperts<ExpertPool<moe::Film<M>>>>;

static_assert(moe::DifferentiableMixture<Vector> && moe::MixtureSkipsTokenGradient<Vector> &&
              moe::TakesExperts<Vector> && Vector::kPerToken);
static_assert(moe::DifferentiableMixture<Modulated<Linear>> && moe::DifferentiableExpert<moe::Film<LowRank>>);

namespace {

constexpr Index kTokens = 19, kExperts = 5, kFeatures = 13;

Mlp trunk() {
  Mlp expert({.input = kModelDim, .hidden = kHiddenDim, .output = kFeatures}, moe::Bias::Zero);
  test::randomise(expert, 3);
  return expert;
}
Vector vector_films() { return Vector(trunk(), VectorFilm<double>::random(kExperts, kFeatures, 4, 0.5)); }

template <class M>
Modulated<M> modulated(const M& like) {
  std::vector<moe::Film<M>> films(static_cast<std::size_t>(kExperts), moe::Film<M>(like));
  for (std::size_t e = 0; e < films.size(); ++e) test::randomise(films[e], 20 + e, 0.3);
  return Modulated<M>(trunk(), moe::RoutedExperts(ExpertPool(std::move(films))));
}
Modulated<Linear> full() { return modulated(Linear(2 * kFeatures, kFeatures)); }
Modulated<LowRank> low_rank() {
  return modulated(LowRank({.input = kFeatures, .hidden = 2, .output = 2 * kFeatures}, moe::Bias::Zero));
}

template <class M>
auto layer_around(M mixture, Index k = 3) {
  auto router = Router::random(mixture.num_experts(), kModelDim, 7);
  return moe::MoeLayer(std::move(router), TopKGate{.k = k}, std::move(mixture));
}

/// Some choices dropped, all of token 4.
Routing<double> some_routing() {
  auto routing = test::top_k_routing(test::probabilities_of(test::random_logits<double>(kTokens, kExperts, 3)), 3);
  for (Index a = 0; a < routing.num_assignments(); ++a)
    if (a % 7 == 2 || a / 3 == 4) routing.drop(a, moe::kDroppedByGate);
  return routing;
}

/// sum_i w_i (gamma_i o z + beta_i), an expert at a time; expert(e, z) gives the term.
template <class Expert>
Matrix<double> loop(const Matrix<double>& tokens, const Routing<double>& routing, const Expert& expert) {
  const Matrix<double> z = test::run(trunk(), tokens);
  Matrix<double> out = Matrix<double>::Zero(tokens.rows(), kFeatures);
  for (Index t = 0; t < tokens.rows(); ++t)
    for (std::size_t s = 0; s < routing.experts(t).size(); ++s)
      if (!routing.dropped(t)[s])
        out.row(t) += routing.weights(t)[s] * expert(routing.experts(t)[s], Matrix<double>(z.row(t))).row(0);
  return out;
}

template <class M>
Matrix<double> run(const M& mixture, const Matrix<double>& tokens, const Routing<double>& routing) {
  auto out = test::nan_matrix<double>(tokens.rows(), mixture.output_dim());
  mixture.forward(tokens, routing, Step{}, out);
  return out;
}

}  // namespace

TEST_CASE("FilmExperts: the fused form is the loop over experts", "[layer][property]") {
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto routing = some_routing();
  const Vector fused = vector_films();
  const auto expected = loop(tokens, routing, [&](Index e, const Matrix<double>& z) -> Matrix<double> {
    return z.cwiseProduct(fused.films().gamma().row(e)) + fused.films().beta().row(e);
  });
  CHECK(test::largest(Matrix<double>(run(fused, tokens, routing) - expected)) < 1e-10);
  CHECK(test::all_zero(run(fused, tokens, routing).row(4)));
  const auto check = [&](const auto& films) {
    const auto of_loop = loop(tokens, routing, [&](Index e, const Matrix<double>& z) -> Matrix<double> {
      const Matrix<double> made = test::run(films.films().experts()[e].maker(), z);
      return z.cwiseProduct(made.leftCols(kFeatures)) + made.rightCols(kFeatures);
    });
    CHECK(test::largest(Matrix<double>(run(films, tokens, routing) - of_loop)) < 1e-10);
  };
  check(full());
  check(low_rank());
}

TEST_CASE("FilmExperts: as made they are the trunk, whatever the router says", "[layer][property]") {
  const FilmExperts films(trunk(), kExperts);
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto p = test::probabilities_of(test::random_logits<double>(kTokens, kExperts, 3));
  const auto out = run(films, tokens, test::top_k_routing(p, kExperts));
  CHECK(test::largest(Matrix<double>(out - test::run(trunk(), tokens))) < 1e-12);
  CHECK(moe::num_parameters(films) == moe::num_parameters(trunk()) + 2 * kFeatures * kExperts);
}

TEST_CASE("FilmExperts: the trunk runs once for each token that has a choice", "[layer]") {
  const Vector films = vector_films();
  auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto routing = some_routing();
  Vector::Tape tape;
  Matrix<double> out(kTokens, kFeatures);
  films.forward(tokens, routing, Step{}, out, tape);
  CHECK(tape.rows.plan.num_rows() == kTokens - 1);
  tokens.row(4).setConstant(test::kNan<double>);  // nobody reads it
  auto gradient = moe::zeros_like(films);
  std::vector<double> dweight(static_cast<std::size_t>(routing.num_assignments()), 7);
  Matrix<double> dtokens(kTokens, kModelDim);
  films.forward(tokens, routing, Step{}, out, tape);
  films.backward(tokens, routing, Step{}, tape, test::random_matrix<double>(kTokens, kFeatures, 2), gradient, dweight,
                 dtokens);
  CHECK(dtokens.allFinite());
  CHECK(test::all_zero(dtokens.row(4)));
  CHECK(dweight[2] == 0);
  for (const double value : test::flatten(gradient)) REQUIRE(std::isfinite(value));
}

TEST_CASE("FilmExperts: gradients of a layer are central differences", "[layer][property]") {
  CHECK(test::layer_gradient_error(layer_around(vector_films()), Step{}) < 1e-6);
  CHECK(test::layer_gradient_error(layer_around(full(), 2), Step{}) < 1e-6);
  CHECK(test::layer_gradient_error(layer_around(low_rank(), 2), Step{}) < 1e-6);
}

TEST_CASE("FilmExperts: any threads and company give the same bits, forward and backward", "[layer][property]") {
  const auto layer = layer_around(vector_films());
  const auto tokens = test::random_matrix<double>(kTokens, kModelDim, 1);
  const auto out = test::forward(layer, tokens);
  for (Index t = 0; t < kTokens; t += 4)
    CHECK(test::same_bits(test::forward(layer, Matrix<double>(tokens.row(t))), Matrix<double>(out.row(t))));
  for (const auto& passes = test::on_thread_counts([&] { return test::TrainingPass(layer, tokens, out); });
       const auto& pass : passes) {
    CHECK(test::same_bits(pass.out, out));
    CHECK(test::same_bits(pass.dtokens, passes[0].dtokens));
    CHECK(test::same_parameters(pass.gradient, passes[0].gradient));
  }
}

TEST_CASE("FilmExperts: takes experts, is nothing of no tokens, and refuses what does not fit", "[layer][error]") {
  const Vector films = vector_films();
  const std::vector<Index> ids = {4, 0}, other = {2};
  CHECK(films.take(ids).films().gamma().row(0) == films.films().gamma().row(4));
  const auto joined = films.films().take(ids).concatenate(films.films().take(other));
  CHECK(joined.beta().row(2) == films.films().beta().row(2));
  CHECK(test::forward(layer_around(films), Matrix<double>(0, kModelDim)).rows() == 0);

  CHECK_THROWS_WITH(Vector(trunk(), VectorFilm<double>(kExperts, 3)),
                    "moe::FilmExperts: the modulation reads 3 features, expected 13 as the trunk gives");
  CHECK_THROWS_WITH(moe::Film<Linear>(Linear(5, 3)), ContainsSubstring("expected 6 outputs, scales and shifts"));
  const auto routing = some_routing();
  Vector::Tape tape;
  auto gradient = moe::zeros_like(films);
  CHECK_THROWS_WITH(films.require_backward(routing, tape, gradient), ContainsSubstring("no forward pass"));
  Matrix<double> out(kTokens, kFeatures);
  films.forward(test::random_matrix<double>(kTokens, kModelDim, 1), routing, Step{}, out, tape);
  CHECK_THROWS_WITH(films.require_backward(routing, tape, films), ContainsSubstring("the mixture itself"));
  CHECK_THROWS_WITH(films.require_backward(routing, tape, films.take(ids)), ContainsSubstring("gradient.gamma"));
  CHECK_THROWS_WITH(films.films().forward(out, test::routing_of({{0}}), Step{}, out),
                    ContainsSubstring("moe::VectorFilm::forward: tokens is"));
}
