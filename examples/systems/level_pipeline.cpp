// SPDX-License-Identifier: MIT
// Loading experts plane by plane while others compute, the pipeline of D2MoE (arXiv:2504.15299), from disk: 16 GLU
// experts of 512 x 1024 in 2, 3 and 4 bits, read past the page cache of the system, one core reading and one computing.
// Milliseconds of a call by two orders of loading, against what the model of load_schedules predicts: from reading and
// computing measured alone, which a machine that does other things does not keep; from the means of both in the calls
// themselves; and from the seconds of each job of the same call, which leaves nothing but what lies between jobs: a
// thread that starts, and waking up. On a machine that others kept busy calls took 12% longer than the last says
// (sd 5%), so that times which vary are not all of what the model leaves out. Bits are those of all experts in memory.
#include <array>
#include <numeric>
#include <string>

#include <moe/compress/quantise.hpp>
#include <moe/expert/glu.hpp>
#include <moe/serve/pipelined_experts.hpp>

#include "support/heavy_tailed.hpp"
#include "support/level_costs.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using E = moe::BasicGlu<moe::Quantised>;
using File = moe::NestedExpertFile<E>;

constexpr std::array kBits = {2, 3, 4};
constexpr Index kLevels = 3, kExperts = 16, kDim = 512, kHidden = 1024;

std::vector<Index> as_they_came(std::size_t jobs) {
  std::vector<Index> order(jobs);
  std::iota(order.begin(), order.end(), Index{0});
  return order;
}

/// Per schedule: milliseconds predicted three times and measured, and what of them was read, computed and waited for;
/// then reading and computing measured alone; how many calls have other bits.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  moe::SerialExecutor serial;
  const moe::UseExecutor use(serial);
  std::filesystem::create_directories(page.cache());
  const auto path = page.cache() / "level_pipeline.safetensors";
  const auto pool = moe::quantise(moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kHidden, seed),
                                  moe::WeightFormat::planes(kBits.back(), 32));
  moe::save_nested_experts(path, pool, kBits);
  const auto file = std::make_shared<const File>(path, pool[0]);
  std::vector<Index> ids;  // of the virtual expert of each token
  for (const auto& job : systems::heavy_tailed(kExperts, kLevels, 60, moe::RandomField(moe::Purpose::User, seed)))
    ids.insert(ids.end(), static_cast<std::size_t>(job.compute), job.expert * kLevels + job.level);
  moe::DispatchPlan plan;
  plan.build(moe::Routing<float>::from(std::ssize(ids), ids, {}, kExperts * kLevels), kExperts * kLevels);
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(std::ssize(ids), kDim);
  const auto levels = moe::nested_experts(pool, kBits);
  moe::RowBuffer<float> rows, expected;
  rows.resize(plan.num_rows(), levels.row_width());
  expected.resize(plan.num_rows(), levels.row_width());
  moe::Scratch scratch;
  const moe::Step step;
  levels.forward(tokens, plan, {step, scratch}, expected);
  const auto jobs = moe::load_jobs(plan, kLevels, systems::costs_of(path, *file));
  std::vector<double> result;
  double load = 0, compute = 0, differs = 0;
  for (const auto& job : jobs) load += job.load, compute += job.compute;
  for (const moe::LoadSchedule schedule : {moe::hottest_expert_bit_first, moe::expert_id_order}) {
    const moe::PipelinedExperts<E> experts(file, std::size_t{1} << 30, schedule);
    std::vector<double> times, own;  // measured, and foretold from the seconds of each job of the same call
    for (int run = 0; run < page.amount(9, 1); ++run) {
      systems::drop(path);
      times.push_back(systems::milliseconds([&] { experts.forward(tokens, plan, {step, scratch}, rows); }));
      const auto took = experts.last_jobs();
      own.push_back(1e3 * moe::makespan(took, as_they_came(took.size())));
      differs += rows.matrix().leftCols(kDim) == expected.matrix().leftCols(kDim) ? 0 : 1;
    }
    const moe::PipelineStatistics done = experts.statistics();
    const double calls = static_cast<double>(done.calls) / 1e3;
    auto in_calls = jobs;  // with the seconds that reading and computing took while both went on
    for (auto& job : in_calls) {
      job.load *= done.load_seconds / calls / load;
      job.compute *= done.compute_seconds / calls / compute;
    }
    result.insert(result.end(), {moe::makespan(jobs, schedule(jobs)), moe::makespan(in_calls, schedule(jobs)),
                                 systems::mean(own), systems::mean(times), done.load_seconds / calls,
                                 done.compute_seconds / calls, done.stall_seconds / calls});
  }
  std::filesystem::remove(path);
  result.insert(result.end(), {load, compute, differs});
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"level_pipeline", "2504.15299", "moe/serve/pipelined_experts.hpp"}, [](systems::Page& page) {
        const auto samples = systems::seed_by_seed(page, numbers);
        page.table({"milliseconds of a call", "predicted", "by means of calls", "by each job", "measured", "reading",
                    "computing", "waiting"});
        for (std::size_t i = 0; i < 14; i += 7)
          page.row(i == 0 ? "hottest expert, bit first" : "expert after expert",
                   {samples[i], samples[i + 1], samples[i + 2], samples[i + 3], samples[i + 4], samples[i + 5],
                    samples[i + 6]});
        page.table({"measured alone", "reading", "computing"});
        page.row("all of it", {samples[14], samples[15]});
        page.expect("calls whose bits differ", samples[16], {.low = 0, .high = 0});
        page.expect("time of a call over its prediction from means of times in calls, hottest first",
                    samples[3] / samples[1], {.low = 0.85, .high = 1.4});
        page.claim("time of a call over its prediction from the time of each job, hottest first",
                   samples[3] / samples[2], {.low = 0.85, .high = 1.25});
      });
}
