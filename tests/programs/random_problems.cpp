// SPDX-License-Identifier: MIT
// Fits random small problems, among them exact lines, ties, separable and absurd ones, with every gate and all options:
// each must end in bounded time with a result that is right in itself, or be refused for a reason in the documentation.
// Usage: random_problems [count] [first seed]
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "gaussian/fit_check.hpp"
#include "programs/random_problem.hpp"

namespace {

using moe::Index;
using Free = moe::LearnableTemperature;

struct Outcome {
  std::string wrong, refusal;
  double seconds = 0;
  Index iterations = 0;
  bool converged = false;
};

/// The documented reasons, by what their messages contain.
bool is_documented(const std::string& message) {
  constexpr std::array kReasons = {"is constant", "are the same up to shift and scale", "is a linear combination",
                                   "expected at least as many as parameters", "last_slope is Free with a linear gate"};
  return message.starts_with("moe::") && std::any_of(kReasons.begin(), kReasons.end(), [&](const char* reason) {
           return message.find(reason) != std::string::npos;
         });
}

template <class Gate>
Outcome run(const test::RandomProblem& problem, const Gate& gate) {
  Outcome outcome;
  try {
    const auto fit = moe::fit(problem.data, problem.num_experts, gate, problem.options);
    outcome.wrong = test::FitCheck(problem.data, problem.options, fit)();
    outcome.seconds = fit.seconds;
    outcome.iterations = fit.iterations;
    outcome.converged = fit.converged;
  } catch (const std::invalid_argument& error) {
    outcome.refusal = error.what();
    if (!is_documented(error.what())) outcome.wrong = outcome.refusal;
  } catch (const std::exception& error) {
    outcome.wrong = error.what();
  }
  return outcome;
}

template <class Act, class Temperature>
Outcome run_activation(const test::RandomProblem& problem, Temperature temperature) {
  moe::ActivationGate<Act, Temperature> gate{.sparse = {.temperature = temperature}};
  if (problem.seed % 2 == 0) gate.bias_place = moe::BiasPlace::Inside;
  return run(problem, gate);
}

Outcome run(const test::RandomProblem& problem) {
  const Index k = problem.num_experts, active = 1 + static_cast<Index>(problem.seed % static_cast<std::uint64_t>(k));
  const Free free = Free::starting_at(0.5);
  switch (problem.gate) {
    case 0:
    case 1:
    case 2:
      return run(problem, moe::SoftmaxGate{});
    case 3:
    case 4:
      return run(problem, moe::TopKGate{.k = active});
    case 5:
      return run(problem, moe::TopKGate{.k = active, .weight_bias = Eigen::RowVectorXd::Zero(k)});
    case 6:
      return run(problem, moe::DenseToSparseGate<Free>{.temperature = free});
    case 7:
      return run(problem, moe::DenseToSparseGate<>{});
    case 8:
      return run_activation<moe::Tanh>(problem, free);
    case 9:
      return run_activation<moe::Sigmoid>(problem, free);
    case 10:
      return run_activation<moe::Gelu>(problem, free);
    case 11:
      return run_activation<moe::Softplus>(problem, free);
    case 12:
      return run_activation<moe::Relu>(problem, free);
    default:
      return run_activation<moe::Tanh>(problem, moe::ConstantSchedule{.value = 0.3});
  }
}

struct Tally {
  Index fitted = 0, refused = 0, converged = 0, wrong = 0, iterations = 0;
  double seconds = 0, slowest = 0;
  std::string slowest_problem;
  std::map<std::string, Index> refusals;

  void add(const test::RandomProblem& problem, const Outcome& outcome) {
    if (!outcome.wrong.empty() && ++wrong <= 40)
      std::printf("WRONG: %s: %s\n", problem.describe().c_str(), outcome.wrong.c_str());
    if (!outcome.refusal.empty()) return void(++refused);
    ++fitted;
    converged += outcome.converged;
    iterations = std::max(iterations, outcome.iterations);
    seconds += outcome.seconds;
    if (outcome.seconds <= slowest) return;
    slowest = outcome.seconds;
    slowest_problem = problem.describe();
  }
};

}  // namespace

int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 1500, first = argc > 2 ? std::atol(argv[2]) : 1;
  Tally tally;
  std::mutex mutex;
  moe::parallel_for(count, [&](Index i, Index) {
    const test::RandomProblem problem = test::ProblemMaker(static_cast<std::uint64_t>(first + i))();
    const Outcome outcome = run(problem);
    const std::lock_guard lock(mutex);
    tally.add(problem, outcome);
  });
  std::printf("%ld problems: %ld fitted (%ld converged), %ld refused, %ld wrong; at most %ld iterations\n", count,
              static_cast<long>(tally.fitted), static_cast<long>(tally.converged), static_cast<long>(tally.refused),
              static_cast<long>(tally.wrong), static_cast<long>(tally.iterations));
  std::printf("%.1f s in fits, slowest %.3f s: %s\n", tally.seconds, tally.slowest, tally.slowest_problem.c_str());
  return tally.wrong > 0 || tally.fitted < count / 2 ? EXIT_FAILURE : EXIT_SUCCESS;
}
