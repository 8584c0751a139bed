// SPDX-License-Identifier: MIT
// Measures how fast a layer of a checkpoint is ready, beside memory and storage.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>

#include "load_layer.hpp"
#include "load_limits.hpp"
#include "machine.hpp"

namespace {

using bench::Index;

struct Arguments {
  bench::Layer layer;
  std::string dtype = "BF16", directory = std::filesystem::temp_directory_path().string();
  std::vector<std::string> storages;
  std::vector<int> threads{1, bench::all_threads()};
  int repetitions = 5;
  bool best = false;
};

constexpr const char* kDescription =
    "Times the loading of the experts of one layer (SwiGLU) from a safetensors file that it writes, into the panels\n"
    "that the kernels read, in float. `cold`: the file is not in the page cache. `fresh`: the memory of the panels is\n"
    "new to the process; `touched`: it has been written before. Rates are GB of the file per second, of one thread\n"
    "and of all. The limits are measured in every repetition: `storage` is pread() of the file when it is not cached,\n"
    "`copy` memcpy of the cached file to fresh or touched memory, `write` memset of as many bytes as the panels have,\n"
    "or for fresh memory one byte per page. The first percentage is of the lower of copy and, cold, storage; the\n"
    "second of the lowest of all three, which is named. Medians of the repetitions, of percentages too.";

/// Anonymous memory of the process, in bytes; 0 where the system does not say.
double anonymous_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("RssAnon:")) return 1024 * std::stod(line.substr(8));
  return 0;
}

/// Seconds of one kind of load and of its limits, per repetition.
struct Series {
  const char* name;
  bool is_cold, is_fresh;
  std::vector<double> load = {}, copy = {}, write = {}, storage = {};
};

struct Measurement {
  std::vector<Series> series{{"cached, touched", false, false},
                             {"cached, fresh", false, true},
                             {"cold, touched", true, false},
                             {"cold, fresh", true, true}};
  double target = 0, peak = 0, cached = 0;  ///< bytes of panels and of anonymous memory; cached share before cold
};

class Meter {
 public:
  Meter(const std::filesystem::path& path, const Arguments& args) : path_(path), args_(args) {}

  Measurement measure() {
    load(false);  // the first memory that the process gets may be slower than all that follows
    for (int i = 0; i < args_.repetitions; ++i)
      for (Series& series : result_.series) add(series);
    if (args_.best)
      for (Series& series : result_.series)
        for (auto* seconds : {&series.load, &series.copy, &series.write, &series.storage})
          *seconds = {*std::min_element(seconds->begin(), seconds->end())};
    return result_;
  }

 private:
  void add(Series& series) {
    if (series.is_fresh) experts_.clear();
    const bench::TwoSeconds write = bench::write_seconds(static_cast<Index>(result_.target));
    const bench::TwoSeconds copy = bench::copy_seconds(path_);
    series.write.push_back(series.is_fresh ? write.fresh : write.touched);
    series.copy.push_back(series.is_fresh ? copy.fresh : copy.touched);
    series.storage.push_back(series.is_cold ? bench::storage_seconds(path_) : 0);
    if (series.is_cold) {
      bench::drop_from_cache(path_);
      result_.cached = std::max(result_.cached, bench::cached_share(path_));
    }
    series.load.push_back(load(series.is_fresh));
  }

  double load(bool is_fresh) {
    const double before = anonymous_bytes();
    double most = 0;
    const moe::LoadProgress progress{.report = [&](auto, auto) { most = std::max(most, anonymous_bytes()); },
                                     .least_bytes = 0};
    const double seconds = bench::seconds_of([&] { bench::load_layer(path_, args_.layer, experts_, progress); });
    result_.target = 0;
    for (const moe::Glu& expert : experts_)
      result_.target += static_cast<double>(expert.gate_up().span().size_bytes() + expert.down().span().size_bytes());
    if (is_fresh) result_.peak = std::max(result_.peak, most - before - result_.target);
    return seconds;
  }

  const std::filesystem::path& path_;
  const Arguments& args_;
  Measurement result_;
  std::vector<moe::Glu> experts_;
};

void report(const Series& series, double gb, const std::string& head) {
  const double load = bench::median(series.load), copy = bench::median(series.copy),
               write = bench::median(series.write), storage = bench::median(series.storage);
  std::vector<double> of_copy, of_all;
  for (std::size_t i = 0; i < series.load.size(); ++i) {
    const double limit = std::max(series.copy[i], series.storage[i]);
    of_copy.push_back(100 * limit / series.load[i]);
    of_all.push_back(100 * std::max(limit, series.write[i]) / series.load[i]);
  }
  const double slowest = std::max({copy, write, storage});
  std::printf("%s %-15s %7.2f", head.c_str(), series.name, gb / load);
  if (series.is_cold)
    std::printf(" %8.2f", gb / storage);
  else
    std::printf(" %8s", "-");
  std::printf(" %7.2f %7.2f  %4.0f%%  %4.0f%% %s\n", gb / copy, gb / write, bench::median(of_copy),
              bench::median(of_all),
              slowest == storage ? "storage"
              : slowest == copy  ? "copy"
                                 : "write");
}

void run(const bench::StorageName& storage, Arguments args) {
  args.layer.storage = storage.storage;
  const std::filesystem::path path = std::filesystem::path(args.directory) /
                                     ("moe_bench_load_" + std::to_string(bench::seconds_now()) + ".safetensors");
  const std::shared_ptr<void> remove(nullptr, [&](void*) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  });
  bench::write_layer(path, args.layer);
  const double gb = 1e-9 * static_cast<double>(std::filesystem::file_size(path));
  for (const int threads : args.threads) {
    bench::set_threads(threads);
    const Measurement m = Meter(path, args).measure();
    char head[64];
    std::snprintf(head, sizeof head, "%-23s %2d", storage.what, threads);
    for (const Series& series : m.series) report(series, gb, head);
    std::printf(
        "  file %.2f GB, panels %.2f GB, memory beside them %.1f MB, an expert of the panels %.1f MB; cached "
        "before cold %.0f%%\n",
        gb, 1e-9 * m.target, 1e-6 * std::max(0.0, m.peak), 1e-6 * m.target / static_cast<double>(args.layer.experts),
        100 * m.cached);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  Arguments args;
  CLI::App app(kDescription);
  const auto size = [&](const char* name, Index& value) {
    app.add_option(name, value)->check(CLI::Range(Index{1}, Index{1} << 20))->capture_default_str();
  };
  size("--experts", args.layer.experts);
  size("--model-dim", args.layer.model_dim);  // multiples of 32 for MXFP4
  size("--hidden-dim", args.layer.hidden_dim);
  for (const auto& storage : bench::kStorages) args.storages.emplace_back(storage.name);
  app.add_option("--dtype", args.dtype, "of what is neither FP8 nor MXFP4")
      ->check(CLI::IsMember({"BF16", "F16", "F32", "F8_E4M3"}))
      ->capture_default_str();
  app.add_option("--storages", args.storages)->check(CLI::IsMember(args.storages))->capture_default_str();
  app.add_option("--threads", args.threads)->check(CLI::Range(1, bench::all_threads()))->capture_default_str();
  app.add_option("--directory", args.directory, "where the file is written, and removed again")->capture_default_str();
  app.add_option("--repetitions", args.repetitions)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_flag("--best", args.best, "the fastest of the repetitions, of loads and limits alike, instead of medians");
  CLI11_PARSE(app, argc, argv);
  args.layer.dtype = *moe::find_dtype(args.dtype);
  std::printf("%s, %s; %td experts, %td x %td, %s; GB of the file per second, %s of %d\n",
              bench::processor_name().c_str(), bench::instruction_set().c_str(), args.layer.experts,
              args.layer.model_dim, args.layer.hidden_dim, args.dtype.c_str(), args.best ? "best" : "medians",
              args.repetitions);
  std::printf("%-23s %2s %-15s %7s %8s %7s %7s  %s\n", "weights", "th", "file, memory", "load", "storage", "copy",
              "write", "of copy or storage, of the lowest");
  for (const auto& storage : bench::kStorages)
    if (std::find(args.storages.begin(), args.storages.end(), storage.name) != args.storages.end()) run(storage, args);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
