// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/expert/concatenated.hpp"
#include "moe/expert/frozen.hpp"
#include "moe/expert/gated_expert.hpp"
#include "moe/expert/glu.hpp"
#include "moe/expert/mlp.hpp"
#include "moe/expert/pool.hpp"
#include "moe/gate/top_k.hpp"
#include "moe/layer/moe_layer.hpp"
#include "moe/mpi/clip.hpp"
#include "moe/mpi/reduce_gradient.hpp"
#include "moe/mpi/sharded_experts.hpp"
#include "moe/mpi/sharded_parameters.hpp"
#include "moe/router/linear.hpp"
#include "moe/train/adam_w.hpp"
#include "mpi/ranks.hpp"
#include "support/files.hpp"
#include "support/parameters.hpp"

// Experts over ranks against all of them in one process: the cases that every communicator passes, on any number of
// ranks.
namespace test {

/// An expert that draws: row r becomes scale * x + a number of its token's id and of the expert, + its group and key.
template <class S>
struct Drawing {
  using Scalar = S;
  struct Tape {};
  Index dim = 6;
  double scale = 1.5;

  Index input_dim() const { return dim; }
  Index output_dim() const { return dim; }
  void forward(const moe::ConstMatrixRef<S>& rows, moe::MatrixRef<S> out, const moe::Context& context) const {
    const moe::RandomField draws = context.step.random(moe::Purpose::User);
    for (Index r = 0; r < rows.rows(); ++r) {
      const auto key = context.step.key.empty() ? 0 : context.step.key[static_cast<std::size_t>(r)];
      const double of_token = 3.0 * static_cast<double>(context.step.group(r)) + 0.1 * static_cast<double>(key);
      for (Index c = 0; c < dim; ++c)
        out(r, c) =
            static_cast<S>(scale * static_cast<double>(rows(r, c)) + draws.normal(context.step.id(r), c) + of_token);
    }
  }
  void forward(const moe::ConstMatrixRef<S>& rows, moe::MatrixRef<S> out, const moe::Context& context, Tape&) const {
    forward(rows, out, context);
  }
  void backward(const moe::ConstMatrixRef<S>& rows, Tape&, const moe::ConstMatrixRef<S>& dout, moe::MatrixRef<S> drows,
                Drawing& gradient, const moe::Context&) const {
    drows = static_cast<S>(scale) * dout;
    for (Index r = 0; r < rows.rows(); ++r)
      for (Index c = 0; c < dim; ++c)
        gradient.scale += static_cast<double>(rows(r, c)) * static_cast<double>(dout(r, c));
  }
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("scale", self.scale...);
  }
};

/// Names of files that all ranks have alike, and which go with the object of rank 0.
template <class C>
class TemporaryFiles {
 public:
  TemporaryFiles(const C& ranks, const std::vector<std::string>& names) : names_(names), is_first_(ranks.rank() == 0) {
    std::vector<std::int64_t> number = {is_first_ ? static_cast<std::int64_t>(std::random_device{}()) : 0};
    moe::mpi::all_reduce<std::int64_t>(ranks, number);
    path_ = (std::filesystem::temp_directory_path() / ("moe_test_ranks_" + std::to_string(number[0]))).string() + "_";
  }
  ~TemporaryFiles() {
    std::error_code ignored;
    for (const std::string& name : names_)
      if (is_first_) std::filesystem::remove(path_ + name, ignored);
  }
  TemporaryFiles(const TemporaryFiles&) = delete;
  TemporaryFiles& operator=(const TemporaryFiles&) = delete;

  std::string operator[](const std::string& name) const { return path_ + name; }

 private:
  std::vector<std::string> names_;
  bool is_first_;
  std::string path_;
};

template <class C>
struct ShardedCases {
  using Pool = moe::ExpertPool<moe::BasicMlp<moe::F64>>;
  using Sharded = moe::mpi::ShardedExperts<Pool, C>;
  static constexpr Index kInputs = 10, kHidden = 13, kOutputs = 7, kTokens = 41;

  static Pool pool(Index experts, std::uint64_t seed = 3) {
    Pool result = Pool::random(experts, {.input = kInputs, .hidden = kHidden, .output = kOutputs}, seed);
    randomise(result, seed);
    return result;
  }

  /// The batch of one process, of which every rank has a consecutive part; of more than two ranks rank 1 has none.
  struct Batch {
    Index rank, size;
    moe::Matrix<double> tokens = random_matrix<double>(kTokens, kInputs, 5);
    moe::Matrix<double> dout = random_matrix<double>(kTokens, kOutputs, 6);

    static Index begin(Index rank, Index size) { return (rank == 1 && size > 2 ? 2 : rank) * kTokens / size; }
    Index first() const { return begin(rank, size); }
    Index count() const { return begin(rank + 1, size) - first(); }
    auto own(const moe::Matrix<double>& of_all) const { return of_all.middleRows(first(), count()); }
  };

  enum class Choices { Random, OneExpert, All };

  /// k choices of every token of the batch, random or all of them for expert 0.
  static std::vector<Index> choices(Index experts, Index k, Choices kind) {
    const moe::RandomField random(moe::Purpose::User, 11);
    std::vector<Index> ids;
    for (Index t = 0; t < kTokens; ++t)
      for (Index s = 0; s < k; ++s)
        ids.push_back(kind == Choices::All ? s
                      : kind == Choices::OneExpert
                          ? 0
                          : static_cast<Index>(random.bits(t, s) % static_cast<std::uint64_t>(experts)));
    return ids;
  }
  static moe::Routing<double> routing(Index experts, Index k, Choices kind, Index first, Index count) {
    const std::vector<Index> all = choices(experts, k, kind);
    const moe::Matrix<double> weights = random_matrix<double>(kTokens, k, 12);
    const auto begin = all.begin() + first * k;
    return moe::Routing<double>::from(count, std::vector<Index>(begin, begin + count * k),
                                      std::span(weights.data() + first * k, static_cast<std::size_t>(count * k)),
                                      experts);
  }

  struct Result {
    moe::Matrix<double> out, inferred, dtokens;
    std::vector<double> dweight;
  };
  template <class X>
  static Result run(const moe::RoutedExperts<X>& mixture, const moe::Matrix<double>& tokens,
                    const moe::Matrix<double>& dout, const moe::Routing<double>& routing,
                    moe::RoutedExperts<X>& gradient) {
    Result result{moe::Matrix<double>(tokens.rows(), kOutputs),
                  moe::Matrix<double>(tokens.rows(), kOutputs),
                  moe::Matrix<double>(tokens.rows(), kInputs),
                  {}};
    moe::Scratch scratch;
    const moe::Context context(moe::Step{}, scratch);
    for (int call = 0; call < 2; ++call) mixture.forward(tokens, routing, context, result.inferred);
    typename moe::RoutedExperts<X>::Tape tape;
    mixture.forward(tokens, routing, context, result.out, tape);
    result.dweight.resize(static_cast<std::size_t>(routing.num_assignments()));
    mixture.backward(tokens, routing, context, tape, dout, gradient, result.dweight, result.dtokens);
    return result;
  }

  /// Fails unless two matrices are of one shape and differ by at most `tolerance`, 0: not in a bit.
  template <class A, class B>
  static void expect_same(const std::string& what, const A& a, const B& b, double tolerance) {
    expect(a.rows() == b.rows() && a.cols() == b.cols(), what, " is of ", a.size(), " numbers, expected ", b.size());
    const bool same = same_bits(a, b);
    const double difference = a.size() == 0 ? 0.0 : (a - b).cwiseAbs().maxCoeff();
    expect(tolerance == 0 ? same : difference <= tolerance, what, " differs by ", difference);
  }
  template <class T>
  static Eigen::VectorXd flat(const T& object) {
    std::vector<double> values;
    moe::visit(Flatten{values}, object);
    return Eigen::Map<const Eigen::VectorXd>(values.data(), std::ssize(values));
  }

  /// Forward and backward of experts over ranks against those of one process.
  static void compare(const C& ranks, const Sharded& sharded, const Pool& whole, Index k, Choices kind,
                      double tolerance = 0) {
    const Batch batch{ranks.rank(), ranks.size()};
    const Index experts = whole.size();
    const moe::RoutedExperts<Pool> reference(whole);
    moe::RoutedExperts<Pool> expected_gradient = zeros_like(reference);
    const Result expected =
        run(reference, batch.tokens, batch.dout, routing(experts, k, kind, 0, kTokens), expected_gradient);

    const moe::RoutedExperts<Sharded> mixture(sharded);
    moe::RoutedExperts<Sharded> gradient = zeros_like(mixture);
    const auto own_routing = routing(experts, k, kind, batch.first(), batch.count());
    const Result result = run(mixture, batch.own(batch.tokens), batch.own(batch.dout), own_routing, gradient);
    expect_same("the output", result.out, batch.own(expected.out), tolerance);
    expect_same("the output of inference", result.inferred, batch.own(expected.out), tolerance);
    expect_same("dL/dtokens", result.dtokens, batch.own(expected.dtokens), tolerance);
    for (Index a = 0; a < batch.count() * k; ++a)
      expect(std::abs(result.dweight[static_cast<std::size_t>(a)] -
                      expected.dweight[static_cast<std::size_t>(batch.first() * k + a)]) <= tolerance,
             "dL/dweight of choice ", a);

    // A sum of up to 11 * 241 squares in another order: 2651 eps = 5.9e-13.
    const double norm = moe::gradient_norm(expected_gradient);
    moe::RoutedExperts<Sharded> clipped = gradient;
    moe::mpi::all_reduce_gradient(ranks, clipped);
    const double found = moe::mpi::clip_by_norm(ranks, clipped, norm / 4);
    expect(std::abs(found - norm) <= 1e-12 * norm, "the norm is ", found, ", expected ", norm);
    const double after = moe::mpi::clip_by_norm(ranks, clipped, norm);
    expect(std::abs(after - norm / 4) <= 1e-12 * norm, "clipped to ", after, ", expected ", norm / 4);
    moe::RoutedExperts<Sharded> alone = zeros_like(mixture);
    typename moe::RoutedExperts<Sharded>::Tape tape;
    moe::Matrix<double> out(batch.count(), kOutputs);
    std::vector<double> dweight(result.dweight.size());
    mixture.forward(batch.own(batch.tokens), own_routing, moe::Step{}, out, tape);
    mixture.backward(batch.own(batch.tokens), own_routing, moe::Step{}, tape, batch.own(batch.dout), alone, dweight);
    expect_same("the gradient without dL/dtokens", flat(alone), flat(gradient), 0);

    const bool has_copies = sharded.placement().copies() > 0;
    const auto held = sharded.held();
    moe::mpi::all_reduce_gradient(ranks, gradient);
    for (std::size_t l = 0; l < held.size(); ++l) {
      const auto& of_whole = expected_gradient.experts()[held[l]];
      const moe::mpi::detail::SliceMap* const map = sharded.slice_map();
      const Eigen::VectorXd of_expert = flat(gradient.experts().shard()[static_cast<Index>(l)]),
                            expected_of =
                                flat(map == nullptr ? of_whole : map->part_of(of_whole, sharded.placement().slices()));
      // Of copies each has summed its own rows first, of 82 on 8 experts: 20 eps times 20 magnitudes of at most 10.
      expect_same("the gradient of expert " + std::to_string(held[l]), of_expert, expected_of,
                  has_copies ? 1e-12 : tolerance);
    }
  }

  static void bits_of_one_process(const C& ranks) {
    for (const Index experts : {Index{8}, Index{11}})
      for (const Choices kind : {Choices::Random, Choices::OneExpert})
        compare(ranks, Sharded::of(pool(experts), ranks), pool(experts), 2, kind);
    compare(ranks, Sharded::of(pool(8), ranks), pool(8), 8, Choices::All);
  }

  static void waves_have_the_bits_of_one(const C& ranks) {
    for (const Index waves : {2, 3, 12})
      compare(ranks, Sharded::of(pool(11), ranks, {.waves = waves}), pool(11), 2, Choices::Random);
  }

  static void hierarchical_exchange_has_the_bits_of_flat(const C& ranks) {
    for (Index per_node = 2; per_node < ranks.size(); per_node *= 2)
      for (const Index waves : {1, 3}) {
        const moe::mpi::ShardOptions options{
            .ranks_per_node = per_node, .exchange = moe::mpi::Exchange::Hierarchical, .waves = waves};
        compare(ranks, Sharded::of(pool(11), ranks, options), pool(11), 2, Choices::Random);
        compare(ranks, Sharded::of(pool(8), ranks, options), pool(8), 2, Choices::OneExpert);
      }
  }

  /// Glu in float, whose rows are wider than its outputs; frozen ones have the same gradients of tokens.
  static void glu_in_float(const C& ranks) {
    using Glus = moe::ExpertPool<moe::Glu>;
    const Glus glus = Glus::random(11, {.input = kInputs, .hidden = kHidden, .output = kOutputs}, 8);
    const Batch batch{ranks.rank(), ranks.size()};
    const moe::Matrix<float> tokens = batch.tokens.template cast<float>(), dout = batch.dout.template cast<float>();
    const std::vector<Index> ids = choices(11, 2, Choices::Random);
    const auto run_pass = [&](const auto& mixture, auto& gradient, Index first, Index count) {
      const std::vector<float> weights(static_cast<std::size_t>(2 * count), 0.5f);
      const auto chosen = moe::Routing<float>::from(
          count, std::vector<Index>(ids.begin() + 2 * first, ids.begin() + 2 * (first + count)), weights, 11);
      moe::Matrix<float> out(count, kOutputs), dtokens(count, kInputs);
      std::vector<float> dweight(weights.size());
      typename std::remove_cvref_t<decltype(mixture)>::Tape tape;
      mixture.forward(tokens.middleRows(first, count), chosen, moe::Step{}, out, tape);
      mixture.backward(tokens.middleRows(first, count), chosen, moe::Step{}, tape, dout.middleRows(first, count),
                       gradient, dweight, dtokens);
      return std::pair(out, dtokens);
    };
    const moe::RoutedExperts whole(glus);
    auto whole_gradient = zeros_like(whole);
    const auto [expected, expected_dtokens] = run_pass(whole, whole_gradient, 0, kTokens);
    const auto sharded = moe::mpi::ShardedExperts<Glus, C>::of(glus, ranks, {.waves = 2});
    const moe::RoutedExperts mixture(sharded);
    auto gradient = zeros_like(mixture);
    const auto [out, dtokens] = run_pass(mixture, gradient, batch.first(), batch.count());
    expect(same_bits(out, expected.middleRows(batch.first(), batch.count())), "the output differs");
    expect(same_bits(dtokens, expected_dtokens.middleRows(batch.first(), batch.count())), "dL/dtokens differs");
    for (const Index e : sharded.held())
      expect_same("the gradient of expert " + std::to_string(e), flat(gradient.experts().held(e)),
                  flat(whole_gradient.experts()[e]), 0);
    const moe::RoutedExperts frozen{moe::Frozen(sharded)};
    auto none = zeros_like(frozen);
    const auto of_frozen = run_pass(frozen, none, batch.first(), batch.count());
    expect(same_bits(of_frozen.second, dtokens), "dL/dtokens of frozen experts differs");
  }

  /// Outputs of slices are sums of kHidden + 1 numbers in another order: 14 eps times 14 magnitudes of at most 10,
  /// 4.4e-13. Gradients are those of kTokens products: 41 eps times sums of magnitudes of at most 100, 9.1e-13.
  static constexpr double kSumsInParts = 1e-12;

  /// More ranks than experts, where each has some of the hidden units: equal but for the order of sums.
  static void slices_compute_the_expert(const C& ranks) {
    for (Index slices = 1; slices <= ranks.size(); slices *= 2) {
      const Index experts = ranks.size() / slices;  // one per group of ranks
      const Pool whole = pool(experts);
      compare(ranks, Sharded::of(whole, ranks, {.slices = slices, .waves = 2}), whole, 1, Choices::Random,
              slices == 1 ? 0 : kSumsInParts);
    }
    if (ranks.size() > 1)
      expect_throws<std::invalid_argument>("expected at least one expert for every 1 ranks: more slices",
                                           [&] { Sharded::of(pool(ranks.size() - 1), ranks); });
  }

  /// Two copies of some experts, and one three times; every rank sends to those near to it.
  static void copies_share_the_rows(const C& ranks) {
    const Index experts = 8, per_rank = (8 + 8) / ranks.size();
    std::vector<double> load = {9, 5, 5, 5, 1, 1, 1, 1};
    const auto placement = moe::mpi::Placement::placed(
        moe::balance_experts(load, {.places = per_rank * ranks.size(), .ranks = ranks.size()}), ranks.size());
    for (const Index per_node : {Index{1}, ranks.size() >= 4 ? Index{2} : Index{1}}) {
      const Sharded sharded =
          Sharded::placed(pool(experts), placement, ranks, {.ranks_per_node = per_node, .waves = 2});
      compare(ranks, sharded, pool(experts), 2, Choices::Random);
    }
  }

  /// Experts that draw random numbers, in two sets side by side, of which the second counts from the first on.
  template <class S>
  static void steps_travel(const C& ranks) {
    using Set = moe::ExpertPool<Drawing<S>>;
    using Shards = moe::mpi::ShardedExperts<Set, C>;
    const Batch batch{ranks.rank(), ranks.size()};
    const Index experts = 19, dim = Drawing<S>{}.dim;
    const Set first(std::vector<Drawing<S>>(8)), second(std::vector<Drawing<S>>(11));
    const moe::RoutedExperts reference(moe::Concatenated(first, second));
    // The first set has copies, and experts that are not consecutive.
    const auto copies = moe::mpi::Placement::placed(
        moe::balance_experts(std::vector<double>{9, 1, 1, 1, 1, 1, 1, 5}, {.places = 16, .ranks = ranks.size()}),
        ranks.size());
    const moe::RoutedExperts mixture(
        moe::Concatenated(Shards::placed(first, copies, ranks), Shards::of(second, ranks, {.waves = 2})));
    std::vector<std::int64_t> groups(kTokens), keys(kTokens);
    for (std::size_t t = 0; t < groups.size(); ++t) {
      groups[t] = static_cast<std::int64_t>(t % 5);
      keys[t] = 100 - static_cast<std::int64_t>(t);
    }
    const moe::Matrix<S> tokens = random_matrix<S>(kTokens, dim, 8), dout = random_matrix<S>(kTokens, dim, 9);
    const auto run_pass = [&](const auto& layer, const moe::Step& step, Index from, Index count, auto& gradient) {
      moe::Matrix<S> out(count, dim), dtokens(count, dim);
      const std::vector<Index> all = choices(experts, 2, Choices::Random);
      const std::vector<S> weights(static_cast<std::size_t>(2 * count), S{1} / 3);
      const auto chosen = moe::Routing<S>::from(
          count, std::vector<Index>(all.begin() + 2 * from, all.begin() + 2 * (from + count)), weights, experts);
      std::vector<S> dweight(weights.size());
      const moe::Context context(step);
      typename std::remove_cvref_t<decltype(layer)>::Tape tape;
      layer.forward(tokens.middleRows(from, count), chosen, context, out, tape);
      layer.backward(tokens.middleRows(from, count), chosen, context, tape, dout.middleRows(from, count), gradient,
                     dweight, dtokens);
      return std::pair(out, dtokens);
    };
    moe::Step step = moe::Step::train(3, 4);
    step.group_id = groups;
    step.key = keys;
    auto expected_gradient = zeros_like(reference);
    const auto [expected, expected_dtokens] = run_pass(reference, step, 0, kTokens, expected_gradient);
    const std::vector<std::int64_t> ids = moe::mpi::global_ids(ranks, batch.count());
    const auto part = [&](const std::vector<std::int64_t>& values) {
      return std::span(values).subspan(static_cast<std::size_t>(batch.first()),
                                       static_cast<std::size_t>(batch.count()));
    };
    step.token_id = ids;
    step.group_id = part(groups);
    step.key = part(keys);
    auto gradient = zeros_like(mixture);
    const auto [out, dtokens] = run_pass(mixture, step, batch.first(), batch.count(), gradient);
    expect(same_bits(out, expected.middleRows(batch.first(), batch.count())), "other numbers are drawn");
    expect(same_bits(dtokens, expected_dtokens.middleRows(batch.first(), batch.count())), "dL/dtokens differs");
    moe::mpi::all_reduce_gradient(ranks, gradient);
    const auto& of_first = gradient.experts().template set<0>();
    for (const Index e : of_first.held()) {
      const double scale = expected_gradient.experts().template set<0>()[e].scale;
      // Copies have summed their own rows first: up to 82 * 6 products of at most 50, in float or double.
      expect(std::abs(of_first.held(e).scale - scale) <= 492 * 50 * 2.3e-16 * 492, "the gradient of copy ", e,
             " differs");
    }
    const auto& of_second = gradient.experts().template set<1>();
    const auto held = of_second.held();
    for (std::size_t l = 0; l < held.size(); ++l)
      expect(of_second.shard()[static_cast<Index>(l)].scale ==
                 expected_gradient.experts().template set<1>()[held[l]].scale,
             "the gradient of expert ", held[l], " differs");
    if (ranks.size() == 1) return;
    step.update += ranks.rank() == ranks.size() - 1 ? 1 : 0;
    expect_throws<std::invalid_argument>("is at another step",
                                         [&] { run_pass(mixture, step, batch.first(), batch.count(), gradient); });
  }
  static void steps_travel_with_rows(const C& ranks) {
    steps_travel<double>(ranks);
    steps_travel<float>(ranks);
  }

  static void disagreement_is_refused_on_all(const C& ranks) {
    if (ranks.size() == 1) return;
    const bool is_odd = ranks.rank() == 1;
    expect_throws<std::invalid_argument>("the number of experts is 16 on rank 1, expected 8 as on rank 0",
                                         [&] { Sharded::of(pool(is_odd ? 16 : 8), ranks); });
    expect_throws<std::invalid_argument>("waves is 2 on rank 1, expected 1",
                                         [&] { Sharded::of(pool(8), ranks, {.waves = is_odd ? 2 : 1}); });
    expect_throws<std::invalid_argument>("output_dim is 3 on rank 1, expected 7", [&] {
      Sharded::of(Pool::random(8, {.input = kInputs, .hidden = 4, .output = is_odd ? 3 : kOutputs}, 1), ranks);
    });
    expect_throws<std::invalid_argument>("a hash of the parameters' shapes is", [&] {
      Sharded::of(Pool::random(8, {.input = kInputs, .hidden = is_odd ? 3 : 4, .output = kOutputs}, 1), ranks);
    });
    const auto placement = moe::mpi::Placement::contiguous(8, ranks.size());
    const Index held = std::ssize(placement.held_by(ranks.rank()));
    expect_throws<std::invalid_argument>("slices is 2, expected 1 as in the placement",
                                         [&] { Sharded(pool(held), placement, ranks, {.slices = 2}); });
    expect_throws<std::invalid_argument>("rank 1 has a shard of another size", [&] {
      const Index more = is_odd ? 1 : 0;
      Sharded(pool(held + more), placement, ranks);
    });
    expect_throws<std::invalid_argument>("ranks_per_node is 3, expected a divisor",
                                         [&] { Sharded::of(pool(8), ranks, {.ranks_per_node = 3}); });
  }

  /// Bytes and messages of a pass, by the formulas: every token to every expert, so that every rank sends to every
  /// other that there are tokens for.
  static void traffic_is_that_of_the_formulas(const C& ranks) {
    const Index size = ranks.size(), rank = ranks.rank(), experts = 8, per_rank = experts / size;
    const auto tokens_of = [&](Index r) { return r + 3; };
    const Index own = tokens_of(rank), header = (per_rank + 2) * 8;
    Index all = 0;
    for (Index r = 0; r < size; ++r) all += tokens_of(r);
    std::vector<Index> ids;
    for (Index t = 0; t < own; ++t)
      for (Index e = 0; e < experts; ++e) ids.push_back(e);
    const std::vector<double> weights(ids.size(), 0.5);
    const auto own_routing = moe::Routing<double>::from(own, ids, weights, experts);
    for (Index per_node = 1; per_node <= size; per_node *= 2) {
      const auto exchange = moe::mpi::Exchange::Hierarchical;
      const moe::RoutedExperts<Sharded> mixture(
          Sharded::of(pool(experts), ranks, {.ranks_per_node = per_node, .exchange = exchange}));
      moe::Matrix<double> out(own, kOutputs);
      const moe::mpi::Traffic before = ranks.traffic();
      mixture.forward(random_matrix<double>(own, kInputs), own_routing, moe::Step{}, out);
      const moe::mpi::Traffic sent = ranks.traffic() - before;
      const bool is_flat = per_node == 1 || per_node == size;
      const Index nodes = size / per_node, messages = is_flat ? size - 1 : per_node - 1 + nodes - 1;
      Index of_node = 0;  // tokens of the ranks of this node
      for (Index r = 0; r < size; ++r) of_node += r / per_node == rank / per_node ? tokens_of(r) : 0;
      // Flat: own tokens to the experts of others; results to others' tokens. Hierarchical: there, own tokens to the
      // experts of other places, by node, then the node's tokens to this place on other nodes; back the same mirrored.
      const Index there = is_flat ? own * (experts - per_rank)
                                  : own * (per_node - 1) * nodes * per_rank + of_node * (nodes - 1) * per_rank;
      const Index back =
          is_flat ? (all - own) * per_rank : (all - of_node) * per_rank + back_in_node(rank, per_node, nodes, per_rank);
      const Index of_headers =
          is_flat ? (size - 1) * header : ((per_node - 1) * nodes + per_node * (nodes - 1)) * header;
      expect(sent.messages == 3 * messages, per_node, " ranks per node send ", sent.messages, " messages, expected ",
             3 * messages);
      const Index bytes = of_headers + 8 * (there * kInputs + back * kOutputs);
      expect(sent.bytes == bytes, per_node, " ranks per node send ", sent.bytes, " bytes, expected ", bytes);
    }
  }
  /// Results that this rank hands on within its node: those of its place on every node, for the tokens of its node
  /// mates.
  static Index back_in_node(Index rank, Index per_node, Index nodes, Index per_rank) {
    Index of_mates = 0;
    for (Index r = rank / per_node * per_node; r < (rank / per_node + 1) * per_node; ++r)
      of_mates += r == rank ? 0 : r + 3;
    return of_mates * nodes * per_rank;
  }

  /// <there(x), y> = <x, back(y)>, exactly, as the numbers are small integers.
  static void exchanges_are_adjoint(const C& ranks) {
    const Index size = ranks.size(), rank = ranks.rank();
    for (Index per_node = 1; per_node <= size; per_node *= 2) {
      const moe::mpi::RowExchange<C> exchange(ranks, moe::mpi::Exchange::Hierarchical, per_node);
      const auto rows = [](Index from, Index to) { return (3 * from + to) % 4; };
      std::vector<Index> headers, passing;
      moe::mpi::detail::RowCounts counts;
      for (Index r = 0; r < size; ++r) headers.push_back(rows(rank, r));
      counts.sent = headers;
      counts.received = exchange.announce(headers, 1, passing);
      counts.passing = passing;
      for (Index r = 0; r < size; ++r)
        expect(counts.received[static_cast<std::size_t>(r)] == rows(r, rank), "rank ", r, " has announced other rows");
      const auto draw = [&](Index count, std::uint64_t seed) {
        const moe::RandomField random(moe::Purpose::User, seed, rank);
        std::vector<double> values;
        for (Index i = 0; i < count; ++i) values.push_back(static_cast<double>(random.bits(i) % 17) - 8);
        return values;
      };
      const std::vector<double> x = draw(counts.num_sent(), 1), y = draw(counts.num_received(), 2);
      std::vector<double> ax(y.size()), aty(x.size());
      exchange.start_there(counts, 8, std::as_bytes(std::span(x)), std::as_writable_bytes(std::span(ax))).wait();
      exchange.start_back(counts, 8, std::as_bytes(std::span(y)), std::as_writable_bytes(std::span(aty))).wait();
      std::vector<double> products = {std::inner_product(ax.begin(), ax.end(), y.begin(), 0.0),
                                      std::inner_product(x.begin(), x.end(), aty.begin(), 0.0)};
      moe::mpi::all_reduce<double>(ranks, products);
      expect(products[0] == products[1], "<A x, y> is ", products[0], ", <x, A^T y> ", products[1]);
    }
  }

  using Layer = moe::MoeLayer<moe::BasicLinearRouter<moe::F64>, moe::TopKGate, Sharded>;
  using WholeLayer = moe::MoeLayer<moe::BasicLinearRouter<moe::F64>, moe::TopKGate, Pool>;

  /// A layer, and a parameter that no layer has.
  struct Named {
    WholeLayer layer;
    double more = 1;

    template <class F, class... Self>
    static void visit(F&& f, Self&... self) {
      moe::visit(f, self.layer...);
      f("more", self.more...);
    }
  };

  template <class L>
  static double pass(const L& layer, const moe::Matrix<double>& tokens, const moe::Matrix<double>& targets,
                     L& gradient) {
    typename L::Tape tape;
    moe::Matrix<double> out(tokens.rows(), kOutputs), dtokens(tokens.rows(), kInputs);
    layer.forward(tokens, moe::Step{}, out, tape);
    const moe::Matrix<double> difference = out - targets;
    layer.backward(tokens, tape, difference, gradient, dtokens);
    return 0.5 * difference.squaredNorm();
  }

  /// 20 steps of AdamW. The experts and the router end with the bits of one process that adds up the router's gradient
  /// by parts of the batch, as ranks do; of one that does not they differ by rounding. The router's gradient is a sum
  /// of 41 products, off by 41 eps times the sum of their magnitudes: by 1e-10 of itself where they cancel to 1e-4. A
  /// step is off by the rate times that, 20 steps by 2e-11, and by more in the second half as gradients are those of
  /// other parameters: a factor of 50 is left for it. Losses are sums of 41 * 7 squares, 287 eps = 6.4e-14.
  static void training_has_the_bits_of_one_process(const C& ranks) {
    const Batch batch{ranks.rank(), ranks.size()};
    const Index experts = 9;
    const moe::BasicLinearRouter<moe::F64> router = moe::BasicLinearRouter<moe::F64>::random(experts, kInputs, 21);
    WholeLayer whole(router, {.k = 2}, pool(experts)), plain = whole;
    Layer layer(router, {.k = 2}, Sharded::of(pool(experts), ranks, {.waves = 2}));
    const moe::AdamW adam;
    moe::AdamW::State<WholeLayer> whole_state(whole), plain_state(plain);
    moe::AdamW::State<Layer> state(layer);
    for (int n = 0; n < 20; ++n) {
      WholeLayer whole_gradient = zeros_like(whole), plain_gradient = whole_gradient, by_parts = whole_gradient;
      const double expected = pass(whole, batch.tokens, batch.dout, whole_gradient);
      for (Index r = 0; r < ranks.size(); ++r) {
        const Batch part{r, ranks.size()};
        WholeLayer of_part = zeros_like(whole);
        pass<WholeLayer>(whole, part.own(part.tokens), part.own(part.dout), of_part);
        if (r == 0)
          by_parts.router() = of_part.router();
        else
          moe::visit(
              [](const std::string&, auto& sum, const auto& more) {
                const auto from = moe::parameter_span(more);
                auto to = moe::parameter_span(sum);
                for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
              },
              by_parts.router(), of_part.router());
      }
      whole_gradient.router() = by_parts.router();
      adam.step(whole, whole_gradient, whole_state, 0.01);
      pass(plain, batch.tokens, batch.dout, plain_gradient);
      adam.step(plain, plain_gradient, plain_state, 0.01);

      Layer gradient = zeros_like(layer);
      std::vector<double> loss = {pass<Layer>(layer, batch.own(batch.tokens), batch.own(batch.dout), gradient)};
      moe::mpi::all_reduce<double>(ranks, loss);
      moe::mpi::all_reduce_gradient(ranks, gradient);
      const double norm = moe::mpi::gradient_norm(ranks, gradient), expected_norm = moe::gradient_norm(whole_gradient);
      expect(std::abs(norm - expected_norm) <= 1e-12 * expected_norm, "the norm is ", norm, ", expected ",
             expected_norm);
      adam.step(layer, gradient, state, 0.01);
      expect(std::abs(loss[0] - expected) <= 1e-12 * expected, "the loss of step ", n, " is ", loss[0], ", expected ",
             expected);
    }
    expect_same("the router", flat(layer.router()), flat(whole.router()), 0);
    expect_same("the router of plain training", flat(layer.router()), flat(plain.router()), 1e-9);
    const auto held = layer.experts().held();
    for (std::size_t l = 0; l < held.size(); ++l) {
      const Eigen::VectorXd expert = flat(layer.experts().shard()[static_cast<Index>(l)]);
      expect_same("expert " + std::to_string(held[l]), expert, flat(whole.experts()[held[l]]), 0);
      expect_same("expert of plain training " + std::to_string(held[l]), expert, flat(plain.experts()[held[l]]), 1e-9);
    }
    typename Layer::Workspace workspace;
    workspace.max_tokens = 3;
    moe::Matrix<double> out(kTokens, kOutputs);
    expect_throws<std::invalid_argument>("workspace.max_tokens is 3, expected 0 with experts over ranks",
                                         [&] { layer.forward(batch.tokens, out, workspace); });
  }

  /// Experts behind gates, in slices: the output bias is with the first slice alone, gates are with each. 5 steps of
  /// AdamW, whose epsilon is 1, so that a step is off by no more than the rate times what gradients are: 0.01 * 5
  /// kSumsInParts * 10 for what weights do to them in between.
  static void slices_train_and_are_saved(const C& ranks) {
    using Glu = moe::BasicGlu<moe::F64>;  // whose gates and ups are cut apart
    using Gated = moe::GatedExpert<Glu, moe::F64>;
    using GatedPool = moe::ExpertPool<Gated>;
    using Slices = moe::mpi::ShardedExperts<GatedPool, C>;
    using Router = moe::BasicLinearRouter<moe::F64>;
    using OfSlices = moe::MoeLayer<Router, moe::TopKGate, Slices>;
    using Whole = moe::MoeLayer<Router, moe::TopKGate, GatedPool>;
    const Batch batch{ranks.rank(), ranks.size()};
    constexpr Index kExperts = 3;
    auto ungated = moe::ExpertPool<Glu>::random(kExperts, {.input = kInputs, .hidden = kHidden, .output = kOutputs}, 3,
                                                moe::Bias::Zero);
    randomise(ungated, 3);
    std::vector<Gated> experts;
    for (Index e = 0; e < kExperts; ++e)
      experts.emplace_back(ungated[e],
                           moe::BasicLinear<moe::F64>::random(1, kInputs, static_cast<std::uint64_t>(31 + e)));
    const GatedPool gated(std::move(experts));
    const auto slices_on = [](const C& of) { return of.size() < 4 ? of.size() : of.size() / 2; };
    const Router router = Router::random(kExperts, kInputs, 21);
    Whole whole(router, {.k = 2}, gated);
    OfSlices layer(router, {.k = 2}, Slices::of(gated, ranks, {.slices = slices_on(ranks)}));
    const moe::AdamW adam{.epsilon = 1};
    moe::AdamW::State<Whole> whole_state(whole);
    moe::AdamW::State<OfSlices> state(layer);
    for (int n = 0; n < 5; ++n) {
      Whole whole_gradient = zeros_like(whole);
      OfSlices gradient = zeros_like(layer);
      pass(whole, batch.tokens, batch.dout, whole_gradient);
      pass<OfSlices>(layer, batch.own(batch.tokens), batch.own(batch.dout), gradient);
      moe::mpi::all_reduce_gradient(ranks, gradient);
      adam.step(whole, whole_gradient, whole_state, 0.01);
      adam.step(layer, gradient, state, 0.01);
    }
    const TemporaryFiles files(ranks, {"layer", "moments", "again"});
    moe::mpi::save_parameters(ranks, files["layer"], layer);
    moe::mpi::save_parameters(ranks, files["moments"], state);
    Whole loaded = zeros_like(whole);
    moe::AdamW::State<Whole> loaded_state(whole);
    moe::load_parameters(files["layer"], loaded);
    moe::load_parameters(files["moments"], loaded_state);
    expect_same("the layer", flat(loaded), flat(whole), kSumsInParts);
    expect_same("the moments", flat(loaded_state), flat(whole_state), kSumsInParts);
    expect((flat(loaded) - flat(Whole(router, {.k = 2}, gated))).cwiseAbs().maxCoeff() > 1e-3, "nothing was learned");
    // By half of the ranks: they have the same numbers in other slices, and their file is the same.
    const C half = ranks.split(ranks.rank() % 2, ranks.rank());
    OfSlices other(Router(kExperts, kInputs), {.k = 2}, Slices::of(gated, half, {.slices = slices_on(half)}));
    moe::mpi::load_parameters(half, files["layer"], other);
    if (ranks.rank() % 2 == 0) moe::mpi::save_parameters(half, files["again"], other);
    moe::mpi::barrier(ranks);
    expect(read_bytes(files["again"]) == read_bytes(files["layer"]), "other ranks save another file");
    moe::mpi::barrier(ranks);
    moe::AdamW::State<OfSlices> other_state(other);
    moe::mpi::load_parameters(half, files["moments"], other_state);
    if (ranks.rank() % 2 == 0) moe::mpi::save_parameters(half, files["again"], other_state);
    moe::mpi::barrier(ranks);
    expect(read_bytes(files["again"]) == read_bytes(files["moments"]), "other ranks save other moments");
    for (const Index e : layer.experts().held()) {  // every slice has stayed alike
      std::vector<double> least = values_of(std::as_const(layer).experts().held(e).gate().weight()), most = least;
      if (ranks.size() == 1) continue;
      moe::mpi::all_reduce<double>(*layer.experts().slice_ranks(), least, moe::mpi::Reduction::Least);
      moe::mpi::all_reduce<double>(*layer.experts().slice_ranks(), most, moe::mpi::Reduction::Most);
      expect(least == most, "gates have gone apart");
    }
    moe::mpi::barrier(ranks);
  }

  /// Files of a layer over ranks are those of the whole layer, and are read by another number of ranks.
  static void files_are_those_of_the_whole(const C& ranks) {
    const TemporaryFiles files(ranks, {"saved", "whole", "more", "moments", "whole_moments"});
    const auto router = moe::BasicLinearRouter<moe::F64>::random(11, kInputs, 21);
    const WholeLayer whole(router, {.k = 2}, pool(11));
    const Layer layer(router, {.k = 2}, Sharded::of(pool(11), ranks));
    // Moments of a step whose gradient is the layer.
    moe::AdamW::State<WholeLayer> whole_state(whole);
    moe::AdamW::State<Layer> state(layer);
    WholeLayer whole_after = whole;
    Layer after = layer;
    moe::AdamW{}.step(whole_after, whole, whole_state, 0.1);
    moe::AdamW{}.step(after, layer, state, 0.1);
    if (ranks.rank() == 0) {
      moe::save_parameters(files["whole"], whole);
      moe::save_parameters(files["whole_moments"], whole_state);
      moe::save_parameters(files["more"], Named{whole});
    }
    moe::mpi::save_parameters(ranks, files["saved"], layer);
    moe::mpi::save_parameters(ranks, files["moments"], state);
    expect(read_bytes(files["saved"]) == read_bytes(files["whole"]), "the file is not that of the whole layer");
    expect(read_bytes(files["moments"]) == read_bytes(files["whole_moments"]), "nor is that of the moments");
    const C half = ranks.split(ranks.rank() % 2, ranks.rank());
    Layer other(moe::BasicLinearRouter<moe::F64>(11, kInputs), {.k = 2}, Sharded::of(pool(11, 99), half));
    moe::AdamW::State<Layer> other_state(other);
    moe::mpi::load_parameters(half, files["whole"], other);
    moe::mpi::load_parameters(half, files["moments"], other_state);
    expect_same("the router", flat(other.router()), flat(whole.router()), 0);
    expect(other_state.update == 1, "another number of steps");
    const auto held = other.experts().held();
    for (const Index e : held) {
      expect_same("an expert", flat(other.experts().held(e)), flat(whole.experts()[e]), 0);
      expect_same("a moment", flat(other_state.second.experts().held(e)), flat(whole_state.second.experts()[e]), 0);
    }
    const auto placement = moe::mpi::Placement::placed(
        moe::balance_experts(std::vector<double>(11, 1.0), {.places = 2 * 8 * 2, .ranks = ranks.size()}), ranks.size());
    const Layer copies(router, {.k = 2}, Sharded::placed(pool(11), placement, ranks));
    moe::mpi::save_parameters(ranks, files["saved"], copies);
    expect(read_bytes(files["saved"]) == read_bytes(files["whole"]),
           "the file of copies is not that of the whole layer");
    expect_throws<std::runtime_error>("tensor 'more' is a parameter of the layer on no rank",
                                      [&] { moe::mpi::load_parameters(half, files["more"], other); });
    // What one rank does not find, all are told of, without waiting.
    expect_throws<std::runtime_error>(ranks.rank() == 0 ? "nowhere" : "rank 0 cannot read it", [&] {
      Layer again = layer;
      moe::mpi::load_parameters(ranks, ranks.rank() == 0 ? "nowhere" : files["whole"], again);
    });
    if (ranks.size() > 1)
      expect_throws<std::invalid_argument>(
          "slices is ", [&] { Sharded::of(pool(16), ranks, {.slices = ranks.rank() == 1 ? 2 : 1}); });
    moe::mpi::barrier(ranks);
  }

  static auto all() {
    using Case = void (*)(const C&);
    return std::vector<std::pair<const char*, Case>>{
        {"files are those of the whole", &files_are_those_of_the_whole},
        {"bits of one process", &bits_of_one_process},
        {"waves have the bits of one", &waves_have_the_bits_of_one},
        {"hierarchical exchange has the bits of flat", &hierarchical_exchange_has_the_bits_of_flat},
        {"Glu in float", &glu_in_float},
        {"slices compute the expert", &slices_compute_the_expert},
        {"slices train and are saved", &slices_train_and_are_saved},
        {"copies share the rows", &copies_share_the_rows},
        {"steps travel with rows", &steps_travel_with_rows},
        {"disagreement is refused on all", &disagreement_is_refused_on_all},
        {"traffic is that of the formulas", &traffic_is_that_of_the_formulas},
        {"exchanges are adjoint", &exchanges_are_adjoint},
        {"training has the bits of one process", &training_has_the_bits_of_one_process}};
  }
};

}  // namespace test
