// SPDX-License-Identifier: MIT
// Feature modulation in place of experts: all share one trunk, and each only scales and shifts its features by vectors
// of its own; the router runs several times with parts of its input dropped, and how far the passes disagree says how
// sure it is. Zhang et al., "Efficient deweather mixture-of-experts with uncertainty-aware feature-wise linear
// modulation" (MoFME, arXiv:2312.16610). Here: digits in noise, blur and rain are restored as well as by whole experts,
// with a third of their parameters; but the trunk alone does as well, too, and whole experts have a layer less than it.
// Snow and fog, which no training saw, raise the mutual information of the passes, while their entropy falls. Of the
// router over whole experts fog is not always told. The picture, mofme.svg, shows what is restored.
#include <array>
#include <cstdio>
#include <fstream>

#include "support/page.hpp"
#include "support/restorers.hpp"

namespace {

using moe::Index;
using systems::Weather;

constexpr systems::RestorerSizes kSizes;
constexpr systems::RestorerSizes kAlone{.experts = 1, .chosen = 1};  // one scale and shift, part of what follows

/// Writes a script for gnuplot: a weather in each row; of two digits what is seen, what two models make of it, and what
/// it was.
template <class A, class B>
void draw(const A& film, const B& full, std::uint64_t seed, const std::string& path) {
  constexpr Index kStep = systems::kSide + 1;
  constexpr std::array kTitles = {"seen", "FiLM", "MoE", "clean"};
  const auto middle = [](std::size_t i) { return static_cast<Index>(i) * kStep + kStep / 2; };
  moe::Matrix<float> all = moe::Matrix<float>::Constant(5 * kStep, 8 * kStep, 0.5f);
  for (Index w = 0; w < 5; ++w) {
    const moe::Matrix<float> seen = test_images(static_cast<Weather>(w), seed);
    const std::array<moe::Matrix<float>, 4> columns = {seen, systems::restored(film, seen),
                                                       systems::restored(full, seen), systems::digits().test.rows};
    for (Index i = 0; i < 8; ++i)
      for (Index p = 0; p < systems::kPixels; ++p)
        all(w * kStep + p / systems::kSide, i * kStep + p % systems::kSide) =
            columns[static_cast<std::size_t>(i % 4)](w + 5 * (i / 4), p);
  }
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 820,520 font 'sans-serif,13' background '#ffffff'\nset output '" << path
         << "'\n$images << END\n"
         << all
         << "\nEND\nset palette gray\nset cbrange [0:1]\nunset colorbox\nset border 0\n"
            "set yrange [*:*] reverse\nset size ratio -1\nunset xtics\nset ytics scale 0 (";
  for (std::size_t w = 0; w < systems::kWeatherNames.size(); ++w)
    script << (w ? ", " : "") << '\'' << systems::kWeatherNames[w] << "' " << middle(w);
  script << ")\nset x2tics scale 0 (";
  for (std::size_t i = 0; i < 8; ++i) script << (i ? ", " : "") << '\'' << kTitles[i % 4] << "' " << middle(i);
  script << ")\nplot $images matrix with image notitle\n";
  script.close();
  if (!script) moe::fail_environment("mofme: cannot write ", path, ".gp");
}

/// The first numbers of each model, and of what is seen.
constexpr std::size_t kPerModel = 5;

/// Per model its parameters, and PSNR in noise, blur, rain and their mean; of the routers of the last two, what tells
/// snow, then fog.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  std::vector<double> all;
  const auto add = [&](double parameters, const auto& restore) {
    all.push_back(parameters);
    double sum = 0;
    for (const Weather weather : systems::kSeenWeather) {
      all.push_back(systems::psnr(restore(test_images(weather, seed)), systems::digits().test.rows));
      sum += all.back();
    }
    all.push_back(sum / static_cast<double>(systems::kSeenWeather.size()));
  };
  const auto trained = [&](auto model, const char* name) {
    systems::train_restorer(model, page.amount<std::uint64_t>(3000, 20), seed);
    add(static_cast<double>(moe::num_parameters(model)),
        [&](const auto& seen) { return systems::restored(model, seen); });
    std::fprintf(stderr, "mofme, seed %d: %s done\n", static_cast<int>(seed), name);
    return model;
  };
  add(0, [](const auto& seen) { return seen; });
  trained(systems::film_restorer(kAlone, seed), "trunk alone");
  const auto film = trained(systems::film_restorer(kSizes, seed), "modulated trunk");
  const auto full = trained(systems::full_restorer(kSizes, seed), "whole experts");
  for (const auto* router : {&film.layer().router(), &full.router()})
    for (const Weather weather : {Weather::Snow, Weather::Fog})
      std::ranges::copy(tells(*router, weather, seed), back_inserter(all));
  if (seed == page.first_seed()) draw(film, full, seed, "mofme.svg");
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"mofme", "2312.16610", "moe/layer/film_experts.hpp"}, [](systems::Page& page) {
    constexpr std::array kModels = {"what is seen", "trunk alone", "trunk, 8 modulations", "8 whole experts"};
    const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
    const auto of = [&](std::size_t model, std::size_t i) { return samples[model * kPerModel + i]; };
    page.table({"PSNR in dB", "parameters", "noise", "blur", "rain", "mean"});
    for (std::size_t m = 0; m < kModels.size(); ++m)
      page.row(kModels[m], {of(m, 0), of(m, 1), of(m, 2), of(m, 3), of(m, 4)});
    const auto area = [&](std::size_t i) { return samples[kModels.size() * kPerModel + i]; };
    page.table({"unseen weather, area under curve", "mutual inf.", "entropy", "variance"});
    constexpr std::array kUnseen = {"snow, modulations", "fog, modulations", "snow, whole experts",
                                    "fog, whole experts"};
    for (std::size_t i = 0; i < kUnseen.size(); ++i)
      page.row(kUnseen[i], {area(3 * i), area(3 * i + 1), area(3 * i + 2)});
    page.expect("parameters over those of whole experts", of(2, 0) / of(3, 0), {.high = 0.4});
    page.expect("dB of modulations above the trunk alone", of(2, 4) - of(1, 4), {.low = -0.2, .high = 0.2});
    page.expect("area under the curve of mutual information, snow", area(0), {.low = 0.6});
    page.expect("area under the curve of mutual information, fog", area(3), {.low = 0.6});
    page.claim("dB of 8 modulations of a trunk above 8 whole experts", of(2, 4) - of(3, 4), {.low = -0.2});
  });
}
