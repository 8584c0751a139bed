// SPDX-License-Identifier: MIT
// The text model with its experts in 1 to 8 bits, by four ways to find the codes: rounded to nearest; HQQ, which looks
// at the weights alone; AWQ and GPTQ, which look at what every expert reads of training text. How many bits per
// character of held-out text that costs. Frantar et al., "GPTQ" (arXiv:2210.17323); Lin et al., "AWQ"
// (arXiv:2306.00978). GPTQ pays most where bits are fewest, as published. The picture shows all, and what single
// experts lose in their outputs.
#include <array>
#include <fstream>
#include <string>

#include <moe/compress/awq.hpp>
#include <moe/compress/gptq.hpp>
#include <moe/compress/hqq.hpp>
#include <moe/compress/quantise_calibrated.hpp>

#include "support/page.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;

constexpr std::array kBits = {1, 2, 3, 4, 8};
constexpr std::array kMethods = {"to nearest", "HQQ", "AWQ", "GPTQ"};
constexpr std::size_t kNumbers = kMethods.size() * kBits.size();

moe::WeightFormat format_of(int bits) { return moe::WeightFormat::planes(bits, 32); }

/// Places all over the text that is trained on, both kinds alike.
moe::Calibration calibrated(const systems::TextModel& model, Index places_per_kind) {
  moe::Calibration sum(model.layer().layer().experts());
  for (const auto* kind : {&systems::text().prose, &systems::text().code}) {
    const Index trained = std::ssize(*kind) - systems::Text::kHeldOut - systems::kContext;
    std::vector<Index> places;
    for (Index i = 0; i < places_per_kind; ++i) places.push_back(systems::kContext + i * trained / places_per_kind);
    sum += moe::calibrate(model.layer(), systems::text_at(*kind, places).rows);
  }
  return sum;
}

/// The model with experts of codes: as floats of the same bits, of which everything here is compiled.
systems::TextModel quantised(const systems::TextModel& model, int bits, std::size_t method,
                             const moe::Calibration& calibration, moe::QuantisationReport& report) {
  const auto by = [&](const auto& quantiser) -> systems::TextModel {
    const auto few =
        moe::quantise(model.layer().layer().experts(), format_of(bits), quantiser, calibration, {.report = &report});
    systems::TextModel result = model;
    result.layer().layer().experts() = moe::dequantise(few);
    return result;
  };
  if (method == 0) return by(moe::RoundToNearest{});
  if (method == 1) return by(moe::Hqq{});
  if (method == 2) return by(moe::Awq{});
  return by(moe::Gptq{});
}

/// Bits per character in full, then of each method with each number of bits; then errors of outputs in the same order.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const systems::TextModel model = systems::text_model(page, seed);
  const moe::Calibration calibration = calibrated(model, page.amount<Index>(6000, 400));
  std::vector<double> result = {systems::held_out_bits(model)}, errors;
  for (std::size_t method = 0; method < kMethods.size(); ++method)
    for (const int bits : kBits) {
      moe::QuantisationReport report;
      result.push_back(systems::held_out_bits(quantised(model, bits, method, calibration, report)));
      errors.push_back(report.output_error());
    }
  result.insert(result.end(), errors.begin(), errors.end());
  return result;
}

/// Writes a script for gnuplot: on the left what all methods cost, on the right the output errors of each expert.
void draw(const systems::Page& page, const std::vector<systems::Sample>& samples, const std::string& path) {
  const systems::TextModel model = systems::text_model(page, page.first_seed());
  const moe::Calibration calibration = calibrated(model, page.amount<Index>(6000, 400));
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 1000,420 font 'sans-serif,13' background '#ffffff'\nset output '" << path << "'\n";
  for (std::size_t method = 0; method < kMethods.size(); ++method) {
    script << "$cost" << method << " << END\n";
    for (std::size_t b = 0; b < kBits.size(); ++b)
      script << kBits[b] << ' ' << samples[1 + method * kBits.size() + b].mean() << '\n';
    script << "END\n$error" << method << " << END\n";
    moe::QuantisationReport report;
    quantised(model, 3, method, calibration, report);
    for (const moe::MatrixReport& matrix : report.matrices)
      if (matrix.name == "up.weight") script << matrix.expert << ' ' << matrix.output_error << '\n';
    script << "END\n";
  }
  script << "set multiplot layout 1,2\nset border 3\nset tics nomirror\nset grid ytics lc '#dddddd'\n"
            "set title 'Bits per character of held-out text'\nset xlabel 'bits of a weight, scales apart'\n"
            "set xrange [0.8:8.2]\nset key top right\nfull = "
         << samples[0].mean() << "\nplot full title 'floats' lc '#999999' dt 2";
  constexpr std::array kColours = {"#e41a1c", "#ff7f00", "#4daf4a", "#377eb8"};
  for (std::size_t method = 0; method < kMethods.size(); ++method)
    script << ", $cost" << method << " using 1:2 with linespoints pt 7 ps 0.6 lc '" << kColours[method] << "' title '"
           << kMethods[method] << "'";
  script << "\nset title 'Relative error of outputs of first matrices, 3 bits'\nset xlabel 'expert'\n"
            "set xrange [-0.7:15.7]\nset yrange [0:*]\nset key bottom right\nplot ";
  for (std::size_t method = 0; method < kMethods.size(); ++method)
    script << (method ? ", " : "") << "$error" << method << " using 1:2 with points pt 7 ps 0.7 lc '"
           << kColours[method] << "' title '" << kMethods[method] << "'";
  script << "\nunset multiplot\n";
  script.close();
  if (!script) moe::fail_environment("few_bits: cannot write ", path, ".gp");
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"few_bits", "2210.17323", "moe/compress/gptq.hpp"}, [](systems::Page& page) {
    const auto samples = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
    const auto print = [&](const char* title, std::size_t first) {
      page.table({title, "1 bit", "2 bits", "3 bits", "4 bits", "8 bits"});
      for (std::size_t method = 0; method < kMethods.size(); ++method) {
        const auto begin = samples.begin() + static_cast<std::ptrdiff_t>(first + method * kBits.size());
        page.row(kMethods[method], {begin, begin + static_cast<std::ptrdiff_t>(kBits.size())});
      }
    };
    page.table({"bits per character", "held out"});
    page.row("floats", {samples[0]});
    print("bits per character", 1);
    print("relative error of outputs", 1 + kNumbers);
    draw(page, samples, "few_bits.svg");

    const systems::Sample& full = samples[0];
    const auto nearest = [&](std::size_t bits) { return samples[1 + bits] - full; };  // places in kBits
    const systems::Sample gptq = samples[1 + 3 * kBits.size() + 1] - full;
    page.expect("4 bits to nearest add", nearest(3), {.high = 0.05});
    page.expect("3 bits to nearest add", nearest(2), {.high = 0.12});
    page.expect("2 bits to nearest add", nearest(1), {.low = 0.25});
    page.claim("what GPTQ adds over what rounding to nearest adds, 2 bits", gptq / nearest(1), {.high = 0.8});
  });
}
