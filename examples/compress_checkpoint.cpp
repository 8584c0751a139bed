// SPDX-License-Identifier: MIT
// compress_checkpoint DIR [--output OUT] [--layer N...|all] [--keep 32] [--bits 3.0] [--calibration FILE] [..]: makes
// the MoE layers of a model smaller, says what that costs, and writes the model as it came, so that any program reads
// it. Fewer experts: --score says how they are valued, --apply what becomes of those that go. Fewer bits: an exact
// plan of bits per expert, from errors that were measured. With --packed the model has experts in so many bits, as
// compressed-tensors packs integers; without, it gets the rounded weights in its own type, so that any program can try
// them, and --codes the codes themselves, which load_parameters() reads into a QuantisedMoeBlock.
// Without DIR it makes a small model first, and reads back what it wrote. Without OUT it only says.
//   --calibration  what the MoE blocks read: tokens [num_tokens, model_dim] in a .npy file; "{}" in the name stands for
//                  the number of the layer. Without it tokens by lot, which say little about a trained model.
#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <optional>

#include "compress_checkpoint/packed.hpp"
#include "load_checkpoint/synthetic.hpp"

namespace {

using compressing::Layer;
using compressing::Settings;
using compressing::show_progress;
using moe::Index;

double megabytes(std::uint64_t bytes) { return 1e-6 * static_cast<double>(bytes); }

/// What is done to a block; the layer keeps how far its outputs then are off, and what its codes take.
moe::MoeBlock compressed(const Settings& settings, const moe::MoeBlock& block, Layer& layer) {
  const compressing::Tokens tokens = compressing::tokens_of(settings, layer.place.layer, block.model_dim());
  moe::MoeBlock small = compressing::with_fewer(settings, block, layer);
  layer.weights_before = moe::num_parameters(block), layer.weights_after = moe::num_parameters(small);
  if (!layer.bits.bits.empty()) small = moe::dequantise(compressing::few_bits_of(settings, small, tokens, layer));
  layer.error = moe::reconstruction_error(block, small, tokens.read);
  return small;
}

void print_header() {
  std::printf(
      "          experts   millions of weights          codes             relative\n"
      "layer   had  keep      before       after  bits  MB      importance   error\n");
}
void print(const Layer& layer) {
  std::printf("%5td %5td %5td %11.3f %11.3f", layer.place.layer, layer.plan.num_experts(), layer.plan.num_kept(),
              1e-6 * static_cast<double>(layer.weights_before), 1e-6 * static_cast<double>(layer.weights_after));
  if (layer.bits.bits.empty())
    std::printf("%6s %9s", "-", "-");
  else
    std::printf("%6.2f %9.3f", moe::average_bits(layer.bits.bits), megabytes(layer.code_bytes));
  std::printf(" %10.3f %7.4f  dropped:", layer.importance, layer.error.relative());
  for (Index e = 0; e < layer.plan.num_experts(); ++e)
    if (layer.plan.map[e] == moe::ExpertMap::kDropped) std::printf(" %td", e);
  std::printf("\n");
}

void print_experts(const Layer& layer) {
  const std::vector<double> errors = layer.error.relative_of_experts();
  std::printf("layer %td\nexpert   tokens      score  becomes  bits   error\n", layer.place.layer);
  for (Index e = 0; e < layer.plan.num_experts(); ++e) {
    const auto id = static_cast<std::size_t>(e);
    const Index place = layer.plan.map[e];
    std::printf("%6td %8.4f %10.4g", e, layer.frequencies[id], layer.scores[id]);
    if (place == moe::ExpertMap::kDropped)
      std::printf("  dropped     -");
    else if (layer.bits.bits.empty())
      std::printf("  %7td     -", place);
    else
      std::printf("  %7td %5td", place, layer.bits.bits[static_cast<std::size_t>(place)]);
    std::printf(" %7.4f\n", errors[id]);
  }
}

/// Reads the layers one after the other: f(block, layer).
template <class F>
void for_each_block(const moe::Checkpoint& checkpoint, const char* what, std::vector<Layer>& layers, const F& f) {
  for (std::size_t l = 0; l < layers.size(); ++l) {
    show_progress(what, l, layers.size());
    const moe::LoadOptions load{.layer = layers[l].place.layer, .prefix = layers[l].place.prefix};
    f(moe::load_moe_block(checkpoint, layers[l].config, load), layers[l]);
  }
  show_progress(what, layers.size(), layers.size());
}

std::vector<Layer> layers_of(const Settings& settings, const moe::Checkpoint& checkpoint) {
  const std::filesystem::path config = std::filesystem::path(settings.directory) / "config.json";
  std::vector<Index> numbers;
  for (const std::string& text : settings.layers)
    if (text != "all") {
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), numbers.emplace_back());
      if (error != std::errc{} || end != text.data() + text.size())
        moe::fail("--layer is '", text, "', expected a number or all");
    }
  std::vector<Layer> layers;
  for (const moe::BlockPlace& place : moe::moe_blocks(checkpoint, moe::read_moe_family(config), numbers))
    layers.push_back({.place = place, .config = moe::read_moe_config(config, place.layer)});
  for (std::size_t l = 1; l < layers.size(); ++l)  // of an encoder and a decoder
    if (layers[l].place.layer == layers[l - 1].place.layer && !(settings.calibration.empty() && settings.codes.empty()))
      moe::fail("layer ", layers[l].place.layer, " has two blocks, '", layers[l - 1].place.prefix, "' and '",
                layers[l].place.prefix, "', expected one for --calibration or --codes");
  for (const std::string& name : {settings.calibration, settings.stream, settings.codes})
    if (!name.empty() && layers.size() > 1 && name.find("{}") == name.npos)
      moe::fail("file '", name, "' for ", layers.size(),
                " layers, expected a name with {} for the number of the layer");
  return layers;
}

void print_written(const Settings& settings, const std::vector<Layer>& layers, std::uint64_t before,
                   std::uint64_t after, const moe::RewrittenCheckpoint& files) {
  print_header();
  for (const Layer& layer : layers) print(layer);
  std::printf("MoE blocks: %.2f MB before, %.2f MB after; wrote %.2f MB in %zu files to %s\n", megabytes(before),
              megabytes(after), megabytes(files.total_size), files.files.size(), settings.output.c_str());
  for (const std::string& name : files.left_out) std::printf("left out: %s\n", name.c_str());
}

/// Which programs read what was packed.
void print_readers(const std::vector<moe::WeightFormat>& formats) {
  const moe::WeightFormat& first = formats.front();
  const bool has_kernels = (first.value_bits() == 4 || first.value_bits() == 8) &&
                           (first.group == 0 || first.group == 32 || first.group == 64 || first.group == 128);
  std::printf(
      "packed integers: compressed-tensors decodes them (from June 2026 on where there are 3, 5, 6 or 7 bits); %s\n",
      formats.size() == 1 && has_kernels
          ? "one format for all, which vLLM runs where it knows the model"
          : "vLLM has one scheme for all experts of a layer, of 4 or 8 bits in groups of 32, 64, 128 or all inputs, "
            "and looks it up by its own names");
}

void write_packed(const Settings& settings, std::vector<Layer>& layers) {
  const compressing::Packed packed = compressing::pack(settings, layers);
  print_written(settings, layers, packed.before, packed.after, packed.files);
  print_readers(packed.formats);
}

void write(const Settings& settings, std::vector<Layer>& layers) {
  std::size_t done = 0;
  moe::CompressOptions options{
      .apply = [&](const moe::MoeBlock& block, const moe::ExpertPlan&, const moe::BlockPlace&) {
        show_progress("writing", done, layers.size());
        return compressed(settings, block, layers[done++]);  // in the order of the plans
      }};
  if (settings.decode) options.source = moe::CodedSource::Decode;
  const auto written =
      moe::compress_checkpoint(settings.directory, settings.output, compressing::plans_of(layers), options);
  show_progress("writing", layers.size(), layers.size());
  std::uint64_t before = 0, after = 0;
  for (const moe::CompressedBlock& block : written.blocks) before += block.bytes_before, after += block.bytes_after;
  print_written(settings, layers, before, after, written.files);
}

std::vector<Layer> run(const Settings& settings) {
  const auto checkpoint = moe::Checkpoint::open(settings.directory);
  std::vector<Layer> layers = layers_of(settings, checkpoint);
  if (settings.calibration.empty())
    std::printf("no --calibration: %td tokens by lot, which say little about a trained model\n", settings.tokens);
  for_each_block(checkpoint, "scoring", layers, [&](const moe::MoeBlock& block, Layer& layer) {
    compressing::score(settings, block, compressing::tokens_of(settings, layer.place.layer, block.model_dim()), layer);
  });
  compressing::plan_experts(settings, layers);
  if (settings.bits > 0) {
    for_each_block(checkpoint, "measuring bits", layers, [&](const moe::MoeBlock& block, Layer& layer) {
      const compressing::Tokens tokens = compressing::tokens_of(settings, layer.place.layer, block.model_dim());
      const moe::MoeBlock small = compressing::with_fewer(settings, block, layer);
      layer.error = moe::reconstruction_error(block, small, tokens.read);
      compressing::measure_bits(settings, small, tokens, layer);
    });
    compressing::plan_bits(settings, layers);
  }
  if (!settings.output.empty()) {
    settings.packed ? write_packed(settings, layers) : write(settings, layers);
  } else {
    print_header();
    for_each_block(checkpoint, "applying", layers, [&](const moe::MoeBlock& block, Layer& layer) {
      (void)compressed(settings, block, layer);
      print(layer);
    });
  }
  if (settings.experts)
    for (const Layer& layer : layers) print_experts(layer);
  return layers;
}

/// Loads what was written, and compares its error with what was reported: of weights that were not packed, which were
/// rounded to BF16 in between, nearly the same.
void read_back(const Settings& settings, const std::vector<Layer>& layers) {
  const auto load = [](const std::filesystem::path& path, const moe::BlockPlace& place) {
    return moe::load_moe_block(moe::Checkpoint::open(path), moe::read_moe_config(path / "config.json", place.layer),
                               {.layer = place.layer, .prefix = place.prefix});
  };
  for (const Layer& layer : layers) {
    const moe::MoeBlock before = load(settings.directory, layer.place), after = load(settings.output, layer.place);
    const moe::Matrix<float> tokens = compressing::tokens_of(settings, layer.place.layer, before.model_dim()).read;
    const double error = moe::reconstruction_error(before, after, tokens).relative();
    std::printf("read back: layer %td has %td experts, outputs off by %.4f\n", layer.place.layer, after.num_experts(),
                error);
    const double most = settings.packed ? 1e-9 : 0.01;
    if (after.num_experts() != layer.plan.num_kept() || !(std::abs(error - layer.error.relative()) <= most))
      moe::fail("layer ", layer.place.layer, " has ", after.num_experts(), " experts and an error of ", error,
                ", expected ", layer.plan.num_kept(), " and ", layer.error.relative());
  }
}

void check(const CLI::App& app, const Settings& settings) {
  const auto only_with = [&](const char* option, bool is_used, const char* other) {
    if (app.count(option) > 0 && !is_used) moe::fail(option, " without ", other, ", which it is about");
  };
  if (settings.keep == 0 && settings.bits == 0) moe::fail("nothing to do, expected --keep N, --bits B or both");
  for (const char* option : {"--apply", "--score"}) only_with(option, settings.keep > 0, "--keep");
  for (const char* option : {"--choices", "--group", "--method", "--codes", "--packed"})
    only_with(option, settings.bits > 0, "--bits");
  only_with("--rank", settings.apply == "subspace", "--apply subspace");
  only_with("--align", settings.apply != "prune", "--apply merge or subspace");
  only_with("--tokens", settings.calibration.empty(), "tokens by lot");
  only_with("--stream", !settings.calibration.empty(), "--calibration");
  std::error_code none;
  if (std::filesystem::exists(settings.output, none) && !std::filesystem::is_empty(settings.output, none))
    moe::fail("--output '", settings.output, "' is there already, expected a new name or an empty directory");
  if (settings.apply == "subspace" && settings.rank < 1)
    moe::fail("--apply subspace needs --rank, expected at least 1");
  const bool is_all = std::ranges::find(settings.layers, "all") != settings.layers.end();
  if (is_all && settings.layers.size() > 1) moe::fail("--layer all and a number, expected one of the two");
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Makes the mixtures of a model smaller: fewer experts, fewer bits");
  Settings settings;
  app.add_option("directory", settings.directory, "of a model: config.json and safetensors; none for a demo");
  app.add_option("--output", settings.output, "directory to write, which is not there yet; none: only the report");
  app.add_option("--layer", settings.layers, "numbers of layers, or all")->capture_default_str();
  app.add_option("--keep", settings.keep, "experts that stay in a layer")->check(CLI::PositiveNumber);
  app.add_option("--bits", settings.bits, "of a weight of an expert, on average; scales apart")
      ->check(CLI::PositiveNumber);
  app.add_flag("--global", settings.global, "budgets of all layers together; few families allow that of experts");
  app.add_option(
         "--score", settings.score,
         "use, weight: share of tokens, mean weight; norm: weighted norm of outputs, reap: the same per token "
         "of the expert; easy-ep: times how far tokens turn; router, similarity: clusters of alike rows, outputs")
      ->check(CLI::IsMember({"use", "weight", "norm", "reap", "easy-ep", "router", "similarity"}))
      ->capture_default_str();
  app.add_option("--apply", settings.apply, "prune: the others go; merge: into what they are like; subspace: --rank")
      ->check(CLI::IsMember({"prune", "merge", "subspace"}))
      ->capture_default_str();
  app.add_option("--rank", settings.rank, "of the common subspace")->check(CLI::PositiveNumber);
  app.add_flag("--align", settings.align, "hidden units are put in one order before experts are merged");
  app.add_option("--choices", settings.choices, "bits to choose from, ascending")
      ->check(CLI::Range(1, 8))
      ->capture_default_str();
  app.add_option("--group", settings.group, "inputs that share a scale, a multiple of 32")->capture_default_str();
  app.add_option("--method", settings.method, "how codes are found")
      ->check(CLI::IsMember({"rtn", "gptq"}))
      ->capture_default_str();
  app.add_flag("--packed", settings.packed,
               "write codes, as compressed-tensors packs integers, instead of rounded weights");
  app.add_option("--codes", settings.codes, "file for the codes of a layer; {} is its number");
  app.add_option("--calibration", settings.calibration, "tokens (.npy); {} is the layer's number");
  app.add_option("--stream", settings.stream, "what outputs are added to (.npy); otherwise what is read");
  app.add_option("--tokens", settings.tokens, "by lot, without --calibration")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--decode", settings.decode, "other weights that are in few bits become BF16, as those of experts do");
  app.add_flag("--experts", settings.experts, "a line for every expert");
  CLI11_PARSE(app, argc, argv);
  std::optional<SyntheticCheckpoint> synthetic;
  if (settings.directory.empty()) {
    settings.directory = synthetic.emplace().path().string();
    settings.output = synthetic->path().string() + "_small";
    if (settings.keep == 0 && settings.bits == 0) settings.keep = 12, settings.bits = 2.5;
  }
  // Files lie beside it.
  while (settings.output.size() > 1 && settings.output.ends_with('/')) settings.output.pop_back();
  check(app, settings);
  const std::vector<Layer> layers = run(settings);
  if (!synthetic) return 0;
  read_back(settings, layers);
  std::filesystem::remove_all(settings.output);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "compress_checkpoint: %s\n", error.what());
  return 1;
}
