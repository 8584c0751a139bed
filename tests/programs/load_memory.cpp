// SPDX-License-Identifier: MIT
// Loading a block takes the memory of its weights, as the block holds them, and at most one expert more, however the
// checkpoint stores them and however many threads load; of weights in few bits that of their codes, and while they are
// rounded an expert of floats per thread. Writing a model with experts in few bits takes a layer of those, and two
// matrices of floats per thread. Exits with 1 after messages about what takes more.
#include <cstdio>
#include <string>

#include "moe/core/memory_bytes.hpp"
#include "moe/io/block/load_quantised_block.hpp"
#include "moe/io/block/quantise_checkpoint.hpp"
#include "moe/io/families/model_config.hpp"
#include "programs/heap.hpp"
#include "support/checkpoints.hpp"
#include "support/thread_executor.hpp"

namespace {

using moe::Dtype;
using moe::Index;

constexpr Index kModelDim = 1024, kHiddenDim = 512;
constexpr long kWeight = sizeof(float), kExpertBytes = 3 * kModelDim * kHiddenDim * kWeight;

int num_failed = 0;

/// How a checkpoint stores expert weights.
enum class Stored { Bf16, Fp8, Mxfp4 };

struct Case {
  const char *name, *family, *sizes;
  Stored stored = Stored::Bf16;
};
constexpr const char* kLocal = R"("hidden_size": 1024, "intermediate_size": 512, "num_local_experts": 4,
  "num_experts_per_tok": 2, "hidden_act": "silu")";
constexpr const char* kPlain = R"("hidden_size": 1024, "intermediate_size": 512, "num_experts": 4,
  "num_experts_per_tok": 2, "hidden_act": "silu")";
constexpr const char* kDbrx = R"("d_model": 1024, "ffn_config": {"ffn_hidden_size": 512, "moe_num_experts": 4,
  "moe_top_k": 2, "moe_normalize_expert_weights": 1, "ffn_act_fn": {"name": "silu"}})";
constexpr const char* kLlama4 = R"("text_config": {"model_type": "llama4_text", "hidden_size": 1024,
  "intermediate_size": 512, "num_local_experts": 4, "num_experts_per_tok": 1})";

constexpr Case kCases[] = {{"per expert", "olmoe", kPlain},
                           {"per expert, FP8", "olmoe", kPlain, Stored::Fp8},
                           {"fused, out x in", "granitemoe", kLocal},
                           {"fused, in x out", "llama4", kLlama4},
                           {"stacked", "dbrx", kDbrx},
                           {"in turns, in x out", "gpt_oss", kLocal},
                           {"in turns, MXFP4", "gpt_oss", kLocal, Stored::Mxfp4}};

/// A tensor of zeros as it is stored, with its scales.
void append(const moe::BoundTensor& tensor, Stored stored, std::vector<test::Tensor>& tensors) {
  const auto add = [&](const std::string& name, Dtype dtype, const std::vector<Index>& shape) {
    std::size_t bytes = moe::dtype_size(dtype);
    for (const Index extent : shape) bytes *= static_cast<std::size_t>(extent);
    tensors.push_back({name, dtype, shape, std::string(bytes, '\0')});
  };
  std::vector<Index> shape = tensor.shape;
  const bool is_expert =
      tensor.name.find("experts.") != std::string::npos && tensor.name.find("bias") == std::string::npos;
  if (!is_expert || stored == Stored::Bf16) return add(tensor.name, Dtype::BF16, shape);
  if (stored == Stored::Fp8) {
    add(tensor.name, Dtype::F8_E4M3, shape);
    for (Index& extent : shape) extent = (extent + 127) / 128;
    return add(tensor.name + "_scale_inv", Dtype::F32, shape);
  }
  shape.back() /= 32;
  add(tensor.name + "_scales", Dtype::U8, shape);
  shape.push_back(16);
  add(tensor.name + "_blocks", Dtype::U8, shape);
}

void write(const std::filesystem::path& path, const Case& c, const moe::MoeConfig& config, Index num_layers = 1) {
  moe::MoeBlock block(config);
  const moe::FamilyFormat& format = moe::find_family(config.family)->formats.front();
  std::vector<test::Tensor> tensors;
  for (Index layer = 0; layer < num_layers; ++layer)
    for (const auto& tensor :
         moe::bind_weights(block, {format, moe::numbered_name(format.prefix, layer), c.stored == Stored::Mxfp4}))
      append(tensor, c.stored, tensors);
  test::write_tensors(path, tensors);
}

/// `load(checkpoint)` takes the memory of the weights and at most so much more for each of the workers.
template <class Load>
void check_load(const char* name, const std::filesystem::path& path, const Load& load, long more, long more_each) {
  for (const Index workers : {1, 3}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const auto checkpoint = moe::Checkpoint::open(path);
    const long before = test::bytes_held.load();
    test::most_bytes_held = before;
    const auto block = load(checkpoint);
    const long peak = test::most_bytes_held.load() - before, held = test::bytes_held.load() - before;
    // What shares huge pages takes part of one that had been taken before, and one partly at each end.
    const long weights = static_cast<long>(moe::memory_bytes(block)), page = static_cast<long>(moe::kHugePage);
    const long spare = more + 2 * page + workers * more_each;
    const bool fits = held >= weights - page && held <= weights + 3 * page && peak <= weights + spare;
    num_failed += fits ? 0 : 1;
    std::printf("%s, %td workers: %.2f MB at most, %.2f in the end, weights are %.2f, and %.2f more may be%s\n", name,
                workers, 1e-6 * static_cast<double>(peak), 1e-6 * static_cast<double>(held),
                1e-6 * static_cast<double>(weights), 1e-6 * static_cast<double>(spare), fits ? "" : ": MORE");
  }
}

void check(const Case& c) {
  const test::TemporaryDirectory directory;
  const std::string text = std::string(R"({"model_type": ")") + c.family + R"(", )" + c.sizes + "}";
  const moe::MoeConfig config = moe::parse_moe_config("load_memory", std::string_view(text));
  write(directory / "x.safetensors", c, config);
  const auto path = directory / "x.safetensors";
  check_load(
      c.name, path, [&](const auto& checkpoint) { return moe::load_moe_block(checkpoint, config); }, kExpertBytes, 0);
  constexpr long kSmall = kExpertBytes / 4;  // alignment of what is allocated, names, slices: half an expert in BF16
  const std::string kept = std::string(c.name) + ", kept", rounded = std::string(c.name) + ", int8";
  check_load(
      kept.c_str(), path, [&](const auto& checkpoint) { return moe::load_quantised_block(checkpoint, config); }, kSmall,
      0);
  check_load(
      rounded.c_str(), path,
      [&](const auto& checkpoint) {
        return moe::load_quantised_block(checkpoint, config, {.format = moe::WeightFormat::int8()});
      },
      kSmall, kExpertBytes);
}

/// Of three layers, one is in memory at a time.
void check_write(const char* format) {
  const test::TemporaryDirectory directory;
  const Case c{"per expert", "olmoe", kPlain};
  const std::string text = std::string(R"({"model_type": ")") + c.family + R"(", )" + c.sizes + "}";
  const moe::MoeConfig config = moe::parse_moe_config("load_memory", std::string_view(text));
  std::filesystem::create_directory(directory / "source");
  write(directory / "source" / "model.safetensors", c, config, 3);
  test::write_bytes(directory / "source" / "config.json", text);
  const auto writer = moe::weight_writer(moe::WeightFormat::named(format));
  long layer = 0;
  for (const Index workers : {1, 3}) {
    test::ThreadExecutor executor(workers);
    const moe::UseExecutor use(executor);
    const std::filesystem::path out = directory / std::to_string(workers);
    const long before = test::bytes_held.load();
    test::most_bytes_held = before;
    (void)moe::quantise_checkpoint(directory / "source", out, *writer);
    const long peak = test::most_bytes_held.load() - before;
    if (layer == 0)
      layer = static_cast<long>(moe::memory_bytes(
          moe::load_quantised_block(moe::Checkpoint::open(out), moe::read_moe_config(out / "config.json"))));
    // Gates and ups are two thirds of an expert, in floats twice; their codes up to four times while they are packed.
    const long matrix = kExpertBytes * 2 / 3, spare = kExpertBytes / 4 + workers * (2 * matrix + matrix);
    const bool fits = peak >= layer && peak <= layer + spare;
    num_failed += fits ? 0 : 1;
    std::printf("written as %s, %td workers: %.2f MB at most, a layer is %.2f, and %.2f more may be%s\n", format,
                workers, 1e-6 * static_cast<double>(peak), 1e-6 * static_cast<double>(layer),
                1e-6 * static_cast<double>(spare), fits ? "" : ": MORE");
  }
}

}  // namespace

int main() {
  for (const Case& c : kCases) check(c);
  for (const char* format : {"int4", "fp8"}) check_write(format);
  std::printf("%d failed\n", num_failed);
  return num_failed == 0 ? 0 : 1;
}
