// SPDX-License-Identifier: MIT
// What a token costs when experts, tokens, choices and threads grow, as pictures; and whether it jumps anywhere.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <CLI/CLI.hpp>

#include "scaling.hpp"

namespace {

using bench::Axis;
using bench::Cost;
using bench::Index;
using bench::Place;
using bench::Neighbours;

constexpr const char* kDescription =
    "Measures nanoseconds per token over a grid of experts E, tokens T, choices K and threads: routing (top-K gate "
    "and\n"
    "plan, from logits) and a layer of experts of 64 x 64. Sizes that stand just above powers of two, where blocks "
    "end,\n"
    "are in the grid. A jump is a step between neighbours that the work does not explain: more than in proportion to "
    "E\n"
    "or K, dearer per token with more tokens or threads, or dearer for the smaller size. What seems to be one is\n"
    "measured again in turns. Prints the jumps above --most, writes scaling.svg and scaling.tsv, and exits with 1 if\n"
    "there are jumps.";

bench::Grid routing_grid() {
  return {.experts = {8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 1025, 2048, 4096},
          .tokens = {1,   2,   3,   4,   7,    8,    9,    15,   16,   17,   32,    64,   128,
                     256, 511, 512, 513, 1024, 2048, 4095, 4096, 4097, 8192, 16384, 65536},
          .k = {1, 2, 4, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64}};
}

bench::Grid layer_grid() {
  return {.experts = {8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096},
          .tokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536},
          .k = {1, 2, 4, 8, 16, 32, 64}};
}

/// For a check that the program runs.
const bench::Grid kTiny = {.experts = {8, 16}, .tokens = {1, 64, 65}, .k = {1, 2}};

/// Those that stay when measured in turns, and again.
template <class Part>
int report_jumps(const std::vector<Cost>& costs, double most) {
  int count = 0;
  for (const Neighbours& step : bench::steps_of(costs)) {
    if (bench::jump(step) <= most) continue;
    const double first = bench::jump_in_turns<Part>(step);
    if (first <= most) continue;
    const double second = bench::jump_in_turns<Part>(step);
    if (second <= most) continue;
    ++count;
    std::printf("%s: %.2f times what the work explains: %.0f ns at %s, %.0f ns at %s\n", Part::kName,
                std::min(first, second), step.from.nanoseconds, bench::describe(step.from.place).c_str(),
                step.to.nanoseconds, bench::describe(step.to.place).c_str());
    std::fflush(stdout);
  }
  return count;
}

/// A line of the picture: the costs along an axis, at some place.
void write_line(std::ostream& script, const std::string& name, const std::vector<Cost>& costs, Axis axis, Place at) {
  script << "$" << name << " << END\n";
  for (Cost cost : costs) {
    const double x = bench::along(cost.place, axis);
    if (axis == Axis::Experts) at.experts = cost.place.experts;
    if (axis == Axis::Tokens) at.tokens = cost.place.tokens;
    if (cost.place == at) script << x << ' ' << cost.nanoseconds << '\n';
  }
  script << "END\n";
}

struct Drawing {
  std::ofstream script;
  int lines = 0;

  /// A panel with a line per place, for one thread and for all.
  void panel(const std::string& title, const std::vector<Cost>& costs, Axis axis, const std::vector<Place>& places) {
    std::string plot;
    constexpr const char* kColours[] = {"#4477aa", "#cc6677", "#228833", "#aa8800"};
    for (std::size_t p = 0; p < places.size(); ++p)
      for (const int threads : {1, bench::all_threads()}) {
        if (threads == 1 && bench::all_threads() == 1 && !plot.empty()) continue;
        Place at = places[p];
        at.threads = threads;
        const std::string name = "line" + std::to_string(lines++);
        write_line(script, name, costs, axis, at);
        const std::string of = axis == Axis::Experts ? "K " + std::to_string(at.k) : "E " + std::to_string(at.experts);
        plot += (plot.empty() ? "plot $" : ", $") + name + " using 1:2 with linespoints pt 7 ps 0.4 lw 1.5 dt " +
                (threads == 1 ? "1" : "2") + " lc rgb '" + kColours[p % std::size(kColours)] + "' " +
                (threads == 1 ? "title '" + of + "'" : "notitle");
      }
    script << "set title '" << title << "'\nset xlabel '" << (axis == Axis::Experts ? "experts" : "tokens") << "'\n"
           << plot << '\n';
  }
};

bool draw(const std::vector<Cost>& routing, const std::vector<Cost>& layer, const std::string& path) {
  Drawing drawing;
  drawing.script.open(path + ".gp");
  drawing.script << "set terminal svg size 1000,760 font 'sans-serif,12' background '#ffffff'\nset output '" << path
                 << "'\nset multiplot layout 2,2\nset logscale xy\nset ylabel 'ns per token'\nset border 3\n"
                    "set tics nomirror\nset grid lc rgb '#e0e0e0' lt 1\nset key top left\n";
  const std::vector<Place> by_k = {{0, 512, 1, 1}, {0, 512, 8, 1}, {0, 512, 64, 1}};
  const std::vector<Place> by_experts = {{8, 0, 8, 1}, {64, 0, 8, 1}, {512, 0, 8, 1}, {4096, 0, 8, 1}};
  drawing.panel("Routing of 512 tokens; dashed: all threads", routing, Axis::Experts, by_k);
  drawing.panel("Layer of 64 x 64, 512 tokens", layer, Axis::Experts, by_k);
  drawing.panel("Routing, K 8", routing, Axis::Tokens, by_experts);
  drawing.panel("Layer of 64 x 64, K 8", layer, Axis::Tokens, by_experts);
  drawing.script << "unset multiplot\n";
  drawing.script.close();
  if (!drawing.script) moe::fail_environment("bench: cannot write ", path, ".gp");
  return std::system(("gnuplot '" + path + ".gp' >&2").c_str()) == 0;
}

void write_table(const std::vector<Cost>& routing, const std::vector<Cost>& layer, const std::string& path) {
  std::ofstream table(path);
  table << "part\texperts\ttokens\tk\tthreads\tns_per_token\n";
  for (const auto* costs : {&routing, &layer})
    for (const auto& [at, nanoseconds] : *costs)
      table << (costs == &routing ? bench::RoutingPart::kName : bench::LayerPart::kName) << '\t' << at.experts << '\t'
            << at.tokens << '\t' << at.k << '\t' << at.threads << '\t' << nanoseconds << '\n';
  table.close();
  if (!table) moe::fail_environment("bench: cannot write ", path);
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app(kDescription);
  double most = 1.5;
  bool tiny = false;
  std::string directory = ".";
  app.add_option("--most", most, "the largest jump that is none")->check(CLI::Range(1.0, 1e6))->capture_default_str();
  app.add_flag("--tiny", tiny, "a few places, in a second; jumps are told, but do not fail");
  app.add_option("--output", directory, "where scaling.svg and scaling.tsv go")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::fprintf(stderr, "%s, %s: routing, a minute or two\n", bench::processor_name().c_str(),
               bench::instruction_set().c_str());
  const auto routing = bench::costs_of<bench::RoutingPart>(tiny ? kTiny : routing_grid());
  std::fprintf(stderr, "a layer, a minute or two\n");
  const auto layer = bench::costs_of<bench::LayerPart>(tiny ? kTiny : layer_grid());
  std::filesystem::create_directories(directory);
  write_table(routing, layer, directory + "/scaling.tsv");
  if (!draw(routing, layer, directory + "/scaling.svg")) std::fprintf(stderr, "no picture: gnuplot did not run\n");
  std::fprintf(stderr, "%zu places; what looks like a jump, again\n", routing.size() + layer.size());
  const int jumps = report_jumps<bench::RoutingPart>(routing, most) + report_jumps<bench::LayerPart>(layer, most);
  std::printf("%d jumps above %.2f between %zu neighbours\n", jumps, most,
              bench::steps_of(routing).size() + bench::steps_of(layer).size());
  return jumps > 0 && !tiny;
} catch (const std::exception& error) {
  std::fprintf(stderr, "moe_bench_scaling: %s\n", error.what());
  return 1;
}
