// SPDX-License-Identifier: MIT
// Measures the shapes of published models and the routing kernels: a table on stdout, progress on stderr, and JSON and
// a roofline picture in a directory. sh bench/run.sh builds and runs it.
#include <cstdio>
#include <filesystem>

#include <CLI/CLI.hpp>

#include "clock.hpp"
#include "format_table.hpp"
#include "peers/kernels.hpp"
#include "report.hpp"

namespace {

using namespace bench;

struct Plan {
  std::vector<Shape> shapes;
  std::vector<Index> tokens;  ///< on all threads
  std::vector<Index> tokens_of_one_thread;
  std::vector<Pattern> patterns;  ///< beside the uniform one, at kTrainTokens
  Effort effort;
  double seconds;  ///< cells that would start later are left out
};

constexpr Index kTrainTokens = 512;

Plan quick_plan() {
  return {.shapes = {kShapes.begin(), kShapes.begin() + 3},
          .tokens = {1, 8, 64, 512},
          .tokens_of_one_thread = {1, 64, 512},
          .patterns = {},
          .effort = {.seconds = 2, .least = 3, .most = 21},
          .seconds = 180};
}

Plan full_plan() {
  return {.shapes = {kShapes.begin(), kShapes.end()},
          .tokens = {1, 8, 64, 512, 4096},
          .tokens_of_one_thread = {1, 8, 64, 512},
          .patterns = {Pattern::Skewed, Pattern::Zipf},
          .effort = {.seconds = 4, .least = 5, .most = 31},
          .seconds = 1e9};
}

/// The cells of every shape; a machine with one thread has each once.
std::vector<Cell> cells_of(const Plan& plan, Pass most) {
  std::vector<Cell> cells;
  const int threads = all_threads();
  for (const Index tokens : plan.tokens) cells.push_back({.tokens = tokens, .threads = threads});
  for (const Pattern pattern : plan.patterns)
    cells.push_back({.tokens = kTrainTokens, .threads = threads, .pattern = pattern});
  if (most == Pass::Backward) cells.push_back({.tokens = kTrainTokens, .threads = threads, .pass = Pass::Backward});
  if (threads > 1)
    for (const Index tokens : plan.tokens_of_one_thread) cells.push_back({.tokens = tokens, .threads = 1});
  return cells;
}

/// Gradients double the memory; layers that would pass 11.5 GiB, or what there is, are measured forward only.
Pass most_of(const Shape& shape) {
  const Index limit = std::min(Index{23} << 29, available_memory());
  return LayerBench::bytes_needed(shape, Peers::All, Pass::Backward) < limit ? Pass::Backward : Pass::Forward;
}

void measure_shape(const Shape& shape, const Plan& plan, double deadline, Report& report) {
  std::fprintf(stderr, "%s: making %td MiB of weights, and copies\n", shape.name.c_str(), shape.weight_bytes() >> 20);
  const Pass most = most_of(shape);
  LayerBench layer(shape, Peers::All, most);
  for (const Cell& cell : cells_of(plan, most)) {
    if (seconds_now() > deadline) {
      std::fprintf(stderr, "%s: out of time, some cells are left out\n", shape.name.c_str());
      return;
    }
    std::fprintf(stderr, "%s: %s, %td tokens, %d thread(s)\n", shape.name.c_str(),
                 cell.pass == Pass::Forward ? "forward" : "backward", cell.tokens, cell.threads);
    report.cells.push_back(layer.measure(cell, plan.effort));
    print_row(report.cells.back());
  }
  for (const Index tokens : {Index{64}, Index{512}})
    report.shares.push_back(measure_share(shape, layer.layer(), tokens, all_threads()));
}

Report run(const Plan& plan) {
  Report report;
  const double deadline = seconds_now() + plan.seconds;
  print_header();
  for (const Shape& shape : plan.shapes) try {
      measure_shape(shape, plan, deadline, report);
    } catch (const std::runtime_error& error) {
      std::fprintf(stderr, "%s: left out: %s\n", shape.name.c_str(), error.what());
    }
  std::fprintf(stderr, "routing kernels\n");
  report.plans = measure_plans();
  report.movements = measure_movement(plan.tokens.back());
  print_rest(report);
  return report;
}

/// Forward passes with weights in all formats, on all threads and on one.
std::vector<CellResult> run_formats(const std::vector<Shape>& shapes, const Effort& effort) {
  std::printf("%s, last-level cache %td MiB\n", processor_name().c_str(), last_level_cache() >> 20);
  for (const std::string& peer : peer_kernels()) std::printf("peer %s\n", peer.c_str());
  std::printf("\n%s", kFormatColumns);
  std::vector<CellResult> all;
  for (const Shape& shape : shapes) try {
      std::fprintf(stderr, "%s: making and rounding %td MiB of weights\n", shape.name.c_str(),
                   shape.weight_bytes() >> 20);
      LayerBench layer(shape, Peers::FewBits, Pass::Forward, usual_weights());
      for (int threads = all_threads(); threads > 0; threads = threads > 1 ? 1 : 0) {
        std::vector<CellResult> cells;
        for (const Index tokens : kFormatTokens) {
          std::fprintf(stderr, "%s: %td tokens, %d thread(s)\n", shape.name.c_str(), tokens, threads);
          cells.push_back(layer.measure({.tokens = tokens, .threads = threads}, effort));
        }
        std::printf("\n");
        print_formats(cells);
        all.insert(all.end(), cells.begin(), cells.end());
      }
    } catch (const std::runtime_error& error) {
      std::fprintf(stderr, "%s: left out: %s\n", shape.name.c_str(), error.what());
    }
  return all;
}

}  // namespace

int main(int argc, char** argv) try {
  bench::choose_peer_kernels(argv);
  CLI::App app("Layers of published models beside the machine's limits and GEMM libraries");
  bool quick = false, formats = false;
  std::string directory = ".";
  app.add_flag("--quick", quick, "three shapes, few repetitions: about three minutes instead of half an hour");
  app.add_flag("--formats", formats, "instead, formats of weights: three shapes, ten minutes; --quick: two, three");
  std::vector<std::string> names, known;
  for (const Shape& shape : kShapes) known.push_back(shape.name);
  app.add_option("--shape", names, "measure only this shape; may be repeated")->check(CLI::IsMember(known));
  app.add_option("--output", directory, "where bench.json and roofline.svg go; formats.json")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  std::filesystem::create_directories(directory);
  Plan plan = quick ? quick_plan() : full_plan();
  if (!names.empty()) {
    plan.shapes.assign(kShapes.begin(), kShapes.end());
    std::erase_if(plan.shapes, [&](const Shape& shape) { return std::ranges::count(names, shape.name) == 0; });
  }
  if (formats) {
    if (names.empty()) plan.shapes.assign(kShapes.begin(), kShapes.begin() + (quick ? 2 : 3));
    const std::vector<CellResult> cells =
        run_formats(plan.shapes, {.seconds = quick ? 5.0 : 12.0, .least = 3, .most = 31});
    const std::string path = directory + "/formats.json";
    write_formats_json(cells, path);
    std::printf("\nJSON: %s\n", path.c_str());
    return 0;
  }
  const Report report = run(plan);
  const std::string json = directory + "/bench.json", svg = directory + "/roofline.svg";
  write_json(report, json);
  std::printf("\nJSON: %s\n", json.c_str());
  if (write_picture(report, svg))
    std::printf("Picture: %s\n", svg.c_str());
  else
    std::printf("No picture: install gnuplot and run: gnuplot '%s.gp'\n", svg.c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "moe_bench_table: %s\n", error.what());
  return 1;
}
