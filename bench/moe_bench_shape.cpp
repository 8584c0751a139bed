// SPDX-License-Identifier: MIT
// Measures one layer of any shape beside the machine's limits and the peers; sh bench/run.sh measures many.
#include <cstdio>

#include <CLI/CLI.hpp>

#include "format_table.hpp"
#include "result_json.hpp"

namespace {

using bench::CellResult;
using bench::Timing;

struct Arguments {
  bench::Shape shape{"", 0, 0, 0, 0};
  bench::Cell cell;
  bench::Effort effort;
  bench::Peers peers = bench::Peers::All;
  std::vector<bench::Weights> weights;
  bool formats = false, json = false;
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
    "on weights as plain row-major matrices; with AVX-512, oneDNN keeps a copy in blocks for forward.\n\n"
    "--weights other than f32 rounds the experts to nearest and measures them beside our floats; bytes are those of\n"
    "the codes, and results are compared first, bit by bit, with those of the decoded weights. Weights are cold where\n"
    "those of floats would be. --formats prints a table of formats for 1, 8, 64 and 512 tokens, beside oneDNN in BF16\n"
    "and s8; --seconds are those of a batch. Codes are not trained: backward they take half the work of floats, for\n"
    "the gradients of tokens and router, and no peers.";

constexpr double kSecondsOfFormats = 10;  // a dozen contestants

/// Options that stand for something else than themselves.
struct Names {
  std::string weights = "f32", routing = "uniform";
};

bench::Pattern pattern_of(const std::string& name) {
  if (name == "skewed") return bench::Pattern::Skewed;
  return name == "zipf" ? bench::Pattern::Zipf : bench::Pattern::Uniform;
}

/// Of one format, beside floats; or of all.
std::vector<bench::Weights> weights_of(const std::string& name, bool all) try {
  if (all) return bench::usual_weights();
  if (name == "f32") return bench::kFloatWeights;
  const bench::Weights weights = bench::weights_named(name);
  if (weights->format == moe::WeightFormat::none())
    throw CLI::ValidationError("--weights", "none has none, expected some");
  return {weights, bench::Weights{}};
} catch (const std::invalid_argument& error) {
  throw CLI::ValidationError("--weights", error.what());
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
  arguments.cell.tokens = 0;
  size("--tokens", arguments.cell.tokens, "T; of a table of formats only this batch");
  app.add_option("--threads", arguments.cell.threads, "default: all")->check(Count(1, bench::all_threads()));
  auto* const weights =
      app.add_option("--weights", names.weights,
                     "how experts store them: f32, bf16, f16, fp8, int8, int4, mxfp4, nvfp4, 1bit to "
                     "8bit, with another group as in int4-g128; moe::WeightFormat::named. With +dot rows are "
                     "rounded, too, as in int8+dot; moe::Dot")
          ->capture_default_str();
  app.add_flag("--formats", arguments.formats, "a table of formats, forward")->excludes(weights);
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
  arguments.weights = weights_of(names.weights, arguments.formats);
  if (arguments.cell.pass == bench::Pass::Backward && arguments.weights != bench::kFloatWeights)
    arguments.peers = bench::Peers::None;
  if (arguments.cell.tokens == 0 && !arguments.formats) throw CLI::RequiredError("--tokens");
  if (arguments.formats) {
    if (app.get_option("--seconds")->count() == 0) arguments.effort.seconds = kSecondsOfFormats;
    if (arguments.peers == bench::Peers::All) arguments.peers = bench::Peers::FewBits;
  }
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
  const bench::Entry& entry = result.entries.front();
  std::printf("%s, %s, %td tokens, %s routing, %s, %d thread(s), %s, %d repetitions\n", result.shape.name.c_str(),
              entry.weights.c_str(), result.cell.tokens, bench::name_of(result.cell.pattern),
              result.cell.pass == bench::Pass::Forward ? "forward" : "backward", result.cell.threads,
              bench::instruction_set().c_str(), m.repetitions);
  std::printf("  ours              %10.3f ms  %8.1f GFLOP/s  %7.1f GB/s\n", 1e3 * ours.seconds,
              1e-9 * m.work.flop / ours.seconds, 1e-9 * m.work.bytes / ours.seconds);
  if (result.cell.pass == bench::Pass::Backward)
    std::printf("  forward with tape %10.3f ms\n", 1e3 * ours.prepare_seconds);
  if (entry.error > 0)
    std::printf("  %.2f bits per weight, %.1f MiB; outputs differ from those of f32 by %.1e, relative to these\n",
                entry.bits, 0x1p-20 * static_cast<double>(entry.bytes), entry.error);
  std::printf("  limit             %10s     %8.1f GFLOP/s  %7.1f GB/s  bound by %s: %.1f%% reached\n", "",
              1e-9 * m.limits.flop, 1e-9 * m.limits.bytes, m.is_bound_by_flop() ? "FLOP" : "bandwidth",
              ours.percent_of_limit);
  for (std::size_t i = 1; i < m.timings.size(); ++i)
    std::printf("  %-17s %10.3f ms  %8.2f times ours  %.1f%% of the limit\n", m.timings[i].name.c_str(),
                1e3 * m.timings[i].seconds, m.timings[i].ratio, m.timings[i].percent_of_limit);
  for (const std::string& name : result.wrong)
    std::printf("  %-17s left out: its results differ from ours\n", name.c_str());
}

void run_formats(bench::LayerBench& layer, const Arguments& arguments) {
  std::vector<moe::Index> batches = bench::kFormatTokens;
  if (arguments.cell.tokens > 0) batches = {arguments.cell.tokens};
  std::vector<CellResult> cells;
  for (const moe::Index tokens : batches) {
    bench::Cell cell = arguments.cell;
    cell.tokens = tokens;
    cells.push_back(layer.measure(cell, arguments.effort));
  }
  if (arguments.json) return (void)std::printf("%s\n", bench::formats_json(cells).dump(2).c_str());
  for (const std::string& peer : bench::peer_kernels()) std::printf("peer %s\n", peer.c_str());
  std::printf("%s\n", bench::kFormatColumns);
  bench::print_formats(cells);
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
  bench::LayerBench layer(arguments.shape, arguments.peers, arguments.cell.pass, arguments.weights);
  if (arguments.formats) {
    run_formats(layer, arguments);
    return 0;
  }
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
