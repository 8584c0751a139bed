// SPDX-License-Identifier: MIT
// Tasks on which routers are compared, and what is counted: a task, the training of a layer on it, and a picture.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/gate/hash_tables.hpp>
#include <moe/numeric/k_means.hpp>
#include <moe/routing/balance/statistics.hpp>

#include "digits.hpp"
#include "regression.hpp"
#include "text.hpp"
#include "train.hpp"

namespace systems {

inline constexpr moe::Index kLeagueBatch = 128, kLeagueClusters = 8;

/// Batches of kLeagueBatch rows whose keys are cluster * kLeagueBatch + place in the batch: the cluster tells much of a
/// token, the place nothing. All tasks have the same loss, so that there is one type of data.
struct LeagueTask {
  moe::Index dim = 0, outputs = 0;
  std::uint64_t updates = 0;
  double rate = 0;
  std::function<Regression(std::uint64_t update)> batch;
  std::vector<Regression> test;
  std::function<double(const moe::Matrix<float>& out, const Regression& data)> error;
};

inline Regression with_places(Regression data) {
  for (std::size_t i = 0; i < data.key.size(); ++i)
    data.key[i] = data.key[i] * kLeagueBatch + static_cast<std::int64_t>(i);
  return data;
}

/// Rows of eight clusters with a map each; the error is relative to the square of the targets.
inline LeagueTask league_clusters(std::uint64_t seed, std::uint64_t updates) {
  const Teacher teacher({.clusters = kLeagueClusters, .width = 1}, seed);
  LeagueTask task{8,
                  1,
                  updates,
                  4e-2,
                  [=](std::uint64_t part) { return with_places(teacher.sample(kLeagueBatch, part)); },
                  {},
                  [](const moe::Matrix<float>& out, const Regression& data) {
                    return static_cast<double>((out - data.targets).squaredNorm() / data.targets.squaredNorm());
                  }};
  for (std::uint64_t i = 0; i < 32; ++i) task.test.push_back(task.batch(updates + i));
  return task;
}

/// Digits as a regression to 0 and 1; the cluster is the nearest of eight means of images. The error is the share of
/// wrong answers.
inline LeagueTask league_digits(std::uint64_t seed, std::uint64_t updates) {
  const auto means =
      moe::k_means(digits().train.rows, kLeagueClusters, moe::RandomField(moe::Purpose::User, seed)).centres;
  const auto regression = [=](const Labelled& data) {
    Regression out{data.rows, moe::Matrix<float>::Zero(data.size(), kDigits), {}};
    for (moe::Index i = 0; i < data.size(); ++i) {
      moe::Index nearest = 0;
      (means.rowwise() - data.rows.row(i)).rowwise().squaredNorm().minCoeff(&nearest);
      out.targets(i, data.labels[static_cast<std::size_t>(i)]) = 1;
      out.key.push_back(nearest);
    }
    return with_places(std::move(out));
  };
  LeagueTask task{
      kPixels,
      kDigits,
      updates,
      1e-2,
      [=](std::uint64_t update) { return regression(draw_batch(digits().train, kLeagueBatch, seed, update)); },
      {},
      [](const moe::Matrix<float>& out, const Regression& data) {
        return 1 - agreement(predictions(out), predictions(data.targets));
      }};
  std::vector<moe::Index> ids;
  for (moe::Index i = 0; i < digits().test.size(); ++i) {
    ids.push_back(i);
    if (std::ssize(ids) < kLeagueBatch && i + 1 < digits().test.size()) continue;
    task.test.push_back(regression(rows_of(digits().test, ids)));
    ids.clear();
  }
  return task;
}

/// The next character of prose, as a regression to 0 and 1; the cluster is that of the last character in a table with
/// equally much to do for each. The error is the share of wrong characters.
inline LeagueTask league_text(std::uint64_t seed, std::uint64_t updates) {
  const std::vector<moe::Index>& prose = text().prose;
  std::vector<double> frequency(static_cast<std::size_t>(kCharacters));
  for (const moe::Index character : prose) frequency[static_cast<std::size_t>(character)] += 1;
  const moe::Matrix<double> table = moe::balanced_hash_table(frequency, kLeagueClusters);
  const auto regression = [=, &prose](const std::vector<moe::Index>& places) {
    Labelled data = text_at(prose, places);
    Regression out{std::move(data.rows), moe::Matrix<float>::Zero(std::ssize(places), kCharacters), {}};
    for (std::size_t i = 0; i < places.size(); ++i) {
      out.targets(static_cast<moe::Index>(i), data.labels[i]) = 1;
      out.key.push_back(static_cast<std::int64_t>(table(prose[static_cast<std::size_t>(places[i] - 1)], 0)));
    }
    return with_places(std::move(out));
  };
  const auto trained = static_cast<std::uint64_t>(std::ssize(prose) - Text::kHeldOut - kContext);
  LeagueTask task{kTextDim,
                  kCharacters,
                  updates,
                  1e-2,
                  [=](std::uint64_t update) {
                    const moe::RandomField random(moe::Purpose::Shuffle, seed, update);
                    std::vector<moe::Index> places(static_cast<std::size_t>(kLeagueBatch));
                    for (std::size_t i = 0; i < places.size(); ++i)
                      places[i] = kContext + static_cast<moe::Index>(random.below(trained, static_cast<moe::Index>(i)));
                    return regression(places);
                  },
                  {},
                  [](const moe::Matrix<float>& out, const Regression& data) {
                    return 1 - agreement(predictions(out), predictions(data.targets));
                  }};
  for (moe::Index first = std::ssize(prose) - Text::kHeldOut; first + kLeagueBatch <= std::ssize(prose);
       first += 2 * kLeagueBatch) {
    std::vector<moe::Index> places(static_cast<std::size_t>(kLeagueBatch));
    std::iota(places.begin(), places.end(), first);
    task.test.push_back(regression(places));
  }
  return task;
}

/// What is counted of a router.
struct LeagueResult {
  double error = 0;
  double active = 1;    ///< experts per token
  double load = 1;      ///< in training: of the busiest expert of a batch, over the mean
  double left_out = 0;  ///< share of tokens that no expert sees, in training
  double micros = 0;    ///< of route(), per 1000 tokens: the fastest of some runs

  void append(std::vector<double>& to) const { to.insert(to.end(), {error, active, load, left_out, micros}); }
};

/// Trains a layer; the error in inference. Each batch of the test is one batch, and one group, for the layer.
template <class Layer>
double league_error(Layer& layer, const LeagueTask& task, double balance, std::uint64_t seed) {
  systems::train(layer, {.updates = task.updates, .rate = task.rate, .balance = balance}, seed, task.batch);
  moe::Workspace ws;
  double sum = 0, rows = 0;
  for (const Regression& data : task.test) {
    moe::Step step;
    step.key = data.key;
    moe::Matrix<float> out(data.rows.rows(), layer.output_dim());
    layer.forward(data.rows, step, out, ws);
    sum += task.error(out, data) * static_cast<double>(out.rows());
    rows += static_cast<double>(out.rows());
  }
  return sum / rows;
}

/// Trains a layer that has a gate, and counts what the gate does in eight batches of training.
template <class Layer>
LeagueResult league_result(Layer layer, const LeagueTask& task, double balance, std::uint64_t seed) {
  constexpr std::uint64_t kCounted = 8;
  using Clock = std::chrono::steady_clock;
  LeagueResult result{.error = league_error(layer, task, balance, seed), .active = 0, .load = 0};
  moe::Workspace ws;
  Clock::duration fastest = Clock::duration::max();
  for (std::uint64_t i = 0; i < kCounted; ++i) {
    const Regression data = task.batch(i);
    moe::Step step = moe::Step::train(task.updates, seed);
    step.key = data.key;
    moe::Matrix<float> out(kLeagueBatch, layer.output_dim());
    layer.forward(data.rows, step, out, ws);
    const auto counts = moe::tokens_per_expert(ws.routing, layer.num_experts());
    const double active = moe::mean_active_experts(ws.routing), all = active * kLeagueBatch;
    double alone = 0;
    for (moe::Index t = 0; t < kLeagueBatch; ++t)
      alone += std::ranges::count(ws.routing.dropped(t), std::uint8_t{0}) == 0 ? 1.0 / kLeagueBatch : 0.0;
    result.active += active / kCounted;
    result.left_out += alone / kCounted;
    result.load += static_cast<double>(std::ranges::max(counts) * layer.num_experts()) / std::max(1.0, all) / kCounted;
    for (int run = 0; run < 5; ++run) {
      const auto start = Clock::now();
      layer.gate().route(ws.logits.matrix(), {step, ws.scratch}, ws.routing);
      fastest = std::min(fastest, Clock::now() - start);
    }
  }
  result.micros = std::chrono::duration<double, std::micro>(fastest).count() * 1000 / kLeagueBatch;
  return result;
}

/// Logarithms of errors, moved apart as labels need it, within [low, high].
inline std::vector<double> label_heights(std::vector<double> height, double low, double high) {
  const double apart = (high - low) / 26;
  std::vector<std::size_t> order(height.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return height[i]; });
  for (std::size_t i = 1; i < order.size(); ++i)
    height[order[i]] = std::max(height[order[i]], height[order[i - 1]] + apart);
  double most = high;
  for (std::size_t i = order.size(); i-- > 0; most = height[order[i]] - apart)
    height[order[i]] = std::min(height[order[i]], most);
  return height;
}

/// Writes a script for gnuplot: errors against active experts, with names. `path` is that of the picture; the script's
/// ends with .gp.
inline void draw_league(const std::string& path, const std::string& title, const std::vector<std::string>& names,
                        const std::vector<std::pair<double, double>>& active_and_error) {
  std::vector<double> height;
  for (const auto& point : active_and_error) height.push_back(std::log10(point.second));
  const double low = std::ranges::min(height) - 0.1, high = std::ranges::max(height) + 0.1;
  const std::vector<double> label = label_heights(height, low, high);
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 900,560 font 'sans-serif,13' background '#ffffff'\nset output '" << path
         << "'\n$points << END\n";
  for (std::size_t i = 0; i < names.size(); ++i)
    script << active_and_error[i].first << ' ' << active_and_error[i].second << ' ' << std::pow(10, label[i]) << " \""
           << names[i] << "\"\n";
  script << "END\nset title '" << title
         << "'\nset xlabel 'experts per token'\nset ylabel 'error'\nset logscale xy\nunset key\nset border 3\n"
            "set tics nomirror\nset xtics (1, 2, 4, 8)\nset xrange [0.7:40]\nset yrange ["
         << std::pow(10, low) << ':' << std::pow(10, high)
         << "]\nplot $points using 1:2:(11-$1):($3-$2) with vectors nohead lc '#cccccc', '' using 1:2 with points pt 7 "
            "lc '#4477aa', '' using (11.5):3:4 with labels noenhanced left font ',11'\n";
  script.close();
  if (!script) moe::fail_environment("systems::draw_league: cannot write ", path, ".gp");
}

}  // namespace systems
