// SPDX-License-Identifier: MIT
// Measures one layer of any shape beside the machine's limits and the peers; sh bench/run.sh measures many.
#include <cstdio>

#include <CLI/CLI.hpp>

#include "result_json.hpp"

namespace {

using bench::CellResult;
using bench::Timing;

struct Arguments {
  bench::Shape shape{"", 0, 0, 0, 0};
  bench::Cell cell;
  bench::Effort effort;
  bench::Peers peers = bench::Peers::All;
  bool json = false;
};

constexpr const char* kDescription =
    "Times one mixture-of-experts layer (linear router, softmax over the top K, SwiGLU experts, float).\n\n"
    "milliseconds: one forward pass; with --backward one backward pass alone, and forward_milliseconds the forward\n"
    "pass with tape before it. GFLOP/s counts 6 D F T K + 2 D E T, twice that for backward; GB/s counts the weights\n"
    "of the experts that tokens reach (backward: and their gradients, read and written), the router, and the rows in\n"
    "and out. percent_of_limit is 100 max(FLOP / peak, bytes / bandwidth) / time, peak and bandwidth measured beside\n"
    "every repetition: bandwidth from the cache if the weights (backward: and gradients) fit the last-level cache,\n"
    "else from memory, with cold weights; but backward follows its forward: what that used last may be cached. All\n"
    "figures are medians over interleaved repetitions; peers are whole loops, gather to weighted sum,\n"
    "on weights as plain row-major matrices; with AVX-512, oneDNN keeps a copy in blocks for forward.";

/// Options that stand for something else than themselves.
struct Names {
  std::string weights = "f32", routing = "uniform";
};

bench::Pattern pattern_of(const std::string& name) {
  if (name == "skewed") return bench::Pattern::Skewed;
  return name == "zipf" ? bench::Pattern::Zipf : bench::Pattern::Uniform;
}

void add_options(CLI::App& app, Arguments& arguments, Names& names) {
  using Count = CLI::Range;
  const auto size = [&](const char* name, moe::Index& value, const char* help) {
    return app.add_option(name, value, help)->check(Count(moe::Index{1}, moe::Index{1} << 30));
  };
  size("--model-dim", arguments.shape.model_dim, "D, columns of a token")->required();
  size("--hidden-dim", arguments.shape.hidden_dim, "F, hidden units of an expert")->required();
  size("--experts", arguments.shape.num_experts, "E")->required();
  size("--k", arguments.shape.k, "K, experts of a token")->required();
  size("--tokens", arguments.cell.tokens, "T")->required();
  app.add_option("--threads", arguments.cell.threads, "default: all")->check(Count(1, bench::all_threads()));
  app.add_option("--weights", names.weights, "how weights are stored")
      ->check(CLI::IsMember({"f32"}))
      ->capture_default_str();
  app.add_option("--routing", names.routing, "popularity of experts: alike, U(0.7, 1.3), or 1 / rank")
      ->check(CLI::IsMember({"uniform", "skewed", "zipf"}))
      ->capture_default_str();
  app.add_flag_callback(
      "--backward", [&] { arguments.cell.pass = bench::Pass::Backward; }, "time the backward pass");
  app.add_flag_callback(
      "--no-peers", [&] { arguments.peers = bench::Peers::None; }, "ours only: half the memory");
  app.add_option("--seconds", arguments.effort.seconds, "measure about as long")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--json", arguments.json, "one JSON object instead of text");
}

/// Throws CLI::ParseError; what one option alone cannot know is checked here.
Arguments parse(CLI::App& app, int argc, char** argv) {
  Arguments arguments;
  arguments.cell.threads = bench::all_threads();
  Names names;
  add_options(app, arguments, names);
  app.parse(argc, argv);
  arguments.cell.pattern = pattern_of(names.routing);
  bench::Shape& shape = arguments.shape;
  if (shape.k > shape.num_experts)
    throw CLI::ValidationError(
        "--k", "is " + std::to_string(shape.k) + ", expected at most --experts = " + std::to_string(shape.num_experts));
  if (arguments.cell.pattern != bench::Pattern::Uniform && shape.model_dim < shape.num_experts)
    throw CLI::ValidationError("--routing", "other than uniform needs --model-dim of at least --experts");
  shape.name = std::to_string(shape.num_experts) + "x" + std::to_string(shape.model_dim) + "x" +
               std::to_string(shape.hidden_dim) + " top " + std::to_string(shape.k);
  return arguments;
}

void print(const CellResult& result) {
  const bench::Measurement& m = result.measurement;
  const Timing& ours = result.ours();
  for (const std::string& peer : bench::peer_kernels()) std::printf("peer %s\n", peer.c_str());
  std::printf("%s, %td tokens, %s routing, %s, %d thread(s), %s, %d repetitions\n", result.shape.name.c_str(),
              result.cell.tokens, bench::name_of(result.cell.pattern),
              result.cell.pass == bench::Pass::Forward ? "forward" : "backward", result.cell.threads,
              bench::instruction_set().c_str(), m.repetitions);
  std::printf("  ours              %10.3f ms  %8.1f GFLOP/s  %7.1f GB/s\n", 1e3 * ours.seconds,
              1e-9 * m.work.flop / ours.seconds, 1e-9 * m.work.bytes / ours.seconds);
  if (result.cell.pass == bench::Pass::Backward)
    std::printf("  forward with tape %10.3f ms\n", 1e3 * ours.prepare_seconds);
  std::printf("  limit             %10s     %8.1f GFLOP/s  %7.1f GB/s  bound by %s: %.1f%% reached\n", "",
              1e-9 * m.limits.flop, 1e-9 * m.limits.bytes, m.is_bound_by_flop() ? "FLOP" : "bandwidth",
              ours.percent_of_limit);
  for (std::size_t i = 1; i < m.timings.size(); ++i)
    std::printf("  %-17s %10.3f ms  %8.2f times ours  %.1f%% of the limit\n", m.timings[i].name.c_str(),
                1e3 * m.timings[i].seconds, m.timings[i].ratio, m.timings[i].percent_of_limit);
  for (const std::string& name : result.wrong)
    std::printf("  %-17s left out: its results differ from ours\n", name.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  bench::choose_peer_kernels(argv);
  CLI::App app(kDescription);
  Arguments arguments;
  try {
    arguments = parse(app, argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  bench::LayerBench layer(arguments.shape, arguments.peers, arguments.cell.pass);
  const CellResult result = layer.measure(arguments.cell, arguments.effort);
  if (!arguments.json) {
    print(result);
    return 0;
  }
  nlohmann::json json = bench::to_json(result);
  json["machine"] = bench::machine_json();
  std::printf("%s\n", json.dump(2).c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "moe_bench_shape: %s\n", error.what());
  return 1;
}
