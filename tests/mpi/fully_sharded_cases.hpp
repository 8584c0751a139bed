// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/mpi/clip.hpp"
#include "moe/mpi/fully_sharded_experts.hpp"
#include "moe/mpi/heterogeneous_sharding.hpp"
#include "moe/mpi/load_estimate.hpp"
#include "moe/mpi/reduce_gradient.hpp"
#include "moe/mpi/sharded_parameters.hpp"
#include "moe/router/linear.hpp"
#include "moe/train/adam_w.hpp"
#include "mpi/ranks.hpp"
#include "mpi/sharded_cases.hpp"
#include "mpi/skewed_loads.hpp"

// A layer whose experts are spread over ranks, beside the same layer in one process, on every communicator.
namespace test {

using moe::Index;
using moe::mpi::Placement;

/// The batch of all ranks, the layer in one process, and what comes of it.
template <class Codec>
struct WholeLayer {
  using S = typename Codec::Scalar;
  using Expert = moe::BasicMlp<Codec>;
  using Router = moe::BasicLinearRouter<Codec>;
  using Layer = moe::MoeLayer<Router, moe::TopKGate, moe::ExpertPool<Expert>>;
  static constexpr Index kDim = 12, kHidden = 10, kTokens = 48;

  /// Most tokens choose experts 0 and 1.
  explicit WholeLayer(Index experts)
      : layer(Router::random(experts, kDim, 3, moe::Bias::Zero), moe::TopKGate{.k = 2},
              moe::ExpertPool<Expert>::random(experts, kDim, kHidden, 4)),
        gradient(moe::zeros_like(layer)) {
    tokens = moe::Matrix<S>::NullaryExpr(kTokens, kDim, [](Index t, Index c) {
      return static_cast<S>(moe::RandomField(moe::Purpose::User, 5).normal(t, c));
    });
    targets = tokens.rowwise().reverse();
    tokens.col(0).setConstant(2);
    layer.router().weight().set(0, 0, S{1});
    layer.router().weight().set(1, 0, static_cast<S>(0.8));
  }

  /// Mean over all tokens of half the squared errors, of which these are rows [first, ...), and its gradient.
  double loss(const moe::Matrix<S>& of, Index first, moe::Matrix<S>& gradient_of) const {
    gradient_of = (of - targets.middleRows(first, of.rows())) / S{kTokens};
    return (of - targets.middleRows(first, of.rows())).template cast<double>().squaredNorm() / (2 * kTokens);
  }
  double pass() {
    out.resize(kTokens, kDim), dtokens.resize(kTokens, kDim);
    layer.forward(tokens, moe::Step::train(0, 1), out, tape);
    const double value = loss(out, 0, dout);
    moe::set_zero(gradient);
    layer.backward(tokens, tape, dout, gradient, dtokens);
    return value;
  }

  Layer layer, gradient;
  typename Layer::Tape tape;
  moe::Matrix<S> tokens, targets, out, dout, dtokens;
};

/// The part of it that a rank has.
template <class Codec, class C>
struct PartOfLayer {
  using Whole = WholeLayer<Codec>;
  using S = typename Codec::Scalar;
  using Experts = moe::mpi::FullyShardedExperts<typename Whole::Expert, C>;
  using Layer = moe::MoeLayer<typename Whole::Router, moe::TopKGate, Experts>;

  PartOfLayer(const C& communicator, const Whole& of, const Placement& shards, moe::mpi::FullyShardedOptions options)
      : ranks(communicator),
        whole(of),
        first(ranks.rank() * Whole::kTokens / ranks.size()),
        rows((ranks.rank() + 1) * Whole::kTokens / ranks.size() - first),
        ids(moe::mpi::global_ids(ranks, rows)),
        layer(of.layer.router(), moe::TopKGate{.k = 2}, Experts(ranks, of.layer.experts(), shards, options)),
        gradient(moe::zeros_like(layer)) {}

  Experts& experts() { return layer.mixture().experts(); }
  const auto& gradient_of(Index e) const { return gradient.mixture().experts().owned(e); }

  /// The loss of all ranks' tokens.
  double pass(std::uint64_t update = 0) {
    out.resize(rows, Whole::kDim), dtokens.resize(rows, Whole::kDim);
    moe::Step step = moe::Step::train(update, 1);
    step.token_id = ids;
    const auto tokens = whole.tokens.middleRows(first, rows);
    layer.forward(tokens, step, out, tape);
    double value = whole.loss(out, first, dout);
    moe::set_zero(gradient);
    layer.backward(tokens, tape, dout, gradient, dtokens);
    moe::mpi::all_reduce_gradient(ranks, gradient);
    moe::mpi::all_reduce<double>(ranks, std::span(&value, 1));
    return value;
  }

  C ranks;
  const Whole& whole;
  Index first, rows;
  std::vector<std::int64_t> ids;
  Layer layer, gradient;
  typename Layer::Tape tape;
  moe::Matrix<S> out, dout, dtokens;
};

/// The largest difference of parameters over the largest parameter.
template <class T>
double difference(const T& a, const T& b) {
  double most = 0, scale = 0;
  moe::visit(
      [&](const std::string&, const auto& x, const auto& y) {
        const auto xs = moe::parameter_span(x), ys = moe::parameter_span(y);
        for (std::size_t i = 0; i < xs.size(); ++i) {
          most = std::max(most, std::abs(static_cast<double>(xs[i]) - static_cast<double>(ys[i])));
          scale = std::max(scale, std::abs(static_cast<double>(ys[i])));
        }
      },
      a, b);
  return scale > 0 ? most / scale : most;
}

/// An expert whose output may depend on which rows it sees.
struct OfAllRows : Drawing<double> {
  static constexpr bool kPerToken = false;
};

template <class C>
struct FullyShardedCases {
  using Whole = WholeLayer<moe::F64>;
  using Part = PartOfLayer<moe::F64, C>;
  using Options = moe::mpi::FullyShardedOptions;

  /// None, few and all experts with copies, of experts that ranks do not divide.
  static std::vector<Placement> placements(Index experts, Index ranks) {
    const Placement shards = Placement::contiguous(experts, ranks);
    const moe::mpi::Topology topology{.ranks = ranks};
    const std::vector<double> loads = pareto_loads(experts, 7);
    return {shards, moe::mpi::materialise(shards, loads, topology, {.overlap = 3, .memory = 1}),
            moe::mpi::materialise(shards, loads, topology, {.overlap = experts, .memory = experts})};
  }
  static std::vector<Options> options(Index ranks) {
    std::vector<Options> all = {{}, {.copies = moe::mpi::CopiesForBackward::GatheredAgain}};
    if (ranks % 2 == 0) all.push_back({.exchange = moe::mpi::Exchange::Hierarchical, .ranks_per_node = 2});
    return all;
  }

  static void tokens_have_the_bits_of_one_process(const C& ranks) {
    for (const Index experts : {5, 8}) {
      Whole whole(experts);
      const double loss = whole.pass();
      for (const Options& with : options(ranks.size())) {
        Part part(ranks, whole, Placement::contiguous(experts, ranks.size()), with);
        for (const Placement& placement : placements(experts, ranks.size())) {
          part.experts().materialise(placement);
          const double sum = part.pass();
          expect(part.out == whole.out.middleRows(part.first, part.rows), "outputs differ");
          expect(part.dtokens == whole.dtokens.middleRows(part.first, part.rows), "gradients of tokens differ");
          // Sums of 48 tokens in another order.
          expect(std::abs(sum - loss) < 1e-13 * loss, "loss ", sum, ", expected ", loss);
          for (const Index e : placement.owned_by(ranks.rank())) {
            const double found = difference(part.gradient_of(e), whole.gradient.experts()[e]);
            expect(placement.copies() == 0 ? found == 0 : found < 1e-13, "gradient of expert ", e, " differs by ",
                   found);
          }
          const std::vector<Index> loads = part.experts().loads(part.tape.mixture.experts);
          for (Index e = 0; e < experts; ++e)
            expect(loads[static_cast<std::size_t>(e)] == whole.tape.mixture.plan.rows_of(e), "load of expert ", e);
        }
      }
    }
  }

  /// Copies gathered again, gathered early, and after another pass: the same bits.
  static void copies_may_come_when_they_like(const C& ranks) {
    Whole whole(8);
    const Placement shards = Placement::contiguous(8, ranks.size());
    Part kept(ranks, whole, shards, {}), again(ranks, whole, shards, options(ranks.size())[1]);
    for (const Placement& placement : placements(8, ranks.size())) {
      for (Part* part : {&kept, &again}) part->experts().materialise(placement);
      kept.pass();
      again.experts().start_gather(again.tape.mixture.experts);
      again.pass();
      expect(kept.out == again.out && kept.dtokens == again.dtokens, "outputs differ");
      expect(difference(kept.gradient, again.gradient) == 0, "gradients differ");
      typename Part::Layer alone = moe::zeros_like(again.layer);
      again.layer.backward(whole.tokens.middleRows(again.first, again.rows), again.tape, again.dout, alone);
      expect(difference(alone.mixture(), again.gradient.mixture()) == 0, "gradients without dtokens differ");
      typename Part::Layer::Workspace workspace;
      moe::Matrix<double> out(kept.rows, Whole::kDim);
      kept.layer.forward(whole.tokens.middleRows(kept.first, kept.rows), moe::Step{}, out, workspace);
      expect(out == kept.out, "inference differs");
    }
    // What a file of the whole layer holds.
    expect(difference(*kept.experts().gathered(), whole.layer.experts()) == 0, "gathered experts differ");
  }

  /// 20 steps of AdamW, copies by the loads of the steps before.
  template <class Codec>
  static void train_beside_one_process(const C& ranks, double tolerance) {
    WholeLayer<Codec> whole(8);
    PartOfLayer<Codec, C> part(ranks, whole, Placement::contiguous(8, ranks.size()),
                               {.copies = moe::mpi::CopiesForBackward::GatheredAgain});
    auto one = whole;
    const moe::AdamW adam{.epsilon = 1e-6};
    moe::AdamW::State state(part.layer);
    moe::AdamW::State state_of_one(one.layer);
    moe::mpi::LoadEstimate estimate(8);
    Index copies = 0;
    for (std::uint64_t update = 0; update < 20; ++update) {
      const double loss = part.pass(update), expected = one.pass();
      expect(std::abs(loss - expected) <= tolerance * expected, "update ", update, ": loss ", loss, ", expected ",
             expected);
      adam.step(part.layer, part.gradient, state, 1e-2);
      adam.step(one.layer, one.gradient, state_of_one, 1e-2);
      estimate.add(part.experts().loads(part.tape.mixture.experts));
      part.experts().materialise(moe::mpi::materialise(part.experts().placement().shards(), estimate.mean(),
                                                       part.experts().topology(), {.overlap = 2, .memory = 2}));
      copies += part.experts().placement().copies();
      if (update == 9) reshard(part, state, estimate);
    }
    expect(copies == 40 * (ranks.size() - 1), copies, " copies");
    const double found = difference(*part.experts().gathered(), one.layer.experts());
    expect(found <= tolerance, "experts differ by ", found);
    expect(difference(part.layer.router(), one.layer.router()) <= tolerance, "routers differ");
    expect(difference(one.layer, whole.layer) > 100 * tolerance, "nothing was learned");
  }
  template <class P, class State>
  static void reshard(P& part, State& state, const moe::mpi::LoadEstimate& estimate) {
    const std::vector<std::vector<double>> loads = {{estimate.mean().begin(), estimate.mean().end()}};
    const auto shards = moe::mpi::heterogeneous_sharding(loads, part.experts().topology(), 2);
    for (auto* layer : {&part.layer, &part.gradient, &state.first, &state.second})
      layer->mixture().experts().reshard(shards[0]);
  }
  static void training_in_double(const C& ranks) { train_beside_one_process<moe::F64>(ranks, 1e-12); }
  static void training_in_float(const C& ranks) { train_beside_one_process<moe::F32>(ranks, 1e-5); }

  static void bytes_are_those_of_the_formula(const C& ranks) {
    Whole whole(8);
    Part part(ranks, whole, Placement::contiguous(8, ranks.size()), options(ranks.size())[1]);
    const auto& expert = whole.layer.experts()[0];
    for (const Placement& placement : placements(8, ranks.size())) {
      part.experts().materialise(placement);
      part.pass();
      moe::Step step = moe::Step::train(0, 1);
      step.token_id = part.ids;
      const auto tokens = whole.tokens.middleRows(part.first, part.rows);
      const moe::mpi::Traffic before = ranks.traffic();
      part.layer.forward(tokens, step, part.out, part.tape);
      part.layer.backward(tokens, part.tape, part.dout, part.gradient, part.dtokens);
      const moe::mpi::Traffic sent = ranks.traffic() - before;
      Index there = 0, here = 0, copies = 0;  // rows of this rank elsewhere, and of others here
      const moe::mpi::Topology topology{.ranks = ranks.size()};
      for (Index from = 0; from < ranks.size(); ++from)
        for (Index e = 0; e < 8; ++e) {
          Index rows = 0;
          for (Index t = from * Whole::kTokens / ranks.size(); t < (from + 1) * Whole::kTokens / ranks.size(); ++t)
            for (const Index chosen : rows_of_one(whole, t)) rows += chosen == e ? 1 : 0;
          for (Index i = 0; i < rows; ++i) {
            const Index to = moe::mpi::holder_for(placement, topology, from, e, i);
            there += from == ranks.rank() && to != from ? 1 : 0;
            here += to == ranks.rank() && to != from ? 1 : 0;
          }
          if (from != ranks.rank() && placement.owner(e) == ranks.rank()) copies += placement.holds(from, e) ? 1 : 0;
        }
      const Index in = Whole::kDim * 8, out = Whole::kDim * 8, others = ranks.size() - 1;
      Index most = 0;  // experts on a rank
      for (Index r = 0; r < ranks.size(); ++r) most = std::max(most, std::ssize(placement.held_by(r)));
      const Index expected = others * 8 * (most + 2) + there * in + here * out + there * out + here * in +
                             2 * copies * moe::mpi::gathered_bytes(expert) +
                             moe::mpi::copies_received(placement, ranks.rank()) * moe::mpi::reduced_bytes(expert);
      expect(sent.bytes == expected, sent.bytes, " bytes, expected ", expected);
    }
  }
  static std::vector<Index> rows_of_one(Whole& whole, Index t) {
    if (whole.out.size() == 0) whole.pass();
    const auto of = whole.tape.routing.experts(t);
    return {of.begin(), of.end()};
  }

  /// Ids, groups and keys travel with the rows, and a copy draws as its owner.
  static void experts_draw_as_in_one_process(const C& ranks) {
    constexpr Index kExperts = 5, kTokens = 24;
    const moe::ExpertPool<Drawing<double>> pool(std::vector<Drawing<double>>(5, Drawing<double>()));
    const moe::Matrix<double> tokens = moe::Matrix<double>::Ones(kTokens, Drawing<double>().dim);
    const auto run = [&](const auto& experts, Index first, Index rows, moe::Matrix<double>& out) {
      std::vector<Index> chosen;
      std::vector<std::int64_t> ids, groups, keys;
      for (Index t = first; t < first + rows; ++t) {
        chosen.insert(chosen.end(), {t % kExperts, t % 3 == 0 ? (t + 2) % kExperts : 0});
        ids.push_back(100 + t), groups.push_back(t % 3), keys.push_back(7 * t);
      }
      moe::Step step = moe::Step::train(3, 4);
      step.token_id = ids, step.group_id = groups, step.key = keys;
      const std::vector<double> weights(chosen.size(), 0.5);
      moe::Scratch scratch;
      out.resize(rows, tokens.cols());
      moe::RoutedExperts(experts).forward(tokens.middleRows(first, rows),
                                          moe::Routing<double>::from(rows, chosen, weights, kExperts), {step, scratch},
                                          out);
    };
    moe::Matrix<double> expected, out;
    run(pool, 0, kTokens, expected);
    const Index first = ranks.rank() * kTokens / ranks.size(), last = (ranks.rank() + 1) * kTokens / ranks.size();
    moe::mpi::FullyShardedExperts experts(ranks, pool, Placement::contiguous(kExperts, ranks.size()));
    for (const Placement& placement : placements(kExperts, ranks.size())) {
      experts.materialise(placement);
      run(experts, first, last - first, out);
      expect(out == expected.middleRows(first, last - first), "other draws");
    }
  }

  /// What happens to a set between the passes of a tape.
  static void sets_may_move_between_passes(const C& ranks) {
    Whole whole(8);
    whole.pass();
    Part part(ranks, whole, Placement::contiguous(8, ranks.size()), {});
    const auto tokens = whole.tokens.middleRows(part.first, part.rows);
    const std::vector<Placement> all = placements(8, ranks.size());
    auto& tape = part.tape.mixture.experts;
    // Placements of the pass, not of the gather that was early.
    part.experts().start_gather(tape);
    part.experts().materialise(all[2]);
    part.pass();
    expect(part.out == whole.out.middleRows(part.first, part.rows), "outputs differ");
    for (const Index e : all[2].owned_by(ranks.rank()))
      expect(difference(part.gradient_of(e), whole.gradient.experts()[e]) < 1e-13, "gradients differ");
    // Experts that have gone to other memory since the forward pass.
    part.experts().reshard(part.experts().placement().shards());
    typename Part::Layer again = moe::zeros_like(part.layer);
    part.layer.backward(tokens, part.tape, part.dout, again, part.dtokens);
    expect(part.dtokens == whole.dtokens.middleRows(part.first, part.rows), "gradients of tokens differ");
    expect(difference(again.mixture(), part.gradient.mixture()) == 0, "gradients differ");
    // A gather for the next pass ends the last one.
    part.experts().start_gather(tape);
    expect_throws<std::invalid_argument>(
        "no forward pass", [&] { part.layer.backward(tokens, part.tape, part.dout, again, part.dtokens); });
    part.pass();
    expect(part.out == whole.out.middleRows(part.first, part.rows), "outputs differ");
  }

  /// The file of the whole layer, from and to any ranks, and the norm of the whole gradient.
  static void files_and_norms_are_of_the_whole(const C& ranks) {
    Whole whole(8);
    whole.pass();
    Part part(ranks, whole, Placement::contiguous(8, ranks.size()), {});
    part.experts().materialise(placements(8, ranks.size())[2]);
    part.pass();
    const double norm = moe::gradient_norm(whole.gradient);
    const double found = moe::mpi::clip_by_norm(ranks, part.gradient, norm / 2);
    expect(std::abs(found - norm) < 1e-12 * norm, "norm ", found, ", expected ", norm);
    expect(std::abs(moe::mpi::gradient_norm(ranks, part.gradient) - norm / 2) < 1e-12 * norm, "not clipped");

    const std::int64_t own = std::chrono::steady_clock::now().time_since_epoch().count();
    const auto stamp = moe::mpi::all_gather<std::int64_t>(ranks, std::span(&own, 1))[0];
    const auto path = std::filesystem::temp_directory_path() /
                      ("moe_fully_sharded_" + std::to_string(stamp) + "_" + std::to_string(ranks.size()));
    moe::mpi::save_parameters(ranks, path, part.layer);
    typename Whole::Layer loaded = moe::zeros_like(whole.layer);
    moe::load_parameters(path, loaded);
    expect(difference(loaded, whole.layer) == 0, "the file holds another layer");
    typename Part::Layer other = moe::zeros_like(part.layer);
    other.mixture().experts().reshard(Placement(std::vector<Index>(8, ranks.size() - 1), ranks.size()));
    moe::mpi::load_parameters(ranks, path, other);
    expect(difference(*other.mixture().experts().gathered(), whole.layer.experts()) == 0, "loaded another layer");
    // What one rank cannot load no rank has.
    WholeLayer<moe::F32> narrow(8);
    PartOfLayer<moe::F32, C> narrow_part(ranks, narrow, Placement::contiguous(8, ranks.size()), {});
    const bool refuses = ranks.rank() == 0;
    expect_throws<std::runtime_error>(refuses ? "" : "rank 0 cannot load what it has", [&] {
      moe::mpi::load_parameters(ranks, path, narrow_part.layer,
                                refuses ? moe::Narrowing::Refuse : moe::Narrowing::Allow);
    });
    expect(difference(narrow_part.layer.router(), narrow.layer.router()) == 0, "a router has been loaded");
    expect(difference(*narrow_part.experts().gathered(), narrow.layer.experts()) == 0, "experts have been loaded");
    moe::mpi::barrier(ranks);
    if (ranks.rank() == 0) std::filesystem::remove(path);
  }

  /// Copies are shaped as those of the set that they are of, whatever the memory has held before.
  static void sets_may_share_a_workspace(const C& ranks) {
    constexpr Index kExperts = 8, kDim = 6;
    typename Whole::Layer::Workspace ws, ws_whole;
    typename moe::MoeLayer<typename Whole::Router, moe::TopKGate, typename Part::Experts>::Tape tape;
    const moe::Matrix<double> tokens = moe::Matrix<double>::NullaryExpr(5, kDim, [&](Index t, Index c) {
      return moe::RandomField(moe::Purpose::User, 6).normal(5 * ranks.rank() + t, c);
    });
    for (const Index hidden : {40, 9, 40}) {
      const auto pool = moe::ExpertPool<typename Whole::Expert>::random(kExperts, kDim, hidden, 4);
      const auto router = Whole::Router::random(kExperts, kDim, 3, moe::Bias::Zero);
      const typename Whole::Layer whole(router, moe::TopKGate{.k = 2}, pool);
      typename Part::Experts set(ranks, pool, Placement::contiguous(kExperts, ranks.size()));
      Placement everywhere = set.placement();
      for (Index e = 0; e < kExperts; ++e)
        for (Index r = 0; r < ranks.size(); ++r) everywhere.add(e, r);
      set.materialise(everywhere);
      const typename Part::Layer layer(router, moe::TopKGate{.k = 2}, std::move(set));
      auto gradient = moe::zeros_like(layer);
      moe::Matrix<double> out(5, kDim), trained(5, kDim), expected(5, kDim), dtokens(5, kDim);
      whole.forward(tokens, moe::Step{}, expected, ws_whole);
      layer.forward(tokens, moe::Step{}, out, ws);
      layer.forward(tokens, moe::Step{}, trained, tape);
      layer.backward(tokens, tape, trained, gradient, dtokens);
      expect(out == expected && trained == expected, "other outputs at ", hidden, " hidden units");
    }
  }

  /// A rank without tokens, experts that ranks do not divide, and all tokens on one of them.
  static void odd_batches_have_the_bits_of_one_process(const C& ranks) {
    constexpr Index kExperts = 7, kDim = 6, kRows = 5;
    const Index size = ranks.size(), first = size > 1 ? 1 : 0;  // rank that has tokens
    const Index rows = ranks.rank() < first ? 0 : kRows, begin = std::max(ranks.rank() - first, Index{0}) * kRows;
    const moe::Matrix<double> all = moe::Matrix<double>::NullaryExpr(
        (size - first) * kRows, kDim,
        [](Index t, Index c) { return moe::RandomField(moe::Purpose::User, 6).normal(t, c); });
    const auto pool = moe::ExpertPool<typename Whole::Expert>::random(kExperts, kDim, 9, 4);
    for (const bool is_one : {false, true}) {
      auto router = Whole::Router::random(kExperts, kDim, 3, moe::Bias::Zero);
      if (is_one) moe::set_zero(router);  // the first of equal ones
      const typename Whole::Layer whole(router, moe::TopKGate::switch_transformer(), pool);
      const typename Part::Layer part(router, moe::TopKGate::switch_transformer(),
                                      typename Part::Experts(ranks, pool, Placement::contiguous(kExperts, size)));
      const auto run = [](const auto& layer, const moe::Matrix<double>& tokens, auto& gradient, auto& dtokens) {
        typename std::remove_cvref_t<decltype(layer)>::Tape tape;
        moe::Matrix<double> out(tokens.rows(), layer.output_dim());
        dtokens.resize(tokens.rows(), layer.input_dim());
        layer.forward(tokens, moe::Step::train(0, 1), out, tape);
        layer.backward(tokens, tape, out, gradient, dtokens);
        return out;
      };
      auto of_whole = moe::zeros_like(whole);
      auto of_part = moe::zeros_like(part);
      moe::Matrix<double> dwhole, dpart;
      const moe::Matrix<double> expected = run(whole, all, of_whole, dwhole);
      const moe::Matrix<double> out = run(part, all.middleRows(begin, rows), of_part, dpart);
      expect(out == expected.middleRows(begin, rows), "other outputs, one expert: ", is_one);
      expect(dpart == dwhole.middleRows(begin, rows), "other gradients of tokens, one expert: ", is_one);
      const auto& shard = of_part.mixture().experts();
      for (const Index e : shard.shard().ids)
        expect(difference(shard.owned(e), of_whole.experts()[e]) == 0, "other gradients of expert ", e);
    }
  }

  static void misuse_is_refused(const C& ranks) {
    Whole whole(8);
    const Index size = ranks.size();
    const Placement shards = Placement::contiguous(8, size);
    const auto refused = [&](const char* part, const Placement& of, Options with) {
      expect_throws<std::invalid_argument>(part, [&] { Part(ranks, whole, of, with); });
    };
    refused("shards of 7 experts", Placement::contiguous(7, size), {});
    refused("expected 8 experts", Placement::contiguous(8, size + 1), {});
    refused("equally many", shards, {.ranks_per_node = size + 1});
    if (size > 1) refused("copies", placements(8, size)[2], {});
    Part part(ranks, whole, shards, {});
    if (size > 1) {
      std::vector<Index> owner(8, ranks.rank());
      refused("a hash of the placement", Placement(owner, size), {});
      expect_throws<std::invalid_argument>("owners", [&] { part.experts().materialise(Placement(owner, size)); });
      Placement differs = shards;
      if (ranks.rank() == 0) differs.add(7, 0);
      expect_throws<std::invalid_argument>("a hash of the placement", [&] { part.experts().materialise(differs); });
    }
    part.pass();
    typename Part::Experts::Tape empty;
    moe::RowBuffer<double> dout;
    dout.resize(2 * part.rows, Whole::kDim);
    const moe::Step step;
    moe::Scratch scratch;
    const auto backward = [&](const char* says, const auto& dout_of, auto& tape, auto& gradient) {
      expect_throws<std::invalid_argument>(says, [&] {
        part.experts().backward(whole.tokens.middleRows(part.first, part.rows), part.tape.mixture.plan,
                                moe::Context{step, scratch}, tape, dout_of, gradient, part.dtokens);
      });
    };
    auto& of_part = part.gradient.mixture().experts();
    backward("no forward pass", dout, empty, of_part);
    backward("the set itself", dout, part.tape.mixture.experts, part.experts());
    part.experts().start_gather(part.tape.mixture.experts);
    backward("no forward pass", dout, part.tape.mixture.experts, of_part);
    part.pass();
    if (part.rows > 0) {  // as many rows, but others
      std::vector<Index> both(static_cast<std::size_t>(part.rows));
      for (std::size_t t = 0; t < both.size(); ++t) both[t] = static_cast<Index>(t) % 2 * 8;
      both.resize(both.size() / 2 * 2);
      const std::vector<double> weights(both.size(), 1.0);
      const auto rows = static_cast<Index>(both.size());
      const auto routing = moe::Routing<double>::from(rows, both, weights, 16);
      moe::DispatchPlan plan;
      plan.build(routing, 16);
      typename Part::Experts::Tape of_first;
      moe::RowBuffer<double> out;
      out.resize(rows, Whole::kDim);
      const auto tokens = whole.tokens.middleRows(part.first, rows);
      const moe::PlanView view(plan);
      part.experts().forward(tokens, view.part(0, 8), moe::Context{step, scratch}, out, of_first);
      expect_throws<std::invalid_argument>(
          "the tape is of rows", [&] { part.experts().require_backward(view.part(8, 8), of_first, of_part); });
    }
    if (size > 1) {
      const bool is_odd = ranks.rank() == 1;
      refused("what becomes of copies is 1 on rank 1, expected 0", shards,
              {.copies = is_odd ? moe::mpi::CopiesForBackward::GatheredAgain : moe::mpi::CopiesForBackward::Kept});
      refused("ranks_per_node is 1 on rank 1, expected 0", shards, {.ranks_per_node = is_odd ? 1 : 0});
      const auto forward = [&](const char* says, const moe::Step& of) {
        expect_throws<std::invalid_argument>(
            says, [&] { part.layer.forward(whole.tokens.middleRows(part.first, part.rows), of, part.out, part.tape); });
      };
      part.experts().materialise(placements(8, size)[2]);
      expect(part.experts().placement().copies() > 0, "no copies");
      forward("rank 1 is at another step", moe::Step::train(is_odd ? 1 : 0, 1));
      moe::Step keyed = moe::Step::train(0, 1);
      if (is_odd) keyed.key = part.ids;
      forward("in having keys", keyed);
      for (const Index e : shards.owned_by(ranks.rank())) randomise(part.experts().owned(e), 3);
      part.pass();  // what was on its way from those is not used
      const moe::Matrix<double> first = part.out;
      part.tape = {};
      part.pass();
      expect(part.out == first, "copies of a refused pass are used");
      expect_throws<std::invalid_argument>("a placement of 2 slices of each expert",
                                           [&] { part.experts().materialise(Placement::contiguous(8, size, 2)); });
      part.experts().materialise(shards);
      const moe::ExpertPool<OfAllRows> pool(std::vector<OfAllRows>(8, OfAllRows()));
      moe::mpi::FullyShardedExperts experts(ranks, pool, shards);
      expect_throws<std::invalid_argument>("copies of experts that look at several rows, expected none",
                                           [&] { experts.materialise(placements(8, size)[2]); });
    }
    backward("dout is [0, 0]", moe::RowBuffer<double>(), part.tape.mixture.experts, of_part);
  }

  static std::vector<std::pair<const char*, void (*)(const C&)>> all() {
    return {{"fully sharded: tokens have the bits of one process", tokens_have_the_bits_of_one_process},
            {"fully sharded: copies may come when they like", copies_may_come_when_they_like},
            {"fully sharded: training in double", training_in_double},
            {"fully sharded: training in float", training_in_float},
            {"fully sharded: bytes are those of the formula", bytes_are_those_of_the_formula},
            {"fully sharded: experts draw as in one process", experts_draw_as_in_one_process},
            {"fully sharded: sets may move between passes", sets_may_move_between_passes},
            {"fully sharded: files and norms are of the whole", files_and_norms_are_of_the_whole},
            {"fully sharded: odd batches have the bits of one process", odd_batches_have_the_bits_of_one_process},
            {"fully sharded: sets may share a workspace", sets_may_share_a_workspace},
            {"fully sharded: misuse is refused", misuse_is_refused}};
  }
};

}  // namespace test
