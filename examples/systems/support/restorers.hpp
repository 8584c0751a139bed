// SPDX-License-Identifier: MIT
// Models that give what images lack: a mixture of whole experts, and one whose experts only scale and shift the
// features of a trunk that they share, below one MLP. And what their routers know of the weather.
#pragma once

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include <moe/layer/film_experts.hpp>
#include <moe/router/uncertain.hpp>

#include "task_labels.hpp"
#include "train.hpp"
#include "weather.hpp"
#include "with_head.hpp"

namespace systems {

/// GELU(x W^T + a) o (x V^T + b), the trunk of the authors' code.
class Star : public moe::StagedExpert<Star, moe::F32> {
 public:
  using Tape = moe::StagedExpert<Star, moe::F32>::Tape<Star>;
  Star(moe::Index outputs, moe::Index inputs, std::uint64_t seed)
      : weight_(2 * outputs, inputs, moe::PanelOrder::Paired),
        bias_(moe::PanelMatrix<moe::F32>::bias(2 * outputs, moe::PanelOrder::Paired)) {
    weight_.randomise(moe::RandomField(moe::Purpose::Initialise, seed), 1 / std::sqrt(static_cast<double>(inputs)));
  }
  moe::Index input_dim() const { return weight_.inputs(); }
  moe::Index output_dim() const { return weight_.outputs() / 2; }
  template <class Self>
  static auto stages(Self& self) {
    return std::tuple{moe::make_stage<moe::Gated<moe::GeGlu>>(self.weight_, self.bias_)};
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("weight", self.weight_...);
    f("bias", self.bias_...);
  }

 private:
  moe::PanelMatrix<moe::F32> weight_, bias_;
};

using SureRouter = moe::UncertainRouter<moe::LinearRouter>;
using FilmRestorer = WithHead<moe::MoeLayer<SureRouter, moe::TopKGate, moe::FilmExperts<Star>>, moe::Mlp>;
using FullRestorer = moe::MoeLayer<SureRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;

struct RestorerSizes {
  moe::Index experts = 8, chosen = 4, features = 192, hidden = 256;
};

inline SureRouter sure_router(moe::Index experts, std::uint64_t seed) {
  return SureRouter(moe::LinearRouter::random(experts, kPixels, seed, moe::Bias::Zero),
                    {.passes = 5, .rate = 0.1, .phase = moe::DropoutPhase::Training});
}

inline FullRestorer full_restorer(const RestorerSizes& sizes, std::uint64_t seed) {
  const moe::Widths widths{.input = kPixels, .hidden = sizes.hidden, .output = kPixels};
  return {sure_router(sizes.experts, seed + 1), moe::TopKGate{.k = sizes.chosen},
          moe::ExpertPool<moe::Mlp>::random(sizes.experts, widths, seed + 4)};
}

inline FilmRestorer film_restorer(const RestorerSizes& sizes, std::uint64_t seed) {
  const auto films = moe::VectorFilm<float>::random(sizes.experts, sizes.features, seed + 9, /*deviation=*/0.3);
  return {{sure_router(sizes.experts, seed + 1), moe::TopKGate{.k = sizes.chosen},
           moe::FilmExperts(Star(sizes.features, kPixels, seed + 2), films)},
          moe::Mlp::random({.input = sizes.features, .hidden = sizes.hidden, .output = kPixels}, seed + 3)};
}

/// Trains it on noise, blur and rain in turns.
template <class Model>
void train_restorer(Model& model, std::uint64_t updates, std::uint64_t seed) {
  train(model, {.updates = updates, .rate = 4e-3, .max_norm = 5, .balance = 0.03}, seed, [&](std::uint64_t update) {
    const moe::Matrix<float> clean = draw_batch(digits().train, 64, seed, update).rows;
    const auto of = [](moe::Index i) { return kSeenWeather[static_cast<std::size_t>(i) % kSeenWeather.size()]; };
    moe::Matrix<float> seen = in_weather(clean, of, seed + 1000, update);
    return Regression{seen, clean - seen};
  });
}

template <class Model>
moe::Matrix<float> restored(const Model& model, const moe::Matrix<float>& images) {
  return images + outputs(model, images);
}

/// Areas under the curve that tells images of a weather from those of all that was seen, by how little the router knows
/// of them: mutual information, entropy, variance.
inline std::vector<double> tells(const SureRouter& router, Weather weather, std::uint64_t seed) {
  const SureRouter of_many(router.router(), {.passes = 20, .rate = router.dropout().rate});
  const moe::Index each = digits().test.size(), seen = std::ssize(kSeenWeather);
  moe::Matrix<float> scores((seen + 1) * each, 3), unseen = moe::Matrix<float>::Zero((seen + 1) * each, 3);
  unseen.bottomRows(each).setOnes();
  moe::Scratch scratch;
  moe::RouterUncertainty found;
  for (moe::Index w = 0; w <= seen; ++w) {
    const moe::Matrix<float> images = test_images(w < seen ? kSeenWeather[static_cast<std::size_t>(w)] : weather, seed);
    of_many.uncertainty(images, {moe::Step{}, scratch}, found);
    for (std::size_t i = 0; i < static_cast<std::size_t>(each); ++i)
      scores.row(w * each + static_cast<moe::Index>(i)) << static_cast<float>(found.mutual_information[i]),
          static_cast<float>(found.predictive_entropy[i]), static_cast<float>(found.variance[i]);
  }
  return {area_under_curve(scores, unseen, 0), area_under_curve(scores, unseen, 1),
          area_under_curve(scores, unseen, 2)};
}

}  // namespace systems
