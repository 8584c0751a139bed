// SPDX-License-Identifier: MIT
// load_checkpoint [DIR] [--layer N]: loads one MoE layer of a downloaded model (config.json and safetensors, or a GGUF
// file), the first unless told otherwise, runs it on random tokens, and shows who got them and how fast. Without DIR it
// makes a small checkpoint of its own first.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <moe/io.hpp>
#include <optional>

#include "load_checkpoint/synthetic.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Settings {
  std::string directory, prefix;
  std::optional<moe::Index> layer = {};
  moe::Index tokens = 512;
};

/// "1, 3, 5-7".
std::string ranges(const std::vector<moe::Index>& numbers) {
  std::string text;
  for (std::size_t first = 0, last = 0; first < numbers.size(); first = ++last) {
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[first]);
    if (last != first) text += "-" + std::to_string(numbers[last]);
  }
  return text;
}

/// What says how to read a model: itself, if it is a GGUF file. Throws, saying what there is, for a directory that is
/// not one of a model.
std::filesystem::path config_file(const std::filesystem::path& directory) {
  if (directory.extension() == ".gguf") return directory;
  if (!std::filesystem::is_directory(directory))
    moe::fail_environment("'", directory.string(),
                          "' is not a directory; expected one with config.json and safetensors");
  const std::filesystem::path file = directory / "config.json";
  if (!std::filesystem::exists(file))
    moe::fail_environment("'", directory.string(), "' has no config.json, which says what the tensors mean");
  return file;
}

/// The layer to load: the one asked for, or else the first with an MoE block.
moe::Index choose_layer(const moe::Checkpoint& checkpoint, const std::string& family, const Settings& settings) {
  if (!settings.prefix.empty()) return settings.layer.value_or(0);
  const std::vector<moe::Index> layers = moe::moe_layers(checkpoint, family);
  if (layers.empty())
    moe::fail_environment("'", settings.directory, "' has no MoE block of family '", family,
                          "' under its names; --prefix says where one is");
  const moe::Index layer = settings.layer.value_or(layers.front());
  if (std::find(layers.begin(), layers.end(), layer) == layers.end())
    moe::fail_environment("layer ", layer, " has no MoE block; layers that have one: ", ranges(layers));
  std::printf("layer    %td of MoE layers %s\n", layer, ranges(layers).c_str());
  return layer;
}

/// What is there, before anything is read.
void describe(const moe::Checkpoint& checkpoint, const moe::MoeConfig& config, const moe::BlockLocation& location) {
  std::uint64_t bytes = 0;
  std::size_t tensors = 0;
  for (const std::string& name : checkpoint.names())
    if (name.starts_with(location.prefix)) bytes += checkpoint.at(name).bytes.size(), ++tensors;
  const auto down = moe::numbered_name(location.format.down, config.num_experts - 1);
  const auto weight = moe::WeightSource::find(checkpoint, location.prefix + down);
  std::printf("family   %s\n", config.family.c_str());
  std::printf("sizes    model %td, expert %td, %td experts, %td per token", config.model_dim, config.hidden_dim,
              config.num_experts, config.sparse_mixer ? moe::SparseMixerGate::kChoices : config.gate.k);
  if (config.shared_dim != 0) std::printf(", shared expert %td", config.shared_dim);
  if (config.num_identity_experts != 0) std::printf(", %td identity experts", config.num_identity_experts);
  std::printf("\nweights  %s, %.1f MB in %zu tensors below %s\n", weight.format().c_str(),
              static_cast<double>(bytes) / 1e6, tensors, location.prefix.c_str());
}

/// What lies there and is not part of the checkpoint, the first few by name.
void show_ignored(const moe::Checkpoint& checkpoint) {
  constexpr std::size_t kShown = 10;
  const auto& ignored = checkpoint.ignored();
  for (std::size_t i = 0; i < std::min(ignored.size(), kShown); ++i)
    std::printf("ignored  %s%s%s\n", ignored[i].file.c_str(), ignored[i].tensor.empty() ? "" : ": ",
                ignored[i].tensor.c_str());
  if (ignored.size() > kShown) std::printf("ignored  %zu more\n", ignored.size() - kShown);
}

void show_progress(std::uint64_t done, std::uint64_t total) {
  std::fprintf(stderr, "\rloading  %.1f of %.1f GB", static_cast<double>(done) / 1e9, static_cast<double>(total) / 1e9);
  if (done == total) std::fprintf(stderr, "\n");
}

/// A bar per expert.
void show_load(const moe::DispatchPlan& plan) {
  moe::Index most = 1;
  for (moe::Index e = 0; e < plan.num_experts(); ++e) most = std::max(most, plan.rows_of(e));
  for (moe::Index e = 0; e < plan.num_experts(); ++e) {
    const auto width = static_cast<std::size_t>(50 * plan.rows_of(e) / most);
    std::printf("expert %4td %7td %s\n", e, plan.rows_of(e), std::string(width, '#').c_str());
  }
}

void run(const Settings& settings) {
  const std::filesystem::path config_path = config_file(settings.directory);
  const auto checkpoint = moe::Checkpoint::open(settings.directory);
  show_ignored(checkpoint);
  const std::string family = moe::read_moe_family(config_path);
  const moe::Index layer = choose_layer(checkpoint, family, settings);
  const moe::MoeConfig config = moe::read_moe_config(config_path, layer);
  const moe::LoadOptions options{.layer = layer, .prefix = settings.prefix, .progress = {.report = show_progress}};
  describe(checkpoint, config, moe::find_block(checkpoint, config, options));

  auto begin = Clock::now();
  const moe::MoeBlock block = moe::load_moe_block(checkpoint, config, options);
  std::printf("loaded   %td weights in %.3f s\n", moe::num_parameters(block), seconds_since(begin));

  moe::Matrix<float> tokens(settings.tokens, config.model_dim), out(settings.tokens, config.model_dim);
  const moe::RandomField random(moe::Purpose::User, /*seed=*/1);
  for (moe::Index t = 0; t < tokens.rows(); ++t)
    for (moe::Index c = 0; c < tokens.cols(); ++c) tokens(t, c) = static_cast<float>(random.normal(t, c));
  moe::Workspace workspace;
  block.forward(tokens, moe::Step{}, out, workspace);  // buffers grow
  int passes = 0;
  for (begin = Clock::now(); passes < 3 || seconds_since(begin) < 0.3; ++passes)
    block.forward(tokens, moe::Step{}, out, workspace);
  const double rate = static_cast<double>(passes * settings.tokens) / seconds_since(begin);
  std::printf("speed    %.0f tokens per second in batches of %td\n\n", rate, settings.tokens);
  show_load(workspace.plan());
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Loads a mixture-of-experts layer of a published model and runs it");
  Settings settings;
  app.add_option("directory", settings.directory,
                 "with config.json and model.safetensors or its index, or a GGUF file; '' for a demo");
  app.add_option("--layer", settings.layer, "number of the layer; the first with an MoE block otherwise")
      ->check(CLI::Range(moe::Index{0}, moe::Index{1} << 20));
  app.add_option("--prefix", settings.prefix, "of the layer's tensors, instead of that of the family");
  app.add_option("--tokens", settings.tokens, "random tokens to run")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::optional<SyntheticCheckpoint> synthetic;
  if (settings.directory.empty()) settings.directory = synthetic.emplace().path().string();
  run(settings);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "load_checkpoint: %s\n", error.what());
  return 1;
}
