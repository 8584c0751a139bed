// SPDX-License-Identifier: MIT
// quantise_checkpoint DIR OUT [--layer N...] [--format int4] [--method rtn|hqq|awq|gptq] [--calibration FILE]: writes
// the model in DIR again with the experts of its MoE layers in few bits, as vLLM, transformers and this library read
// them, and says what that saves and costs. Without DIR it makes a small model first, and reads back what it wrote.
//   --calibration  what the MoE blocks read: tokens [num_tokens, model_dim] in a .npy file, or what --save-calibration
//                  wrote of them (.safetensors); "{}" in the name stands for the number of the layer
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <limits>
#include <moe/compress.hpp>
#include <moe/io.hpp>
#include <moe/moe.hpp>
#include <optional>

#include "load_checkpoint/synthetic.hpp"

namespace {

struct Settings {
  std::string directory, out, format = "int4", scales = "bf16", method = "rtn", calibration, save_calibration;
  std::vector<moe::Index> layers = {};
  double damping = moe::Gptq{}.damping;
  bool leave_shared = false, decode = false, matrices = false;
};

moe::WeightFormat format_of(const Settings& settings) {
  moe::WeightFormat format = moe::WeightFormat::named(settings.format);
  const bool is_int = format.code == moe::WeightCode::Int4 || format.code == moe::WeightCode::Int8;
  if (is_int || settings.format == "fp8-g0")
    format.scale = settings.scales == "f32"   ? moe::ScaleType::F32
                   : settings.scales == "f16" ? moe::ScaleType::F16
                                              : moe::ScaleType::Bf16;
  return format;
}

/// What experts have read, from a file of tokens or of statistics.
moe::BlockCalibration calibration_of(const Settings& settings, const moe::MoeBlock& block, moe::Index layer) {
  const std::string name = moe::numbered_name(settings.calibration, layer);
  if (settings.calibration.empty()) moe::fail("method ", settings.method, " looks at tokens, expected --calibration");
  moe::BlockCalibration calibration(block);
  if (name.ends_with(".npy")) {
    const auto file = moe::read_npy<float>(name, moe::Narrowing::Allow);
    if (file.shape.size() != 2 || file.shape[1] != block.model_dim())
      moe::fail_environment("'", name, "' is no array [num_tokens, ", block.model_dim(), "]");
    calibration =
        moe::calibrate(block, Eigen::Map<const moe::Matrix<float>>(file.values.data(), file.shape[0], file.shape[1]));
  } else {
    moe::load_parameters(name, calibration);
  }
  if (!settings.save_calibration.empty())
    moe::save_parameters(moe::numbered_name(settings.save_calibration, layer), calibration);
  return calibration;
}

/// The block of one layer, by a method that looks at more than one weight; the report says how well.
moe::QuantisedMoeBlock quantised(const Settings& settings, const moe::MoeBlock& block, moe::Index layer,
                                 const moe::WeightWriter& writer, double& output_error) {
  if (settings.method == "hqq") return moe::quantise(block, writer.format(), moe::Hqq{});
  const moe::BlockCalibration calibration = calibration_of(settings, block, layer);
  moe::QuantisationReport report;
  const moe::QuantisationOptions options{
      .progress = [&](moe::Index done,
                      moe::Index all) { std::fprintf(stderr, "\rlayer %td  %td of %td", layer, done, all); },
      .report = &report};
  auto result = settings.method == "awq" ? moe::quantise(block, writer.format(), moe::Awq{}, calibration, options)
                                         : moe::quantise(block, writer.format(), moe::Gptq{.damping = settings.damping},
                                                         calibration, options);
  std::fprintf(stderr, "\r%40s\r", "");
  if (settings.matrices) report.write_table(std::cout);
  output_error = report.output_error();
  return result;
}

void print(const moe::QuantisedLayer& layer, double output_error) {
  const auto megabytes = [](std::uint64_t bytes) { return 1e-6 * static_cast<double>(bytes); };
  std::printf("%5td %12.2f %12.2f %7.2f %9.4f", layer.layer, megabytes(layer.bytes_before),
              megabytes(layer.bytes_after), megabytes(layer.bytes_before) / megabytes(layer.bytes_after),
              layer.error.relative());
  if (std::isnan(output_error))
    std::printf("%10s", "-");  // of methods that look at weights alone
  else
    std::printf("%10.4f", output_error);
  std::printf(" %8.2f\n", layer.seconds);
  std::fflush(stdout);
}

/// Layers read other tokens, each from a file of its own.
void require_numbered(const Settings& settings) {
  const bool is_one_layer = settings.layers.size() == 1;
  for (const std::string& name : {settings.calibration, settings.save_calibration})
    if (!name.empty() && !is_one_layer && name.find("{}") == name.npos)
      moe::fail("file '", name,
                "' for several layers, expected a name with {} for the number of the layer, or --layer");
}

void run(const Settings& settings) {
  const std::string family = moe::read_moe_family(std::filesystem::path(settings.directory) / "config.json");
  const auto writer = moe::weight_writer(format_of(settings), family);
  if (writer->name() == moe::Fp8BlocksWriter().name() && settings.method != "rtn")
    moe::fail("format fp8 has one scale for 128 outputs, expected --method rtn");
  double output_error = std::numeric_limits<double>::quiet_NaN();  // of the layer that is being written
  moe::QuantiseOptions options{
      .layers = settings.layers,
      .shared = settings.leave_shared ? moe::SharedExperts::Leave : moe::SharedExperts::Quantise,
      .source = settings.decode ? moe::CodedSource::Decode : moe::CodedSource::Refuse,
      .report = [&](const moe::QuantisedLayer& layer) { print(layer, output_error); }};
  if (settings.method != "rtn")
    options.quantiser = [&](const moe::Checkpoint& checkpoint, const moe::MoeConfig& config,
                            const moe::LoadOptions& load, const moe::WeightWriter& to) {
      return quantised(settings, moe::load_moe_block(checkpoint, config, load), load.layer, to, output_error);
    };
  std::printf(
      "experts in %s, %s, found by %s\n"
      "                                          relative error of\n"
      "layer    MB before     MB after   times   weights   outputs  seconds\n",
      writer->format().name().c_str(), writer->name().c_str(), settings.method.c_str());
  require_numbered(settings);
  const auto written = moe::quantise_checkpoint(settings.directory, settings.out, *writer, options);
  std::printf("wrote %.2f MB in %zu files to %s\n", 1e-6 * static_cast<double>(written.files.total_size),
              written.files.files.size(), settings.out.c_str());
  for (const std::string& name : written.files.left_out) std::printf("left out: %s\n", name.c_str());
}

/// Loads a layer of what was written in its few bits, and runs it beside the floats.
void read_back(const std::filesystem::path& source, const std::filesystem::path& written, moe::Index layer) {
  const auto load = [layer](const std::filesystem::path& path) {
    return std::pair(moe::Checkpoint::open(path), moe::read_moe_config(path / "config.json", layer));
  };
  const auto [before, config] = load(source);
  const auto [after, small] = load(written);
  const moe::MoeBlock exact = moe::load_moe_block(before, config, {.layer = layer});
  const moe::QuantisedMoeBlock codes = moe::load_quantised_block(after, small, {.layer = layer});
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(64, config.model_dim);
  moe::Matrix<float> expected(64, config.model_dim), output(64, config.model_dim);
  moe::Workspace workspace;
  exact.forward(tokens, moe::Step{}, expected, workspace);
  codes.forward(tokens, moe::Step{}, output, workspace);
  const float error = (output - expected).norm() / expected.norm();
  std::printf("read back: %.2f MB, output off by %.3f\n", 1e-6 * static_cast<double>(moe::memory_bytes(codes)),
              static_cast<double>(error));
  if (!(error < 0.25f)) moe::fail("output off by ", error, ", expected less than .25");
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app("Writes a model again with the experts of its mixtures in few bits");
  Settings settings;
  app.add_option("directory", settings.directory, "of a model: config.json and safetensors; none for a demo");
  app.add_option("out", settings.out, "directory to write, which is not there yet");
  app.add_option("--layer", settings.layers, "numbers of layers; all MoE layers otherwise");
  app.add_option("--format", settings.format, "int1 to int8, int4-g128, int4-zero, fp8, fp8-g0, mxfp4")
      ->capture_default_str();
  app.add_option("--scales", settings.scales, "type of the scales of integers and fp8-g0")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->capture_default_str();
  app.add_option("--method", settings.method, "how codes are found")
      ->check(CLI::IsMember({"rtn", "hqq", "awq", "gptq"}))
      ->capture_default_str();
  app.add_option("--calibration", settings.calibration, "tokens (.npy) or statistics; {} is the layer's number");
  app.add_option("--save-calibration", settings.save_calibration, "where to keep the statistics");
  app.add_option("--damping", settings.damping, "of gptq")->capture_default_str();
  app.add_flag("--leave-shared", settings.leave_shared, "shared experts stay as they are");
  app.add_flag("--decode", settings.decode, "take a source that is in few bits already");
  app.add_flag("--matrices", settings.matrices, "a line for every matrix, with --calibration");
  CLI11_PARSE(app, argc, argv);
  std::optional<SyntheticCheckpoint> synthetic;
  if (settings.directory.empty()) {
    settings.directory = synthetic.emplace().path().string();
    settings.out = (synthetic->path().string() + "_small");
  }
  if (settings.out.empty()) moe::fail("no directory to write, expected quantise_checkpoint DIRECTORY OUT");
  const bool reads_tokens = settings.method == "awq" || settings.method == "gptq";
  for (const char* option : {"--calibration", "--save-calibration", "--matrices"})
    if (app.count(option) > 0 && !reads_tokens)
      moe::fail(option, " with --method ", settings.method, ", expected awq or gptq, which look at tokens");
  if (app.count("--damping") > 0 && settings.method != "gptq") moe::fail("--damping is of --method gptq");
  run(settings);
  if (!synthetic) return 0;
  read_back(settings.directory, settings.out, settings.layers.empty() ? 0 : settings.layers.front());
  std::filesystem::remove_all(settings.out);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "quantise_checkpoint: %s\n", error.what());
  return 1;
}
