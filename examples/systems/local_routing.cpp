// SPDX-License-Identifier: MIT
// What a cache of experts will be worth, from traces: how local routing is (SRP: the best F1 of choosing experts for 16
// tokens at a time; SCH: hits of a cache that knows the next 16), and hit rates with room for twice the experts of a
// token. Liang et al., "Not all models suit expert offloading" (arXiv:2505.16056). Here: held-out prose and code
// through the text model, 8000 characters of each in sequences of 512; the same in an order by lot, which leaves how
// often experts are used alone; and Markov chains over 6 topics with experts of their own. Characters have the orders
// of the paper, prose above code and Belady above LFU above LRU, but little of it is locality: in order, prose has .013
// more of SRP than by lot, code .003, and the token before names .18 and .16 of what comes next, .14 by lot. LRU beats
// LFU only where topics stay. SCH is .95 of Belady there, and .81 for characters.
#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include <moe/serve/prefetch_predictor.hpp>
#include <moe/serve/segment_routing.hpp>
#include <moe/serve/simulate_cache.hpp>
#include <moe/serve/trace_file.hpp>

#include "support/page.hpp"
#include "support/rank_correlation.hpp"
#include "support/text.hpp"

namespace {

using moe::Index;
using systems::Text, systems::kTextExperts;

constexpr Index kSequence = 512, kSegment = 16, kChoices = 2, kRoom = 2 * kChoices;
const std::string kTraces[] = {"Markov 0", "Markov .9", "Markov .98", "prose", "code", "prose, by lot", "code, by lot"};
constexpr std::size_t kProse = 3, kCode = 4, kNumbers = 7;
using Choices = std::vector<std::vector<Index>>;

moe::RoutingTrace trace_of(const Choices& tokens) {
  moe::RoutingTrace trace(kTextExperts);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (t % kSequence == 0) trace.begin_sequence();
    trace.add(tokens[t]);
  }
  return trace;
}

/// The two best of what the topic likes and what the token does, both normal.
Choices markov(double stay, Index tokens, std::uint64_t seed) {
  const moe::RandomField likes(moe::Purpose::User, seed, 1), own(moe::Purpose::User, seed, 2);
  Choices result;
  for (Index t = 0, topic = 0; t < tokens; ++t) {
    if (own.uniform(t, -1) >= stay) topic = static_cast<Index>(own.below(6, t, -2));
    std::array<double, kTextExperts> score;
    std::array<Index, kTextExperts> order;
    std::iota(order.begin(), order.end(), Index{0});
    for (const Index e : order) score[static_cast<std::size_t>(e)] = 1.5 * likes.normal(topic, e) + own.normal(t, e);
    std::ranges::partial_sort(order, order.begin() + kChoices, std::ranges::greater(),
                              [&](Index e) { return score[static_cast<std::size_t>(e)]; });
    result.emplace_back(order.begin(), order.begin() + kChoices);
  }
  return result;
}

Choices of_text(const systems::TextModel& model, const std::vector<Index>& characters) {
  const systems::Labelled data = systems::text_from(characters, -Text::kHeldOut, Text::kHeldOut);
  moe::Workspace ws;
  moe::Matrix<float> out(data.size(), systems::kTextDim);
  model.layer().layer().forward(data.rows, out, ws);
  Choices result;
  for (Index t = 0; t < data.size(); ++t)
    result.emplace_back(ws.routing.experts(t).begin(), ws.routing.experts(t).end());
  return result;
}

Choices by_lot(Choices tokens, std::uint64_t seed) {
  const moe::RandomField random(moe::Purpose::User, seed, 3);
  for (std::size_t t = tokens.size(); t > 1; --t)
    std::swap(tokens[t - 1], tokens[random.below(t, static_cast<Index>(t))]);
  return tokens;
}

/// What the table has of each trace; last, the rank correlation of SCH and LRU.
std::vector<double> numbers(const systems::Page& page, std::uint64_t seed) {
  const systems::TextModel model = systems::text_model(page, seed);
  std::vector<Choices> all;
  for (const double stay : {0.0, 0.9, 0.98}) all.push_back(markov(stay, Text::kHeldOut, seed));
  all.push_back(of_text(model, systems::text().prose)), all.push_back(of_text(model, systems::text().code));
  all.push_back(by_lot(all[kProse], seed)), all.push_back(by_lot(all[kCode], seed));
  std::vector<double> result, segments, recent;
  for (const Choices& tokens : all) {
    const moe::RoutingTrace trace = trace_of(tokens);
    const moe::SegmentRouting found = moe::segment_routing(trace, kSegment);
    const auto rate = [&](auto policy) { return moe::simulate_cache(trace, kRoom, std::move(policy)).hit_rate(); };
    segments.push_back(moe::segment_cache_hit_rate(trace, 2, kSegment)), recent.push_back(rate(moe::Lru()));
    result.insert(result.end(), {found.srp, found.size_ratio, segments.back(), recent.back(), rate(moe::Lfu()),
                                 rate(moe::Belady(trace)),
                                 moe::measure_predictor(std::span(&trace, 1), moe::PreviousStep(1)).recall()});
  }
  result.push_back(systems::rank_correlation(segments, recent));
  if (seed == page.first_seed()) moe::save_trace("prose.trace", trace_of(all[kProse]));  // for routing_report
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  return systems::run_page(
      argc, argv, {"local_routing", "2505.16056", "moe/serve/segment_routing.hpp"}, [](systems::Page& page) {
        const auto runs = page.over_seeds([&](std::uint64_t seed) { return numbers(page, seed); });
        const auto of = [&](std::size_t trace, std::size_t number) { return runs[kNumbers * trace + number]; };
        page.table({"16 tokens, room for 2 x", "SRP", "size ratio", "SCH", "LRU", "LFU", "Belady", "token before"});
        for (std::size_t i = 0; i < std::size(kTraces); ++i)
          page.row(kTraces[i], {of(i, 0), of(i, 1), of(i, 2), of(i, 3), of(i, 4), of(i, 5), of(i, 6)});
        for (const std::size_t kind : {kProse, kCode}) {
          page.expect("hit rate of Belady above LFU, " + kTraces[kind], of(kind, 5) - of(kind, 4), {.low = 0.05});
          page.expect("hit rate of LFU above LRU, " + kTraces[kind], of(kind, 4) - of(kind, 3), {.low = 0.01});
          page.expect("SCH over Belady, " + kTraces[kind], of(kind, 2) / of(kind, 5), {.low = 0.77, .high = 0.86});
        }
        page.expect("SCH over Belady, Markov, stays .98", of(2, 2) / of(2, 5), {.low = 0.93, .high = 1});
        page.expect("hit rate of LRU above LFU, Markov, stays .98", of(2, 3) - of(2, 4), {.low = 0.05});
        page.expect("rank correlation of SCH and LRU", runs.back(), {.low = 0.8});
        page.claim("SRP of prose above that of code", of(kProse, 0) - of(kCode, 0), {.low = 0.005, .high = 0.04});
      });
}
