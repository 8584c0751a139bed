// SPDX-License-Identifier: MIT
// Measures how fast a layer of a checkpoint is ready, beside memory and storage.
#include <cstdio>
#include <cstring>
#include <fstream>

#include <CLI/CLI.hpp>

#if defined(__linux__)
#include <fcntl.h>
#include <unistd.h>
#endif

#include "clock.hpp"
#include "moe/expert/glu.hpp"
#include "moe/io/load_weight.hpp"

namespace {

using moe::Index;
using moe::WeightLayout;

struct Arguments {
  Index experts = 8, model_dim = 4096, hidden_dim = 5120;
  std::string dtype = "BF16", layout = "separate", directory = std::filesystem::temp_directory_path().string();
  int repetitions = 5;
};

constexpr const char* kDescription =
    "Times the loading of the experts of one layer (SwiGLU) from a safetensors file that it writes, into the panels\n"
    "that the kernels read, in float. `warm`: the file is in the page cache; `cold`: it is not. The limits are "
    "measured\n"
    "in the same run, all threads: `copy` is memcpy of the mapped file to fresh memory, `storage` is reading the file\n"
    "with read() when it is not cached. Rates count the bytes of the file; `moved` counts what a load reads and\n"
    "writes beside what memcpy does. Anonymous memory is what the process itself holds, without the mapped file.";

/// Anonymous memory of the process, in bytes; 0 where the system does not say.
double anonymous_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("RssAnon:")) return 1024 * std::stod(line.substr(8));
  return 0;
}

/// Writes the file out and takes it out of the page cache, as far as the system lets a program do that.
void drop_from_cache(const std::filesystem::path& path) {
#if defined(__linux__)
  const int file = open(path.c_str(), O_RDONLY);
  (void)fsync(file);
  (void)posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  (void)close(file);
#else
  (void)path;
#endif
}

moe::TensorInfo tensor(moe::Dtype dtype, std::vector<Index> shape) {
  return {.dtype = dtype, .shape = std::move(shape)};
}
std::string name_of(Index expert, const char* part) {
  return "experts." + std::to_string(expert) + "." + part + ".weight";
}

/// Codes of small numbers of any type: no code is NaN or infinite.
void write_layer(const std::filesystem::path& path, const Arguments& args) {
  const moe::Dtype dtype = *moe::find_dtype(args.dtype);
  const Index e = args.experts, d = args.model_dim, ff = args.hidden_dim;
  moe::SafetensorsHeader header;
  if (args.layout == "separate") {
    for (Index i = 0; i < e; ++i) {
      header.tensors[name_of(i, "gate_proj")] = header.tensors[name_of(i, "up_proj")] = tensor(dtype, {ff, d});
      header.tensors[name_of(i, "down_proj")] = tensor(dtype, {d, ff});
    }
  } else {
    const bool out_in = args.layout == "fused";
    header.tensors["gate_up_proj"] = out_in ? tensor(dtype, {e, 2 * ff, d}) : tensor(dtype, {e, d, 2 * ff});
    header.tensors["down_proj"] = out_in ? tensor(dtype, {e, d, ff}) : tensor(dtype, {e, ff, d});
  }
  moe::SafetensorsWriter writer(path, header);
  std::vector<std::byte> bytes;
  for (const auto& [name, info] : header.tensors) {
    bytes.resize(static_cast<std::size_t>(*moe::detail::tensor_bytes(info.dtype, info.shape)));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 % 59);
    writer.write_bytes(name, bytes);
  }
  writer.commit();
}

/// What a family loader does: experts of the right size, then all slices at once.
std::vector<moe::Glu> load_layer(const std::filesystem::path& path, const Arguments& args,
                                 const moe::LoadProgress& progress) {
  const moe::Checkpoint checkpoint = moe::Checkpoint::open(path);
  std::vector<moe::Glu> experts;
  for (Index e = 0; e < args.experts; ++e) experts.emplace_back(args.model_dim, args.hidden_dim);
  moe::WeightLoader loader;
  const WeightLayout layout = args.layout.starts_with("in_out") ? WeightLayout::InOut : WeightLayout::OutIn;
  for (Index e = 0; e < args.experts; ++e) {
    moe::Glu& expert = experts[static_cast<std::size_t>(e)];
    const auto slice = [&](const std::string& name, Index matrix) {
      return moe::weight_slice(moe::WeightSource::find(checkpoint, name), layout, matrix);
    };
    if (args.layout == "separate") {
      loader.add({slice(name_of(e, "gate_proj"), 0), slice(name_of(e, "up_proj"), 0)}, expert.gate_up());
      loader.add(slice(name_of(e, "down_proj"), 0), expert.down());
      continue;
    }
    const moe::WeightSlice fused = slice("gate_up_proj", e);
    loader.add(args.layout == "in_out_interleaved" ? moe::gate_up_interleaved(fused) : moe::gate_up_halves(fused),
               expert.gate_up());
    loader.add(slice("down_proj", e), expert.down());
  }
  loader.run(progress);
  return experts;
}

/// memcpy of the mapped file to fresh memory, by all threads.
double copy_seconds(const std::filesystem::path& path) {
  const moe::MappedFile file("copy", path);
  const auto bytes = file.bytes();
  return bench::seconds_of([&] {
    auto copy = moe::AlignedBuffer<std::byte>::uninitialised(std::ssize(bytes));
    moe::parallel_ranges(std::ssize(bytes), Index{4} << 20, [&](Index begin, Index end, Index) {
      std::memcpy(copy.data() + begin, bytes.data() + begin, static_cast<std::size_t>(end - begin));
    });
    bench::keep(copy);
  });
}

/// read() of the file when it is not cached, by all threads.
double storage_seconds(const std::filesystem::path& path) {
  drop_from_cache(path);
  const auto size = static_cast<Index>(std::filesystem::file_size(path));
  return bench::seconds_of([&] {
    moe::parallel_ranges(size, Index{16} << 20, [&](Index begin, Index end, Index) {
      std::ifstream stream(path, std::ios::binary);
      std::vector<char> block(static_cast<std::size_t>(end - begin));
      stream.seekg(begin);
      stream.read(block.data(), end - begin);
      bench::keep(block);
    });
  });
}

void measure(const std::filesystem::path& path, const Arguments& args) {
  std::vector<double> copy, storage, warm, cold;
  double target = 0, peak = 0;
  const auto load = [&] {
    const double before = anonymous_bytes();
    double most = 0;
    const moe::LoadProgress progress{.report = [&](auto, auto) { most = std::max(most, anonymous_bytes()); },
                                     .least_bytes = 0};
    std::vector<moe::Glu> experts;
    const double seconds = bench::seconds_of([&] { experts = load_layer(path, args, progress); });
    peak = std::max(peak, std::max(most, anonymous_bytes()) - before);
    target = 0;
    for (const moe::Glu& expert : experts)
      target += static_cast<double>(expert.gate_up().span().size_bytes() + expert.down().span().size_bytes());
    return seconds;
  };
  for (int i = 0; i < args.repetitions; ++i) {
    storage.push_back(storage_seconds(path));
    drop_from_cache(path);
    cold.push_back(load());
    copy.push_back(copy_seconds(path));
    warm.push_back(load());
  }
  const double bytes = static_cast<double>(std::filesystem::file_size(path)), gb = 1e-9 * bytes;
  const auto rate = [&](const std::vector<double>& seconds) { return gb / bench::median(seconds); };
  std::printf("%ld experts, %ld x %ld, %s, %s: file %.2f GB, panels %.2f GB, %ld threads\n", args.experts,
              args.model_dim, args.hidden_dim, args.dtype.c_str(), args.layout.c_str(), gb, 1e-9 * target,
              moe::num_workers());
  std::printf("copy     %6.2f GB/s\nstorage  %6.2f GB/s\n", rate(copy), rate(storage));
  const double moved = (bytes + target) / (2 * bytes);
  std::printf("warm     %6.2f GB/s  %3.0f%% of copy (moved: %.0f%%)\n", rate(warm), 100 * rate(warm) / rate(copy),
              100 * moved * rate(warm) / rate(copy));
  const double limit = std::min(rate(copy), rate(storage));
  std::printf("cold     %6.2f GB/s  %3.0f%% of the lower of copy and storage\n", rate(cold), 100 * rate(cold) / limit);
  std::printf("anonymous memory: panels + %.1f MB at most, one expert of the file is %.1f MB\n", 1e-6 * (peak - target),
              1e-6 * bytes / static_cast<double>(args.experts));
}

}  // namespace

int main(int argc, char** argv) {
  Arguments args;
  CLI::App app(kDescription);
  const auto size = [&](const char* name, Index& value) {
    app.add_option(name, value)->check(CLI::Range(Index{1}, Index{1} << 20))->capture_default_str();
  };
  size("--experts", args.experts);
  size("--model-dim", args.model_dim);
  size("--hidden-dim", args.hidden_dim);
  app.add_option("--dtype", args.dtype)->check(CLI::IsMember({"BF16", "F16", "F32", "F8_E4M3"}))->capture_default_str();
  app.add_option("--layout", args.layout)
      ->check(CLI::IsMember({"separate", "fused", "in_out", "in_out_interleaved"}))
      ->capture_default_str();
  app.add_option("--directory", args.directory, "where the file is written, and removed again")->capture_default_str();
  app.add_option("--repetitions", args.repetitions)->check(CLI::Range(1, 1000))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const std::filesystem::path path = std::filesystem::path(args.directory) /
                                     ("moe_bench_load_" + std::to_string(bench::seconds_now()) + ".safetensors");
  int status = 0;
  try {
    write_layer(path, args);
    measure(path, args);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    status = 1;
  }
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  return status;
}
