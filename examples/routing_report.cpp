// SPDX-License-Identifier: MIT
// routing_report [TRACE]: what a cache of experts would be worth, from a file of save_trace(). Prints how local the
// routing is (SRP, SCH) and hit rates of policies by how many experts fit, and writes scripts that draw these and which
// experts were chosen when. Without TRACE it records one first, of a layer over tokens that stay with a topic for a
// while.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <moe/moe.hpp>
#include <moe/serve.hpp>

namespace {

using moe::Index;

/// 16 experts, top-2, four sequences of 256 tokens: how a trace is made.
moe::RoutingTrace recorded() {
  constexpr Index kModelDim = 32, kTokens = 256;
  const moe::MoeLayer layer(moe::LinearRouter::random(16, kModelDim, 1), moe::TopKGate{.k = 2},
                            moe::ExpertPool<moe::Mlp>::random(16, kModelDim, 64, 2));
  moe::RoutingTrace trace(layer.num_experts());
  moe::Workspace workspace;
  moe::Matrix<float> tokens(kTokens, kModelDim), output(kTokens, kModelDim);
  const moe::RandomField topics(moe::Purpose::User, 0);
  for (std::uint64_t sequence = 0; sequence < 4; ++sequence) {
    const moe::RandomField own(moe::Purpose::User, 1, sequence);
    Index topic = 0;
    for (Index t = 0; t < kTokens; ++t) {
      if (own.uniform(t, -1) < 0.1) topic = static_cast<Index>(own.below(6, t, -2));
      for (Index c = 0; c < kModelDim; ++c)
        tokens(t, c) = static_cast<float>(topics.normal(topic, c) + 0.7 * own.normal(t, c));
    }
    layer.forward(tokens, output, workspace);
    trace.begin_sequence();
    trace.add(workspace.routing);
  }
  return trace;
}

void print_locality(const moe::RoutingTrace& trace) {
  const double k =
      static_cast<double>(trace.num_choices()) / static_cast<double>(std::max<Index>(1, trace.num_tokens()));
  std::printf("%td experts, %td tokens in %td sequences, %.2f experts per token\n\n", trace.num_experts(),
              trace.num_tokens(), trace.num_sequences(), k);
  std::printf("tokens of a segment      SRP  size ratio    SCH, room for 1, 2, 3 times the experts of a token\n");
  for (const Index m : {4, 16, 64, 256}) {
    const moe::SegmentRouting found = moe::segment_routing(trace, m);
    std::printf("%19td %8.3f %11.2f   ", m, found.srp, found.size_ratio);
    for (const double rho : {1, 2, 3})
      if (k > 0 && std::round(rho * k) < 1)
        std::printf("      -");  // room for none
      else
        std::printf(" %6.3f", moe::segment_cache_hit_rate(trace, rho, m));
    std::printf("\n");
  }
}

/// Hit rates of LRU, LFU, the next 16 tokens and Belady with room for so many experts.
std::array<double, 4> hit_rates(const moe::RoutingTrace& trace, Index capacity) {
  const auto rate = [&](auto policy) { return moe::simulate_cache(trace, capacity, std::move(policy)).hit_rate(); };
  return {rate(moe::Lru()), rate(moe::Lfu()), rate(moe::SegmentOracle(trace, 16)), rate(moe::Belady(trace))};
}

/// A table, and the script of a picture of it.
void report_hits(const moe::RoutingTrace& trace, std::ofstream& script) {
  script << "set terminal svg size 640,400 font 'sans-serif,13' background '#ffffff'\nset output 'routing_report.svg'\n"
            "set xlabel 'experts that fit'\nset ylabel 'hit rate'\nset key bottom right\n$hits << END\n";
  std::printf("\nexperts that fit      LRU      LFU  next 16   Belady\n");
  const Index step = std::max<Index>(1, trace.num_experts() / 16);
  for (Index capacity = 0; capacity < trace.num_experts();) {
    capacity = std::min(capacity + step, trace.num_experts());  // all of them last
    std::printf("%16td", capacity);
    script << capacity;
    for (const double rate : hit_rates(trace, capacity)) std::printf(" %8.3f", rate), script << ' ' << rate;
    std::printf("\n");
    script << '\n';
  }
  script
      << "END\nplot $hits u 1:2 w lp t 'LRU', '' u 1:3 w lp t 'LFU', '' u 1:4 w lp t 'next 16 tokens', '' u 1:5 w lp "
         "t 'Belady'\n";
}

/// A dot per choice: experts over time, of the first tokens.
void draw_choices(const moe::RoutingTrace& trace, std::ofstream& script) {
  script << "set terminal svg size 1000,400 font 'sans-serif,13' background '#ffffff'\nset output "
            "'routing_report_choices.svg'\nset xlabel 'token'\nset ylabel 'expert'\nunset key\n$choices << END\n";
  for (Index t = 0; t < std::min<Index>(1024, trace.num_tokens()); ++t)
    for (const std::uint32_t e : trace.experts(t)) script << t << ' ' << e << '\n';
  script << "END\nplot $choices with points pt 5 ps 0.3 lc '#4477aa'\n";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("What a cache of experts would be worth, from a trace of a model.");
  std::string path;
  app.add_option("TRACE", path, "file of save_trace(); without it one is recorded");
  CLI11_PARSE(app, argc, argv);
  try {
    if (path.empty()) moe::save_trace(path = "routing_report.trace", recorded());
    const moe::RoutingTrace trace = moe::load_trace(path);
    print_locality(trace);
    std::ofstream hits("routing_report.svg.gp"), choices("routing_report_choices.svg.gp");
    report_hits(trace, hits);
    draw_choices(trace, choices);
    if (!hits.flush() || !choices.flush()) moe::fail_environment("routing_report: cannot write its files here");
    std::printf("\npictures: gnuplot routing_report.svg.gp routing_report_choices.svg.gp\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
