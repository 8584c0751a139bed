// SPDX-License-Identifier: MIT
// Compressed experts: of the experts of a token the first ones run; of the others a vector is left, by which what those
// read is scaled. He et al., "Efficiently editing mixture-of-experts models with compressed experts"
// (arXiv:2503.00634), who fine-tune so with half of the active experts. Here: vectors that a teacher has are found
// again from its outputs alone; digits by four experts of which two stay active, fine-tuned with the vectors and
// without; and the time. On digits the vectors add nothing to fine-tuning, which is printed: what a ReLU expert does,
// no scale of another's inputs does for it. Not here: language models, where the paper has its gain.
#include <algorithm>
#include <chrono>
#include <vector>

#include <moe/compress/compress_auxiliary.hpp>
#include <moe/expert/frozen.hpp>
#include <moe/router/frozen.hpp>

#include "support/digits.hpp"
#include "support/page.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using Pool = moe::ExpertPool<systems::ReluMlp>;
using Compressed = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::CompressedExperts<Pool>>;

Matrix<float> normal_rows(Index count, Index dim, std::uint64_t seed, std::uint64_t part) {
  const moe::RandomField random(moe::Purpose::User, seed, part);
  return Matrix<float>::NullaryExpr(count, dim,
                                    [&](Index i, Index j) { return static_cast<float>(random.normal(i, j)); });
}

/// Distance of the vectors from those of the teacher, over that of ones from them; the same of the outputs, squared.
std::vector<double> planted(const systems::Page& page, std::uint64_t seed) {
  constexpr Index kDim = 16;
  const moe::MoeLayer full(moe::Frozen(moe::LinearRouter::random(8, kDim, seed)), moe::TopKGate{.k = 2},
                           moe::Frozen(Pool::random(8, kDim, 64, seed + 10)));
  auto teacher = moe::compress_auxiliary(full, 1), student = teacher;
  const Matrix<float> ones = student.mixture().theta();
  teacher.mixture().theta() += 0.3f * normal_rows(8, kDim, seed, 1);
  const auto sample = [&](Index count, std::uint64_t part) {
    systems::Regression data{normal_rows(count, kDim, seed, 10 + part), {}};
    data.targets = systems::outputs(teacher, data.rows);
    return data;
  };
  const systems::Regression test = sample(2000, 1u << 20);
  const double before = systems::squared_error(systems::outputs(student, test.rows), test);
  systems::train(student, {.updates = page.amount<std::uint64_t>(1500, 20), .rate = 1e-2}, seed,
                 [&](std::uint64_t update) { return sample(128, update); });
  const Matrix<float>& theta = teacher.mixture().theta();
  return {static_cast<double>((student.mixture().theta() - theta).norm() / (ones - theta).norm()),
          systems::squared_error(systems::outputs(student, test.rows), test) / before};
}

template <class Model>
double tuned(const systems::Page& page, Model model, std::uint64_t seed) {
  const systems::Training how{.updates = page.amount<std::uint64_t>(200, 5), .rate = 5e-4, .weight_decay = 0.05};
  systems::train(model, how, seed,
                 [&](std::uint64_t update) { return draw_batch(systems::digits().train, 64, seed, update); });
  const systems::Labelled& test = systems::digits().test;
  return systems::accuracy(systems::outputs(model, test.rows), test.labels);
}

/// Accuracy after more training: four active experts, two, two with vectors.
std::vector<double> digits(const systems::Page& page, std::uint64_t seed) {
  systems::DigitsModel full = systems::digits16(page, seed);
  full.layer().gate().k = 4;
  const systems::Training how{.updates = page.amount<std::uint64_t>(400, 5), .rate = 2e-3, .weight_decay = 0.05};
  systems::train(full, how, seed + 100,
                 [&](std::uint64_t update) { return draw_batch(systems::digits().train, 64, seed, update); });
  systems::DigitsModel half = full;
  half.layer().gate().k = 2;
  const systems::WithHead<Compressed> vectors(moe::compress_auxiliary(full.layer(), 2), full.head());
  return {tuned(page, full, seed), tuned(page, half, seed), tuned(page, vectors, seed)};
}

/// Time of one expert with a vector over that of two experts and of one: fastest of runs in turns.
std::vector<double> times(const systems::Page& page, std::uint64_t seed) {
  constexpr Index kDim = 128, kTokens = 1024;
  const systems::ReluLayer two(moe::LinearRouter::random(8, kDim, seed), moe::TopKGate{.k = 2},
                               Pool::random(8, kDim, 512, seed));
  systems::ReluLayer one = two;
  one.gate().k = 1;
  const Compressed vector = moe::compress_auxiliary(two, 1);
  const Matrix<float> rows = normal_rows(kTokens, kDim, seed, 1);
  Matrix<float> out(kTokens, kDim);
  std::vector<double> fastest(3, systems::kInfinity);
  std::vector<moe::Workspace> ws(3);
  const auto time = [&](std::size_t i, const auto& layer) {
    const auto start = std::chrono::steady_clock::now();
    layer.forward(rows, out, ws[i]);
    fastest[i] = std::min(fastest[i], std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  };
  for (int run = 0; run < page.amount(60, 2); ++run) time(0, two), time(1, one), time(2, vector);
  return {fastest[2] / fastest[0], fastest[2] / fastest[1]};
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"compressed_experts", "2503.00634", "moe/layer/compressed_experts.hpp"}, [](systems::Page& page) {
        const auto found = page.over_seeds([&](std::uint64_t seed) { return planted(page, seed); });
        page.table({"planted vectors", "their distance", "of the outputs"});
        page.row("after learning, over before", found);
        const auto accuracy = page.over_seeds([&](std::uint64_t seed) { return digits(page, seed); });
        page.table({"digits, fine-tuned", "four experts", "two", "two and vectors"});
        page.row("accuracy", accuracy);
        const auto time = page.over_seeds([&](std::uint64_t seed) { return times(page, seed); });
        page.table({"one expert and vectors, time", "over two", "over one"});
        page.row("1024 tokens", time);
        page.expect("time over that of two experts", time[0], {.high = 0.65});
        page.expect("time over that of one expert", time[1], {.high = 1.15});
        page.expect("squared error over that without vectors", found[1], {.high = 0.01});
        page.claim("distance of learned vectors from those planted, over the first", found[0], {.high = 0.01});
      });
}
