// SPDX-License-Identifier: MIT
// Traces keep what was routed, in memory and in files, and measures of locality are those of their definition.
#include "moe/serve/routing_trace.hpp"

#include "moe/serve/segment_routing.hpp"
#include "moe/serve/trace_file.hpp"
#include "serve/traces.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

using Catch::Matchers::WithinAbs;
using moe::Index;
using moe::RoutingTrace;
using moe::SegmentHistogram;

namespace {

std::vector<Index> experts_of(const RoutingTrace& trace, Index t) {
  return {trace.experts(t).begin(), trace.experts(t).end()};
}

/// The F1 of every router that answers for all pairs of an expert and a segment: the best of all subsets of pairs.
double best_of_all_routers(const RoutingTrace& trace, Index m) {
  std::vector<Index> uses;
  for (Index i = 0; i < trace.num_sequences(); ++i)
    for (Index p = trace.sequence_begin(i); p + m <= trace.sequence_begin(i + 1); ++p)
      for (Index e = 0; e < trace.num_experts(); ++e) {
        Index f = 0;
        for (Index t = p; t < p + m; ++t) f += std::ranges::count(trace.experts(t), static_cast<std::uint32_t>(e));
        uses.push_back(f);
      }
  const auto all = static_cast<double>(std::accumulate(uses.begin(), uses.end(), Index{0}));
  double best = 0;
  for (std::uint64_t chosen = 1; chosen < std::uint64_t{1} << uses.size(); ++chosen) {
    double covered = 0, size = 0;
    for (std::size_t i = 0; i < uses.size(); ++i)
      if (chosen >> i & 1) covered += static_cast<double>(uses[i]), size += static_cast<double>(m);
    best = std::max(best, 2 * covered / (size + all));
  }
  return all == 0 ? 0 : best;
}

}  // namespace

TEST_CASE("RoutingTrace: kept choices of valid tokens, each expert once, in their order", "[serve]") {
  auto routing = moe::Routing<float>::from(4, std::vector<int>{2, 0, 1, 1, 0, 2, 1, 0}, {}, 3);
  routing.drop(4, moe::kDroppedByCapacity);
  const std::uint8_t valid[] = {1, 1, 1, 0};
  moe::Step step;
  step.valid = valid;
  RoutingTrace trace(3);
  trace.add(routing, step);
  trace.begin_sequence();
  trace.begin_sequence();
  trace.add(routing);
  CHECK(trace.num_tokens() == 7);
  CHECK(experts_of(trace, 0) == std::vector<Index>{2, 0});
  CHECK(experts_of(trace, 1) == std::vector<Index>{1});
  CHECK(experts_of(trace, 2) == std::vector<Index>{2});
  CHECK(experts_of(trace, 6) == std::vector<Index>{1, 0});
  REQUIRE(trace.num_sequences() == 2);
  CHECK(trace.sequence_begin(1) == 3);
  CHECK(trace.sequence_begin(2) == 7);
  CHECK(moe::steps_of(trace, 3) == std::vector<std::vector<Index>>{{0, 1, 2}, {0, 1, 2}, {0, 1}});
}

TEST_CASE("RoutingTrace: experts out of range, twice, and scores of some tokens only are refused", "[serve][error]") {
  RoutingTrace trace(3);
  CHECK_THROWS_AS(RoutingTrace(0), std::invalid_argument);
  CHECK_THROWS_AS(trace.add(std::vector<Index>{3}), std::invalid_argument);
  CHECK_THROWS_AS(trace.add(std::vector<Index>{1, 1}), std::invalid_argument);
  CHECK_THROWS_AS(trace.add(moe::Routing<float>::from(1, std::vector<int>{3}, {}, 4)), std::invalid_argument);
  CHECK(trace.num_tokens() == 0);
  trace.add(std::vector<Index>{1});
  const moe::Matrix<float> scores = moe::Matrix<float>::Zero(1, 3);
  CHECK_THROWS_AS(trace.add<float>(moe::Routing<float>::from(1, std::vector<int>{2}, {}, 3), scores),
                  std::invalid_argument);
  CHECK_THROWS_AS(moe::steps_of(trace, 0), std::invalid_argument);
  CHECK_THROWS_AS(moe::join_layers({}), std::invalid_argument);
  const RoutingTrace layers[] = {trace, RoutingTrace(3)};
  CHECK_THROWS_AS(moe::join_layers(layers), std::invalid_argument);
}

TEST_CASE("RoutingTrace: a file gives the same trace back, whatever the width of ids", "[serve]") {
  const test::TemporaryDirectory directory;
  for (const Index experts : {5, 300, 70000}) {
    RoutingTrace trace = test::random_trace(20, experts, 3, 1);
    trace.begin_sequence();
    trace.add(std::vector<Index>{experts - 1});
    trace.add(std::vector<Index>{});
    moe::save_trace(directory / "trace", trace);
    CHECK(moe::load_trace(directory / "trace") == trace);
  }
  RoutingTrace scored(3), empty(4);
  moe::Matrix<float> scores(2, 3);
  scores << 0.5f, 0.25f, 0.25f, 0, 1, -2;
  scored.add<float>(moe::Routing<float>::from(2, std::vector<int>{0, 1}, {}, 3), scores);
  moe::save_trace(directory / "scored", scored);
  moe::save_trace(directory / "empty", empty);
  CHECK(moe::load_trace(directory / "scored") == scored);
  CHECK(moe::load_trace(directory / "scored").scores(1)[2] == -2);
  CHECK(moe::load_trace(directory / "empty") == empty);
  scored.begin_sequence();  // and another session goes on
  moe::save_trace(directory / "pending", scored);
  RoutingTrace resumed = moe::load_trace(directory / "pending");
  CHECK(resumed == scored);
  CHECK(resumed.begins_sequence());
  CHECK(resumed.num_sequences() == 1);
  resumed.add<float>(moe::Routing<float>::from(2, std::vector<int>{0, 1}, {}, 3), scores);
  CHECK(resumed.num_sequences() == 2);
  CHECK(resumed.sequence_begin(1) == 2);
}

TEST_CASE("load_trace: a file that is none says what is wrong", "[serve][error]") {
  const test::TemporaryDirectory directory;
  const auto message = [&](std::int64_t experts, std::vector<std::uint8_t> ids, std::vector<std::uint32_t> choices,
                           std::vector<std::int64_t> sequences) -> std::string {
    moe::SafetensorsWriter writer(directory / "bad",
                                  {.tensors = {{"experts", {moe::Dtype::U8, {std::ssize(ids)}}},
                                               {"choices", {moe::Dtype::U32, {std::ssize(choices)}}},
                                               {"sequences", {moe::Dtype::I64, {std::ssize(sequences)}}},
                                               {"num_experts", {moe::Dtype::I64, {1}}}}});
    writer.write("experts", std::span<const std::uint8_t>(ids));
    writer.write("choices", std::span<const std::uint32_t>(choices));
    writer.write("sequences", std::span<const std::int64_t>(sequences));
    writer.write("num_experts", std::span<const std::int64_t>(&experts, 1));
    writer.commit();
    try {
      moe::load_trace(directory / "bad");
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "none";
  };
  CHECK(message(2, {0, 1}, {1, 1}, {0}) == "none");
  CHECK_THAT(message(0, {0, 1}, {1, 1}, {0}), Catch::Matchers::ContainsSubstring("no number of experts"));
  CHECK_THAT(message(2, {0, 2}, {1, 1}, {0}), Catch::Matchers::ContainsSubstring("token 1"));
  CHECK_THAT(message(2, {0, 0}, {2}, {0}), Catch::Matchers::ContainsSubstring("twice"));
  CHECK_THAT(message(2, {0, 1}, {1, 2}, {0}), Catch::Matchers::ContainsSubstring("token 1 has 2"));
  CHECK_THAT(message(2, {0, 1}, {1}, {0}), Catch::Matchers::ContainsSubstring("expected the 1"));
  CHECK(message(std::int64_t{0xFFFFFFFF}, {0, 1}, {1, 1}, {0}) == "none");  // in memory of the file's size
  CHECK_THAT(message(2, {0, 1}, {1, 1}, {0, 3}), Catch::Matchers::ContainsSubstring("sequences"));
  CHECK_THAT(message(2, {0, 1}, {1, 1}, {0, 2, 2}), Catch::Matchers::ContainsSubstring("sequences"));
  CHECK_THAT(message(2, {0, 1}, {1, 1}, {1}), Catch::Matchers::ContainsSubstring("sequences"));
  CHECK_THAT(message(2, {0, 1}, {1, 1}, {}), Catch::Matchers::ContainsSubstring("sequences"));
}

TEST_CASE("RoutingTrace: a token of very many experts is read in time", "[serve][slow]") {  // minutes in pairs
  const test::TemporaryDirectory directory;
  constexpr Index kMany = 1 << 18;
  std::vector<Index> ids(kMany);
  std::iota(ids.rbegin(), ids.rend(), Index{0});
  RoutingTrace trace(kMany), scored(kMany);
  trace.add(ids);
  scored.add<float>(moe::Routing<float>::from(1, ids, {}, kMany), moe::Matrix<float>::Zero(1, kMany));
  CHECK(experts_of(trace, 0) == ids);
  CHECK(experts_of(scored, 0) == ids);
  for (const RoutingTrace* each : {&trace, &scored}) {
    moe::save_trace(directory / "many", *each);
    CHECK(moe::load_trace(directory / "many") == *each);
  }
  ids[5] = ids[1000];
  CHECK_THROWS_AS(RoutingTrace(kMany).add(ids), std::invalid_argument);
  RoutingTrace once(kMany);
  once.add(moe::Routing<float>::from(1, ids, {}, kMany));
  CHECK(once.num_choices() == kMany - 1);
}

TEST_CASE("join_layers: a token is a row per layer, with experts of their own", "[serve]") {
  const RoutingTrace layers[] = {test::random_trace(6, 4, 2, 1), test::random_trace(6, 3, 1, 2)};
  const RoutingTrace joined = moe::join_layers(layers);
  CHECK(joined.num_experts() == 7);
  REQUIRE(joined.num_tokens() == 12);
  for (Index t = 0; t < 6; ++t) {
    CHECK(experts_of(joined, 2 * t) == experts_of(layers[0], t));
    CHECK(experts_of(joined, 2 * t + 1) == std::vector<Index>{4 + experts_of(layers[1], t)[0]});
  }
}

TEST_CASE("SegmentHistogram: SRP is 1 for single tokens, and for an expert that all tokens have", "[serve]") {
  const RoutingTrace trace = test::random_trace(200, 8, 2, 3);
  const moe::SegmentRouting single = moe::segment_routing(trace, 1);
  CHECK(single.srp == 1);
  CHECK(single.size_ratio == 1);
  RoutingTrace constant(3);
  for (Index t = 0; t < 50; ++t) constant.add(std::vector<Index>{1});
  CHECK(moe::segment_routing(constant, 16).srp == 1);
  SegmentHistogram never(4);
  never.add(constant, 0);
  CHECK(never.best().srp == 0);
  CHECK(never.best().size_ratio == 0);
  CHECK(moe::segment_routing(constant, 51).srp == 0);  // there is no segment as long
}

TEST_CASE("SegmentHistogram: experts by turns give 2/3 for an even m", "[serve]") {
  RoutingTrace trace(2);
  for (Index t = 0; t < 64; ++t) trace.add(std::vector<Index>{t % 2});
  for (const Index m : {2, 4, 16}) CHECK_THAT(moe::segment_routing(trace, m).srp, WithinAbs(2.0 / 3, 1e-15));
}

TEST_CASE("SegmentHistogram: independent draws tend to 2p / (1 + p)", "[serve]") {
  const double p = 2.0 / 16, limit = 2 * p / (1 + p);
  const RoutingTrace trace = test::random_trace(4000, 16, 2, 4);
  const double found = moe::segment_routing(trace, 256).srp;
  CHECK(found >= limit - 1e-12);  // what taking every expert gives
  CHECK(found < limit + 0.02);    // f has a deviation of 5 in 32 there, so that thresholds gain little
  CHECK(moe::segment_routing(trace, 16).srp > found);
}

TEST_CASE("SegmentHistogram: the threshold is as good as any router", "[serve]") {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    const auto m = static_cast<Index>(2 + seed % 3);
    RoutingTrace trace(2);
    const moe::RandomField random(moe::Purpose::User, seed);
    for (Index t = 0; t < 7; ++t) {
      std::vector<Index> ids;
      for (Index e = 0; e < 2; ++e)
        if (random.uniform(t, e) < 0.4) ids.push_back(e);
      if (t == 4 && seed % 2 == 1) trace.begin_sequence();
      trace.add(ids);
    }
    CAPTURE(seed, m);
    CHECK_THAT(moe::segment_routing(trace, m).srp, WithinAbs(best_of_all_routers(trace, m), 1e-14));
  }
}

TEST_CASE("SegmentHistogram: those of parts, and of experts, add up", "[serve]") {
  const RoutingTrace first = test::random_trace(40, 5, 2, 5), second = test::random_trace(30, 5, 2, 6);
  RoutingTrace both(5);
  for (const RoutingTrace* part : {&first, &second}) {
    both.begin_sequence();
    for (Index t = 0; t < part->num_tokens(); ++t) both.add(experts_of(*part, t));
  }
  SegmentHistogram sum(8), other(8), whole(8), by_expert(8);
  sum.add(first);
  other.add(second);
  sum += other;
  whole.add(both);
  for (Index e = 0; e < 5; ++e) by_expert.add(both, e);
  CHECK(sum.counts() == whole.counts());
  CHECK(by_expert.counts() == whole.counts());
  CHECK(std::accumulate(whole.counts().begin(), whole.counts().end(), std::int64_t{0}) == (33 + 23) * 5);
  CHECK_THROWS_AS(sum += SegmentHistogram(4), std::invalid_argument);
  CHECK_THROWS_AS(SegmentHistogram(0), std::invalid_argument);
  CHECK_THROWS_AS(whole.add(both, 5), std::invalid_argument);
}
