// SPDX-License-Identifier: MIT
// Orders in which planes of experts are loaded while others compute, simulated: the hottest expert, bit first, of D2MoE
// (arXiv:2504.15299) against expert after expert, and against the least time that there is (johnson_chains). 8 experts
// of 3 levels, a few with most of the rows, 200 instances for each ratio of loading over computing. Rows run when their
// own level has come, so that a plane that many rows need may bring little to compute; beside it the published account,
// in which each plane computes for all rows that need it. Gains appear only where both take about equally long. The
// page level_pipeline loads and computes.
#include <array>
#include <fstream>
#include <string>

#include "support/heavy_tailed.hpp"
#include "support/page.hpp"

namespace {

constexpr std::array kRatios = {0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0};
constexpr std::size_t kEach = 6;

/// Per ratio: by ids over hottest first, in the mean and at most; the mean if planes compute; hottest over the bound;
/// and over the least time, in the mean and at most.
std::vector<double> numbers(std::uint64_t seed) {
  std::vector<double> result;
  for (const double ratio : kRatios) {
    std::array<double, kEach> of = {};
    for (std::uint64_t i = 0; i < 200; ++i) {
      auto jobs = systems::heavy_tailed(8, 3, 60, moe::RandomField(moe::Purpose::User, seed, i));
      const auto scaled = [&] {
        double load = 0, compute = 0;
        for (const auto& job : jobs) load += job.load, compute += job.compute;
        for (auto& job : jobs) job.load *= ratio * compute / load;
      };
      const auto gain = [&] {
        return moe::makespan(jobs, moe::expert_id_order(jobs)) /
               moe::makespan(jobs, moe::hottest_expert_bit_first(jobs));
      };
      scaled();
      of[0] += gain() / 200, of[1] = std::max(of[1], gain());
      of[3] += moe::makespan(jobs, moe::hottest_expert_bit_first(jobs)) /
               moe::makespan(jobs, moe::johnson_order(jobs)) / 200;
      const double hottest = moe::makespan(jobs, moe::hottest_expert_bit_first(jobs));
      const double above = hottest / moe::makespan(jobs, moe::johnson_chains(jobs));
      of[4] += above / 200, of[5] = std::max(of[5], above);
      for (auto& job : jobs) job.compute = static_cast<double>(job.rows);
      scaled();
      of[2] += gain() / 200;
    }
    result.insert(result.end(), of.begin(), of.end());
  }
  return result;
}

/// Writes a script for gnuplot: gains against ratios.
void draw(const std::vector<systems::Sample>& samples) {
  std::ofstream script("load_schedules.svg.gp");
  script
      << "set terminal svg size 640,400 background '#ffffff'\nset output 'load_schedules.svg'\nset logscale x 2\n"
         "set xlabel 'time of loading over time of computing'\nset ylabel 'time of a batch, by ids / hottest first'\n"
         "$gain << END\n";
  for (std::size_t i = 0; i < kRatios.size(); ++i)
    script << kRatios[i] << ' ' << samples[kEach * i].mean() << ' ' << samples[kEach * i + 2].mean() << '\n';
  script << "END\nplot $gain u 1:2 w lp t 'rows run at their own level', '' u 1:3 w lp t 'planes run for all rows'\n";
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"load_schedules", "2504.15299", "moe/serve/load_schedule.hpp"}, [](systems::Page& page) {
        const auto samples = page.over_seeds([](std::uint64_t seed) { return numbers(seed); });
        page.table({"loading / computing", "ids / hottest", "at most", "planes compute", "hottest / bound",
                    "hottest / least", "at most"});
        for (std::size_t i = 0; i < kRatios.size(); ++i)
          page.row(std::to_string(kRatios[i]).substr(0, 5),
                   {samples[kEach * i], samples[kEach * i + 1], samples[kEach * i + 2], samples[kEach * i + 3],
                    samples[kEach * i + 4], samples[kEach * i + 5]});
        draw(samples);
        page.expect("hottest first over Johnson's bound, ratio 1", samples[kEach * 3 + 3], {.low = 1, .high = 1.1});
        page.expect("gain where loading takes an eighth", samples[0], {.low = 0.99, .high = 1.05});
        page.claim("time by ids over hottest first, loading as long as computing", samples[kEach * 3],
                   {.low = 1.02, .high = 1.3});
      });
}
