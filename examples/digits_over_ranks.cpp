// SPDX-License-Identifier: MIT
// Trains one mixture of experts on the handwritten digits three times: in one process; with its experts over ranks,
// each with a part of every batch (expert parallelism); and fully sharded, where busy experts are copied to other ranks
// for an update. The same losses and accuracies come out. Ranks are processes under mpirun, else threads:
//   digits_over_ranks [--ranks N] [--epochs N] [--plot FILE.svg] [--quick]
//   mpirun -n 2 digits_over_ranks
// With --predict it trains nothing, but says how long a step of larger experts takes on two ranks, and how long a model
// of costs says it does that is fitted to exchanges and products alone:
//   mpirun -n 2 digits_over_ranks --predict
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <moe/moe.hpp>
#include <moe/mpi.hpp>
#ifdef MOE_EXAMPLE_MPI
#include <moe/mpi/mpi_communicator.hpp>
#endif

#include "digits/data.hpp"
#include "systems/support/rank_times.hpp"

namespace {

using moe::Index;
using Expert = moe::BasicMlp<moe::F64>;  // in double, as sums in another order are all that differs
using Pool = moe::ExpertPool<Expert>;

constexpr Index kExperts = 16, kHidden = 24, kBatch = 64;

struct Options {
  int ranks = 2, epochs = 30;
  std::string plot = "digits_over_ranks.svg";
};

/// Per epoch: the mean loss of its updates, and the accuracy on the test images.
struct History {
  std::string name;
  std::vector<double> loss, accuracy;
};

/// This rank's part of `count` rows: where it begins, and how many there are.
template <class C>
std::pair<Index, Index> part_of(const C& ranks, Index count) {
  const Index first = ranks.rank() * count / ranks.size();
  return {first, (ranks.rank() + 1) * count / ranks.size() - first};
}

/// Rows order[begin...] of the images.
std::pair<moe::Matrix<double>, std::vector<Index>> rows_of(const digits::Images& images,
                                                           const std::vector<Index>& order, Index begin, Index count) {
  std::pair<moe::Matrix<double>, std::vector<Index>> result{moe::Matrix<double>(count, digits::kPixels), {}};
  for (Index i = 0; i < count; ++i) {
    const Index row = order[static_cast<std::size_t>(begin + i)];
    result.first.row(i) = images.pixels.row(row).cast<double>();
    result.second.push_back(images.labels[static_cast<std::size_t>(row)]);
  }
  return result;
}

template <class C, class Layer>
double test_accuracy(const C& ranks, const Layer& layer, const digits::Images& test) {
  std::vector<Index> order(test.labels.size());
  std::iota(order.begin(), order.end(), Index{0});
  const auto [first, count] = part_of(ranks, std::ssize(order));
  const auto [pixels, labels] = rows_of(test, order, first, count);
  moe::Matrix<double> scores(count, digits::kClasses);
  typename Layer::Workspace workspace;
  layer.forward(pixels, scores, workspace);
  std::vector<Index> right = {0};
  for (Index i = 0; i < count; ++i) {
    Index best = 0;
    scores.row(i).maxCoeff(&best);
    right[0] += best == labels[static_cast<std::size_t>(i)] ? 1 : 0;
  }
  moe::mpi::all_reduce<Index>(ranks, right);
  return static_cast<double>(right[0]) / static_cast<double>(order.size());
}

/// Every rank has the same batches, and takes its part of each. after(layer, tape) follows each update.
template <class C, class Experts, class After>
History train(const C& ranks, const char* name, const Experts& experts, const digits::Data& data, int epochs,
              const After& after) {
  moe::MoeLayer layer(moe::BasicLinearRouter<moe::F64>::random(kExperts, digits::kPixels, 1, moe::Bias::Zero),
                      moe::TopKGate{.k = 2}, experts);
  moe::Trainer trainer(layer, moe::AdamW{.weight_decay = 0.1});
  std::vector<Index> order(data.train.labels.size());
  std::iota(order.begin(), order.end(), Index{0});
  const Index batches = (std::ssize(order) + kBatch - 1) / kBatch;
  const moe::CosineSchedule rate{.start = 1e-2, .end = 1e-3, .updates = static_cast<std::uint64_t>(epochs * batches)};
  History history{name, {}, {}};
  std::uint64_t update = 0;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    const moe::RandomField shuffle(moe::Purpose::Shuffle, 1, epoch);
    for (std::size_t i = order.size() - 1; i > 0; --i)
      std::swap(order[i], order[shuffle.below(i + 1, static_cast<Index>(i))]);
    std::vector<double> loss = {0};
    for (Index begin = 0; begin < std::ssize(order); begin += kBatch, ++update) {
      const Index size = std::min(kBatch, std::ssize(order) - begin);
      const auto [first, count] = part_of(ranks, size);
      const auto rows = rows_of(data.train, order, begin + first, count);
      const double share = static_cast<double>(count) / static_cast<double>(size);
      const moe::Step step = moe::Step::train(update);
      loss[0] += share / static_cast<double>(batches) *
                 trainer.accumulate(
                     rows.first, step,
                     [&](const auto& scores, auto& dscores) {
                       return moe::cross_entropy<double>(scores, rows.second, step, dscores);
                     },
                     share);
      moe::mpi::all_reduce_gradient(ranks, trainer.gradient());  // of the router; experts have theirs
      trainer.update(rate(update));
      after(layer, trainer.tape());
    }
    moe::mpi::all_reduce<double>(ranks, loss);
    history.loss.push_back(loss[0]);
    history.accuracy.push_back(test_accuracy(ranks, layer, data.test));
  }
  return history;
}

/// All three; the first one on rank 0 alone.
template <class C>
std::vector<History> train_all(const C& ranks, const digits::Data& data, int epochs) {
  const Pool pool =
      Pool::random(kExperts, {.input = digits::kPixels, .hidden = kHidden, .output = digits::kClasses}, 2);
  const auto nothing = [](const auto&, const auto&) {};
  std::vector<History> histories;
  if (ranks.rank() == 0) histories.push_back(train(moe::mpi::Self(), "one process", pool, data, epochs, nothing));
  moe::mpi::barrier(ranks);
  histories.push_back(
      train(ranks, "expert parallelism", moe::mpi::ShardedExperts<Pool, C>::of(pool, ranks), data, epochs, nothing));
  moe::mpi::LoadEstimate estimate(kExperts);
  histories.push_back(
      train(ranks, "fully sharded, 2 copied",
            moe::mpi::FullyShardedExperts(ranks, pool, moe::mpi::Placement::contiguous(kExperts, ranks.size())), data,
            epochs, [&](auto& layer, const auto& tape) {
              auto& experts = layer.mixture().experts();
              estimate.add(experts.loads(tape.mixture.experts));
              experts.materialise(moe::mpi::materialise(experts.placement().shards(), estimate.mean(),
                                                        experts.topology(), {.overlap = 2, .memory = 2}));
            }));
  return histories;
}

/// Writes a script for gnuplot, and draws the picture where that is installed.
void draw(const std::vector<History>& histories, const std::string& path) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 900,400 font 'sans-serif,13' background '#ffffff'\nset output '" << path
         << "'\n$runs << END\n";
  for (std::size_t epoch = 0; epoch < histories[0].loss.size(); ++epoch) {
    script << epoch + 1;
    for (const History& of : histories) script << ' ' << of.loss[epoch] << ' ' << of.accuracy[epoch];
    script << '\n';
  }
  script << "END\nset multiplot layout 1,2\nset border 3\nset tics nomirror\nset xlabel 'epoch'\n";
  for (const int column : {2, 3}) {
    script << "set title '" << (column == 2 ? "loss" : "accuracy on test images") << "'\nset key "
           << (column == 2 ? "top" : "bottom") << " right\nplot ";
    const char* styles[] = {"l lw 7 lc '#cccccc'", "l lw 2 lc '#4477aa'", "p pt 6 lc '#ee6677'"};
    for (std::size_t i = 0; i < histories.size(); ++i)
      script << (i ? ", " : "") << "$runs u 1:" << static_cast<std::size_t>(column) + 2 * i << " w " << styles[i]
             << " t '" << histories[i].name << "'";
    script << '\n';
  }
  script << "unset multiplot\n";
  script.close();
  if (std::system(("gnuplot '" + path + ".gp' 2> /dev/null").c_str()) == 0) std::printf("picture: %s\n", path.c_str());
}

/// Whether the runs are one.
bool report(const std::vector<History>& histories, Index ranks, const char* kind, const Options& options) {
  std::printf("%td ranks, %s\n%-24s %12s %10s %22s\n", ranks, kind, "", "last loss", "accuracy", "loss off by at most");
  bool same = true;
  for (const History& of : histories) {
    double most = 0;
    for (std::size_t epoch = 0; epoch < of.loss.size(); ++epoch)
      most = std::max(most, std::abs(of.loss[epoch] / histories[0].loss[epoch] - 1));
    std::printf("%-24s %12.8f %10.4f %22.1e\n", of.name.c_str(), of.loss.back(), of.accuracy.back(), most);
    same = same && most < 1e-6 && of.accuracy.back() == histories[0].accuracy.back();
  }
  draw(histories, options.plot);
  if (!same) std::printf("the runs differ\n");
  return same;
}

template <class C>
void run(const C& ranks, const char* kind, const Options& options, bool& same) {
  const std::vector<History> histories = train_all(ranks, digits::load(MOE_EXAMPLE_DATA "/digits.csv"), options.epochs);
  if (ranks.rank() == 0) same = report(histories, ranks.size(), kind, options);
}

/// Median of three times of fitting a model, and measuring a step of fully sharded experts, whose busiest has half of
/// the tokens, without copies and with two.
template <class C>
void predict(const C& ranks) {
  const systems::RankBench bench{.repeats = 7};
  const std::vector<double> loads = {8, 3, 1, 1, 1, 1, 1, 1};
  if (ranks.size() != 2) moe::fail("digits_over_ranks: --predict on ", ranks.size(), " ranks, expected 2");
  if (ranks.rank() == 0)
    std::printf("%-32s %12s %12s %22s\n", "2 ranks", "measured ms", "predicted ms", "predicted / measured");
  for (const Index copies : {0, 2}) {
    const auto placement = moe::mpi::materialise(moe::mpi::Placement::contiguous(8, 2), loads, {.ranks = 2},
                                                 {.overlap = copies, .memory = copies});
    std::vector<double> measured, predicted, ratios;
    for (int run = 0; run < 3; ++run) {
      predicted.push_back(bench.predict(bench.fit(ranks), loads, placement).total());
      measured.push_back(bench.measure(ranks, loads, placement));
      ratios.push_back(predicted.back() / measured.back());
    }
    for (auto* of : {&measured, &predicted, &ratios}) std::ranges::nth_element(*of, of->begin() + 1);
    if (ranks.rank() == 0)
      std::printf("%-32s %12.2f %12.2f %22.3f\n", copies == 0 ? "no copies (expert parallelism)" : "2 of 8 on both",
                  1e3 * measured[1], 1e3 * predicted[1], ratios[1]);
  }
}

}  // namespace

int main(int argc, char** argv) try {
#ifdef MOE_EXAMPLE_MPI
  const moe::mpi::MpiSession session(argc, argv);
#endif
  CLI::App app("One mixture of experts, trained in one process and over ranks");
  Options options;
  bool quick = false, predicts = false, same = true;
  app.add_option("--ranks", options.ranks, "threads, where this is not run by mpirun")->check(CLI::PositiveNumber);
  app.add_option("--epochs", options.epochs, "passes over the training rows")->check(CLI::PositiveNumber);
  app.add_option("--plot", options.plot, "write the picture to this file");
  app.add_flag("--quick", quick, "3 epochs");
  app.add_flag("--predict", predicts, "measured and predicted times of a step instead, on two ranks");
  CLI11_PARSE(app, argc, argv);
  if (quick) options.epochs = 3;
#ifdef MOE_EXAMPLE_MPI
  if (const Index size = moe::mpi::Mpi().size(); size > 1) {
    moe::mpi::run_ranks(session, [&](const moe::mpi::Mpi& ranks) {
      predicts ? predict(ranks) : run(ranks, "processes", options, same);
    });
    return same ? 0 : 1;
  }
#endif
  moe::mpi::run_ranks(options.ranks, [&](const moe::mpi::Threads& ranks) {
    moe::SerialExecutor serial;
    const moe::UseExecutor use(serial);
    predicts ? predict(ranks) : run(ranks, "threads", options, same);
  });
  return same ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "digits_over_ranks: %s\n", error.what());
  return 1;
}
