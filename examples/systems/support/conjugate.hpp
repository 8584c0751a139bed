// SPDX-License-Identifier: MIT
// Problems of Bayesian inference that have exact answers: a mean on the line, whose prior is a mixture of two normals,
// and readings of it with normal noise of known sizes. And the network that learns to answer them.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/numeric/schedule.hpp>
#include <moe/router/linear.hpp>
#include <moe/routing/balance/load_balancing.hpp>
#include <moe/sequence/distribution_transformer.hpp>
#include <moe/train/adam_w.hpp>
#include <moe/train/clip.hpp>
#include <moe/train/routed_pass.hpp>

namespace systems {

using moe::Index;
using Mixture = moe::GaussianMixture<double>;
using ExpertLayer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<moe::Mlp>>;
using PosteriorNet = moe::DistributionTransformer<ExpertLayer>;

struct Inference {
  Mixture prior;
  moe::Matrix<float> data;  ///< per row a reading, and the logarithm of the deviation of its noise
  double truth = 0;
};

inline Mixture two_normals(double weight, std::array<double, 2> means, std::array<double, 2> deviations) {
  moe::RowVector<double> weights(2);
  weights << weight, 1 - weight;
  moe::Matrix<double> m(2, 1);
  m << means[0], means[1];
  return Mixture(
      weights, m,
      {moe::Matrix<double>::Constant(1, 1, deviations[0]), moe::Matrix<double>::Constant(1, 1, deviations[1])});
}

/// Row i of `rows` becomes a reading of `truth`.
inline void read(moe::Matrix<float>& rows, Index i, double truth, double deviation, double normal) {
  rows(i, 1) = static_cast<float>(std::log(deviation));
  rows(i, 0) = static_cast<float>(truth + std::exp(static_cast<double>(rows(i, 1))) * normal);
}

/// The i-th problem of a seed: any weights, means from U(-3, 3), deviations from U(.3, 1.5); 1 to 5 readings, of noise
/// from U(.3, 1.5).
inline Inference inference(std::uint64_t seed, std::uint64_t i) {
  const moe::RandomField random(moe::Purpose::User, seed);
  const auto row = static_cast<std::int64_t>(i);
  const auto uniform = [&](Index column, double low, double high) {
    return low + (high - low) * random.uniform(row, column);
  };
  Inference one{two_normals(uniform(0, 0, 1), {uniform(1, -3, 3), uniform(2, -3, 3)},
                            {uniform(3, 0.3, 1.5), uniform(4, 0.3, 1.5)}),
                moe::Matrix<float>(static_cast<Index>(1 + random.below(5, row, 5)), 2)};
  one.truth = one.prior.sample(moe::RandomField(moe::Purpose::Draw, seed), row)(0);
  for (Index j = 0; j < one.data.rows(); ++j)
    read(one.data, j, one.truth, uniform(10 + j, 0.3, 1.5), random.normal(row, 20 + j));
  return one;
}

/// The posterior itself.
inline Mixture exact_posterior(const Mixture& prior, const moe::Matrix<float>& data) {
  const Index n = data.rows();
  moe::Matrix<double> noise = moe::Matrix<double>::Zero(n, n);
  for (Index j = 0; j < n; ++j) noise(j, j) = std::exp(2 * static_cast<double>(data(j, 1)));
  return prior.condition_linear(moe::Matrix<double>::Ones(n, 1), noise, data.col(0).cast<double>().transpose());
}

/// KL(p || q) on the line, by a sum over nine deviations on both sides of every mean of p.
inline double divergence(const Mixture& p, const Mixture& q) {
  constexpr int kPoints = 600;
  double low = p.means()(0, 0), high = low, sum = 0;
  for (Index i = 0; i < p.size(); ++i) {
    low = std::min(low, p.means()(i, 0) - 9 * p.factor(i)(0, 0));
    high = std::max(high, p.means()(i, 0) + 9 * p.factor(i)(0, 0));
  }
  moe::RowVector<double> x(1);
  for (int i = 0; i <= kPoints; ++i) {
    x(0) = low + (high - low) * i / kPoints;
    const double log_p = p.log_density(x);
    if (log_p > -60) sum += std::exp(log_p) * (log_p - q.log_density(x)) * (high - low) / kPoints;
  }
  return sum;
}

/// Problems as the network takes them.
struct InferenceBatch {
  moe::Matrix<float> priors, data, truth;
  moe::Sequences components, rows;

  InferenceBatch(std::uint64_t seed, std::uint64_t first, Index count)
      : priors(2 * count, 3), truth(count, 1), components(moe::Sequences::equal(count, 2)) {
    std::vector<Inference> problems;
    for (Index i = 0; i < count; ++i) problems.push_back(inference(seed, first + static_cast<std::uint64_t>(i)));
    for (const Inference& one : problems) rows.push_back(one.data.rows());
    data.resize(rows.num_rows(), 2);
    for (Index i = 0; i < count; ++i) {
      const Inference& one = problems[static_cast<std::size_t>(i)];
      moe::write_rows<float>(one.prior, priors.middleRows(2 * i, 2));
      data.middleRows(rows.begin(i), rows.length(i)) = one.data;
      truth(i, 0) = static_cast<float>(one.truth);
    }
  }
};

/// Two blocks of 32 columns, each with 4 experts of 64 units, of which a component has two.
inline PosteriorNet posterior_net(std::uint64_t seed, moe::ZeroKey zero_key = moe::ZeroKey::On) {
  constexpr Index kDim = 32, kExperts = 4, kHidden = 64;
  std::vector<ExpertLayer> layers;
  for (std::uint64_t l = 0; l < 2; ++l)
    layers.emplace_back(moe::LinearRouter::random(kExperts, kDim, 100 * seed + l), moe::TopKGate{.k = 2},
                        moe::ExpertPool<moe::Mlp>::random(kExperts, kDim, kHidden, 100 * seed + 50 + l));
  return PosteriorNet({.dim = 1, .data_dim = 2, .hidden_dim = kHidden, .num_heads = 4, .zero_key = zero_key},
                      std::move(layers), 1000 * seed);
}

/// Mean and worst divergence of a network's posteriors from the exact ones, of the first `count` problems of a seed.
struct PosteriorErrors {
  double mean = 0, worst = 0;
};
template <class Posterior>
PosteriorErrors posterior_errors(const Posterior& posterior, std::uint64_t seed, Index count) {
  PosteriorErrors result;
  for (Index i = 0; i < count; ++i) {
    const Inference one = inference(seed, static_cast<std::uint64_t>(i));
    const Mixture exact = exact_posterior(one.prior, one.data), found = posterior(one.prior, one.data);
    const double kl = divergence(exact, found);
    result.mean += kl / static_cast<double>(count);
    result.worst = std::max(result.worst, kl);
  }
  return result;
}

/// Inference by a network, in one workspace.
struct Posterior {
  const PosteriorNet& net;
  mutable moe::Workspace ws = {};

  Mixture operator()(const Mixture& prior, const moe::Matrix<float>& data) const {
    return net.posterior(prior, data, ws);
  }
};

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What a way to the posterior mean takes per problem, and the mean distance of its answers from the exact ones.
struct MeanOfWay {
  double error = 0, ms = 0;
};
/// Of the first `count` problems of a seed. The answer to the first is computed once more before, to be warm; what is
/// exact is computed after the clock has stopped.
template <class MeanOf>
MeanOfWay measure(std::uint64_t seed, Index count, const MeanOf& mean_of) {
  std::vector<Inference> problems;
  for (Index i = 0; i < count; ++i) problems.push_back(inference(seed, static_cast<std::uint64_t>(i)));
  std::vector<double> means{mean_of(problems[0])};
  means.clear();
  means.reserve(problems.size());
  const auto start = std::chrono::steady_clock::now();
  for (const Inference& one : problems) means.push_back(mean_of(one));
  MeanOfWay result{.ms = 1000 * seconds_since(start) / static_cast<double>(count)};
  for (std::size_t i = 0; i < problems.size(); ++i)
    result.error += std::abs(means[i] - exact_posterior(problems[i].prior, problems[i].data).mean()(0));
  result.error /= static_cast<double>(count);
  return result;
}

/// log p(x) + log p(data | x) of a problem, but for a constant. What does not depend on x is computed once.
class LogJoint {
 public:
  explicit LogJoint(const Inference& one) {
    for (Index i = 0; i < one.prior.size(); ++i) {
      const double deviation = one.prior.factor(i)(0, 0);
      prior_.push_back({std::log(one.prior.weights()(i) / deviation), one.prior.means()(i, 0), 1 / deviation});
    }
    for (Index j = 0; j < one.data.rows(); ++j)
      readings_.push_back({0, static_cast<double>(one.data(j, 0)), std::exp(-static_cast<double>(one.data(j, 1)))});
  }

  double operator()(double x) const {
    double most = prior_[0].log_density(x), sum = 1, likelihood = 0;
    for (std::size_t i = 1; i < prior_.size(); ++i) {
      const double term = prior_[i].log_density(x);
      sum = term > most ? 1 + sum * std::exp(most - term) : sum + std::exp(term - most);
      most = std::max(most, term);
    }
    for (const Normal& reading : readings_) likelihood += reading.log_density(x);
    return most + std::log(sum) + likelihood;
  }

 private:
  struct Normal {
    double log_scale, mean, inverse;
    double log_density(double x) const {
      const double off = (x - mean) * inverse;
      return log_scale - 0.5 * off * off;
    }
  };
  std::vector<Normal> prior_, readings_;
};

/// The posterior mean by random-walk Metropolis, the first tenth left out.
inline double metropolis_mean(const Inference& one, Index steps, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed);
  const LogJoint log_joint(one);
  double x = one.prior.mean()(0), log_p = log_joint(x), sum = 0;
  for (Index t = 0; t < steps; ++t) {
    const double next = x + random.normal(t, 0), log_next = log_joint(next);
    if (std::log(random.uniform(t, 1)) < log_next - log_p) x = next, log_p = log_next;
    if (t >= steps / 10) sum += x;
  }
  return sum / static_cast<double>(steps - steps / 10);
}
/// The posterior mean by a sum over a grid from -9 to 9, which is four deviations or more beyond every mean of a prior.
inline double quadrature_mean(const Inference& one, Index points) {
  const LogJoint log_joint(one);
  double sum = 0, total = 0;
  for (Index i = 0; i < points; ++i) {
    const double x = -9 + 18 * static_cast<double>(i) / static_cast<double>(points - 1), p = std::exp(log_joint(x));
    sum += p * x, total += p;
  }
  return sum / total;
}

/// A position that drifts towards 0, x' = .9 x + N(0, .25), and 1 to 3 sensors of known noise at every step. The
/// posterior becomes the next prior; posterior(prior, data) gives it.
struct Track {
  std::vector<double> divergence;     ///< from the exact filter, per step
  double error = 0, exact_error = 0;  ///< mean squares of the distance from the position
};
template <class Posterior>
Track follow(const Posterior& posterior, std::uint64_t seed, Index steps) {
  const moe::RandomField random(moe::Purpose::User, seed, 1);
  const auto one = [](double value) { return moe::Matrix<double>(moe::Matrix<double>::Constant(1, 1, value)); };
  const moe::RowVector<double> still = moe::RowVector<double>::Zero(1);
  const Inference start = inference(seed, 0);
  Mixture found = start.prior, exact = start.prior;
  double x = start.truth;
  Track track;
  for (Index t = 0; t < steps; ++t) {
    moe::Matrix<float> data(static_cast<Index>(1 + random.below(3, t, 0)), 2);
    for (Index j = 0; j < data.rows(); ++j)
      read(data, j, x, 0.3 + 1.2 * random.uniform(t, 10 + j), random.normal(t, 20 + j));
    found = posterior(found, data);
    exact = exact_posterior(exact, data);
    track.divergence.push_back(divergence(exact, found));
    track.error += std::pow(found.mean()(0) - x, 2) / static_cast<double>(steps);
    track.exact_error += std::pow(exact.mean()(0) - x, 2) / static_cast<double>(steps);
    found = found.push_forward(one(0.9), still, one(0.25));
    exact = exact.push_forward(one(0.9), still, one(0.25));
    x = 0.9 * x + 0.5 * random.normal(t, 1);
  }
  return track;
}

/// Writes a script for gnuplot, which draws prior, exact posterior and the network's, and the readings with their
/// noise, of the first six problems whose posterior gives both components some weight. `path` is that of the picture.
template <class Posterior>
void draw_posteriors(const Posterior& posterior, std::uint64_t seed, const std::string& path) {
  std::ofstream script(path + ".gp");
  script << "set terminal svg size 1000,560 font 'sans-serif,13' background '#ffffff'\nset output '" << path
         << "'\nset multiplot layout 2,3\nset xrange [-5:5]\nset yrange [-0.08:*]\nset offsets 0,0,graph 0.2,0\nset "
            "border 3\nset tics nomirror\n";
  int drawn = 0;
  for (std::uint64_t i = 0; drawn < 6; ++i) {
    const Inference one = inference(seed, i);
    const Mixture exact = exact_posterior(one.prior, one.data), found = posterior(one.prior, one.data);
    if (std::min(exact.weights()(0), exact.weights()(1)) < 0.15) continue;
    script << "$curves << END\n";
    for (int k = -200; k <= 200; ++k) {
      moe::RowVector<double> x(1);
      x(0) = k / 40.0;
      script << x(0);
      for (const Mixture* mixture : {&one.prior, &exact, &found}) script << ' ' << std::exp(mixture->log_density(x));
      script << '\n';
    }
    script << "END\n$readings << END\n";
    for (Index j = 0; j < one.data.rows(); ++j)
      script << one.data(j, 0) << " -0.04 " << std::exp(one.data(j, 1)) << '\n';
    script << "END\n"
           << (drawn++ == 0 ? "set key top right samplen 1.5\n" : "unset key\n")
           << "plot $curves u 1:3 w filledcurves y=0 lc '#a6cee3' t 'exact', '' u 1:2 w l lw 2 dt 2 lc '#777777' t "
              "'prior', '' u 1:4 w l lw 2 lc '#e31a1c' t 'transformer', $readings u 1:2:3 w xerrorbars pt 7 ps 0.4 lc "
              "'#333333' t 'readings'\n";
  }
  script << "unset multiplot\n";
  script.close();
  if (!script) moe::fail_environment("systems::draw_posteriors: cannot write ", path, ".gp");
}

/// Teaches it by the log-density of the true mean, of new problems at every update. report(update, loss) is called.
template <class Report>
void learn_posteriors(PosteriorNet& net, std::uint64_t updates, std::uint64_t seed, const Report& report) {
  constexpr Index kBatch = 128;
  const moe::AdamW adam{.weight_decay = 0};
  const moe::CosineSchedule rate{.start = 3e-3, .end = 0, .updates = updates};
  moe::AdamW::State<PosteriorNet> state(net);
  PosteriorNet gradient = moe::zeros_like(net);
  PosteriorNet::Tape tape;
  moe::Matrix<float> out(2 * kBatch, 3), dout, dpriors(2 * kBatch, 3);
  for (std::uint64_t update = 0; update < updates; ++update) {
    const InferenceBatch batch(seed + 1000, update * kBatch, kBatch);
    net.forward({batch.priors, batch.components}, {batch.data, batch.rows}, moe::Step::train(update, seed), out, tape);
    const double loss = moe::mixture_nll<float>(out, batch.components, batch.truth, dout);
    moe::for_each_routed(net, tape, [](const moe::RoutedPass<float>& pass) {
      moe::load_balancing_loss<float>(pass.probability, pass.routing, pass.step, /*weight=*/0.01, pass.losses);
    });
    net.backward({batch.priors, batch.components}, {batch.data, batch.rows}, tape, dout, gradient, dpriors);
    moe::clip_by_norm(gradient, 1);
    adam.step(net, gradient, state, rate(update));
    moe::set_zero(gradient);
    report(update, loss);
  }
}

}  // namespace systems
