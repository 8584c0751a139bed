// SPDX-License-Identifier: MIT
// serve_layer: a layer four times as large as its budget of memory, under a Poisson load of requests. Prints
// percentiles of latency (from the arrival of a request to its answer), hits and the peak of the memory of the process
// beside the budget, for policies of the cache, for batches that are put together by expert, and for all experts in
// memory; writes a script that draws the distributions. 64 GLU experts of 128 x 256, top-2, a token a request; requests
// stay with a topic for a while. What waits is served in batches of at most 16.
//   serve_layer --limit   lets the system refuse memory (setrlimit, RLIMIT_DATA) beyond what the started program has,
//                         the budget, and 8 MB to work in: the layer in memory then ends in std::bad_alloc, the others
//                         run. Fails unless both come out so, and the peak stays within the same sum. The
//                         one of /usr/bin/time -v has the layer in memory in it, which went on until it was
//                         refused. Where there is no such limit (other systems, one that the process has already
//                         and may not raise, sanitizers, which end where memory does), says so and ends with 0
#if __has_include(<malloc.h>)
#include <malloc.h>
#endif
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <exception>
#include <fstream>
#include <moe/moe.hpp>
#include <moe/serve.hpp>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <thread>

namespace {

using moe::Index;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr Index kExperts = 64, kDim = 128, kHidden = 256, kBatch = 16;
constexpr double kWorkspace = 8;  ///< megabytes: of batches, code when it first runs, what malloc keeps

/// Megabytes that the process has had at most, those of the program itself among them.
double peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return 1.024e-3 * static_cast<double>(usage.ru_maxrss);  // of KiB, as Linux counts
}

/// Megabytes of a line of /proc/self/status, as VmRSS: resident, or VmData: may be written, and is the process's own.
/// Nothing where there is no such line.
std::optional<double> status_of_process(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":")) return 1.024e-3 * std::stod(line.substr(name.size() + 1));
  return std::nullopt;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SERVE_LAYER_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SERVE_LAYER_SANITIZED
#endif
#endif

/// From now on no more than so many megabytes beyond what there is, which `malloc` answers with std::bad_alloc. What is
/// mapped of files does not count: it is the system's, which may forget it. Experts that leave go back to the system.
/// Says why if that cannot be; empty if it is so.
std::string limit_memory([[maybe_unused]] double megabytes) {
#ifdef SERVE_LAYER_SANITIZED
  return "a sanitizer ends the process where memory does";
#elif defined(RLIMIT_DATA)
  const std::optional<double> data = status_of_process("VmData");
  if (!data) return "no VmData in /proc/self/status";
#ifdef M_MMAP_THRESHOLD
  mallopt(M_MMAP_THRESHOLD, 1 << 16);
#endif
  rlimit limit{};
  if (getrlimit(RLIMIT_DATA, &limit) != 0) return std::generic_category().message(errno);
  const auto wanted = static_cast<rlim_t>(1e6 * (*data + megabytes));
  if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < wanted) return "the process may not have as much anyway";
  limit.rlim_cur = wanted;
  return setrlimit(RLIMIT_DATA, &limit) == 0 ? std::string() : std::generic_category().message(errno);
#else
  return "the system has no RLIMIT_DATA";
#endif
}

/// Expert after expert, so that there is never more than one in memory.
void write_experts(const std::filesystem::path& path) {
  moe::SafetensorsHeader header;
  const moe::Glu prototype(kDim, kHidden);
  for (Index e = 0; e < kExperts; ++e)
    moe::visit_all(
        [&](const std::string& name, const auto& leaf) {
          header.tensors.emplace(std::to_string(e) + "." + name,
                                 moe::TensorInfo{.dtype = moe::Dtype::F32, .shape = moe::parameter_shape(leaf)});
        },
        prototype);
  moe::SafetensorsWriter writer(path, std::move(header));
  for (Index e = 0; e < kExperts; ++e) {
    const auto expert = moe::Glu::random(kDim, kHidden, static_cast<std::uint64_t>(e));
    moe::visit_all(
        [&](const std::string& name, const auto& leaf) {
          std::vector<float> values(static_cast<std::size_t>(moe::parameter_size(leaf)));
          moe::read_parameter(leaf, std::span<float>(values));
          writer.write(std::to_string(e) + "." + name, std::span<const float>(values));
        },
        expert);
  }
  writer.commit();
}

struct Load {
  std::vector<double> arrival;  ///< seconds
  moe::Matrix<float> tokens;
  std::vector<moe::WaitingRequest> experts;  ///< the first one of each token
};

Load poisson_load(double rate, double seconds, const moe::LinearRouter& router) {
  const moe::RandomField random(moe::Purpose::User, 1), topics(moe::Purpose::User, 2);
  Load load;
  for (double t = 0; t < seconds;)
    load.arrival.push_back(t -= std::log(1 - random.uniform(std::ssize(load.arrival))) / rate);
  load.tokens.resize(std::ssize(load.arrival), kDim);
  for (Index i = 0, topic = 0; i < load.tokens.rows(); ++i) {
    if (random.uniform(i, 1) < 0.05) topic = static_cast<Index>(random.below(8, i, 2));
    for (Index c = 0; c < kDim; ++c)
      load.tokens(i, c) = static_cast<float>(topics.normal(topic, c) + 0.5 * random.normal(i, c + 3));
  }
  moe::Matrix<float> logits(load.tokens.rows(), kExperts);
  router.logits(load.tokens, moe::Step{}, logits);
  for (Index i = 0; i < load.tokens.rows(); ++i) {
    Index best = 0;
    logits.row(i).maxCoeff(&best);
    load.experts.push_back({.expert = best});
  }
  return load;
}

enum class Batches { AsTheyCome, ByExpert };

/// Latencies in milliseconds, ascending.
template <class Layer>
std::vector<double> serve(const Layer& layer, const Load& load, Batches batches) {
  std::deque<Index> waiting;
  std::vector<double> latencies;
  moe::Workspace ws;
  const auto start = Clock::now();
  const auto now = [&] { return Seconds(Clock::now() - start).count(); };
  for (std::size_t next = 0; next < load.arrival.size() || !waiting.empty();) {
    if (waiting.empty())
      std::this_thread::sleep_until(start + std::chrono::nanoseconds(std::llround(1e9 * load.arrival[next])));
    for (; next < load.arrival.size() && load.arrival[next] <= now(); ++next)
      waiting.push_back(static_cast<Index>(next));
    std::vector<Index> places;  // in the queue
    if (batches == Batches::ByExpert && !waiting.empty()) {
      std::vector<moe::WaitingRequest> requests;
      for (const Index i : waiting) requests.push_back(load.experts[static_cast<std::size_t>(i)]);
      places = moe::expert_aware_batches(requests, kBatch).front();
      std::ranges::sort(places);
    } else {
      for (Index i = 0; i < std::min<Index>(kBatch, std::ssize(waiting)); ++i) places.push_back(i);
    }
    moe::Matrix<float> tokens(std::ssize(places), kDim), out(std::ssize(places), kDim);
    for (Index r = 0; r < tokens.rows(); ++r)
      tokens.row(r) = load.tokens.row(waiting[static_cast<std::size_t>(places[static_cast<std::size_t>(r)])]);
    if (!places.empty()) layer.forward(tokens, out, ws);
    for (auto place = places.rbegin(); place != places.rend(); ++place) {
      const auto at = waiting.begin() + *place;
      latencies.push_back(1e3 * (now() - load.arrival[static_cast<std::size_t>(*at)]));
      waiting.erase(at);
    }
  }
  std::ranges::sort(latencies);
  return latencies;
}

double percentile(const std::vector<double>& sorted, double share) {
  return sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
}

/// A row of the table, and the distribution for the picture.
void report(const char* name, const char* block, const std::vector<double>& latencies, const moe::CacheStatistics& done,
            std::ofstream& script) {
  std::printf("%-18s %8.2f %8.2f %8.2f %8.2f %10.3f %12.1f\n", name, percentile(latencies, 0.5),
              percentile(latencies, 0.9), percentile(latencies, 0.99), latencies.back(), done.hit_rate(),
              peak_memory());
  script << '$' << block << " << END\n";
  for (int i = 0; i <= 100; ++i) script << percentile(latencies, i / 100.0) << ' ' << i / 100.0 << '\n';
  script << "END\n";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A layer larger than its budget of memory, under a Poisson load of requests.");
  double rate = 200, seconds = 0.5;
  bool limit = false;
  app.add_option("--rate", rate, "requests per second")->check(CLI::PositiveNumber);
  app.add_option("--seconds", seconds, "of load, for each row of the table")->check(CLI::PositiveNumber);
  app.add_flag("--limit", limit, "let the system refuse more memory than the budget and 8 MB");
  CLI11_PARSE(app, argc, argv);
  try {
    const std::filesystem::path path = "serve_layer.safetensors";
    write_experts(path);
    const auto router = moe::LinearRouter::random(kExperts, kDim, 1);
    const Load load = poisson_load(rate, seconds, router);
    const auto file = [&] { return moe::ExpertFile<moe::Glu>(path, moe::Glu(kDim, kHidden)); };
    const std::size_t bytes = file().bytes()[0], budget = bytes * kExperts / 4;
    std::printf("experts %.1f MB, budget %.1f MB, %.1f MB before the first request; %zu requests, %g a second\n\n",
                1e-6 * static_cast<double>(bytes * kExperts), 1e-6 * static_cast<double>(budget), peak_memory(),
                load.arrival.size(), rate);
    double allowed = 0;
    if (limit) {
      moe::parallel_for(64, [](Index, Index) {});  // the threads are there, with their stacks
      const double more = 1e-6 * static_cast<double>(budget) + kWorkspace;
      allowed = status_of_process("VmRSS").value_or(0) + more;
      const std::string why_not = limit_memory(more);
      if (!why_not.empty()) {
        std::printf("skipped, there is no such limit here: %s; without --limit there is a table\n", why_not.c_str());
        std::filesystem::remove(path);
        return 0;
      }
      std::printf("limit: %.1f MB more than now, of which %.1f to work in\n\n", more, kWorkspace);
    }
    std::printf("milliseconds             50%%      90%%      99%%     most   hit rate  peak MB (so far)\n");
    std::ofstream script("serve_layer.svg.gp");
    const auto run = [&]<class P>(const char* name, const char* block, const P& policy, Batches batches) {
      const auto experts = moe::CachedExperts<moe::Glu, P>::from_file(file(), budget, policy);
      const moe::MoeLayer layer(router, moe::TopKGate{.k = 2}, experts);
      const auto latencies = serve(layer, load, batches);
      report(name, block, latencies, experts.cache().statistics(), script);
    };
    run("LRU", "LRU", moe::Lru(), Batches::AsTheyCome);
    run("LFU", "LFU", moe::Lfu(), Batches::AsTheyCome);
    run("LRU, by expert", "by_expert", moe::Lru(), Batches::ByExpert);
    const double peak = peak_memory();
    bool has_failed = false;
    try {
      std::vector<moe::Glu> all;
      for (Index e = 0; e < kExperts; ++e) all.push_back(file().load(e));
      const moe::MoeLayer in_memory(router, moe::TopKGate{.k = 2}, moe::ExpertPool<moe::Glu>(std::move(all)));
      report("all in memory", "memory", serve(in_memory, load, Batches::AsTheyCome), {.requests = 1, .hits = 1},
             script);
    } catch (const std::bad_alloc&) {
      if (!limit) throw;
      has_failed = true;
      script << "$memory << END\nEND\n";
      std::printf("all in memory      std::bad_alloc: %.1f MB of experts are more than the limit\n",
                  1e-6 * static_cast<double>(bytes * kExperts));
    }
    if (limit)
      std::printf("\npeak of the others %.1f MB, allowed %.1f (start, budget and work): %s\n", peak, allowed,
                  peak <= allowed && has_failed ? "holds" : "does NOT hold");
    script << "set terminal svg size 640,400 background '#ffffff'\nset output 'serve_layer.svg'\nset logscale x\n"
              "set xlabel 'latency, ms'\nset ylabel 'share of requests'\nset key bottom right\nplot $LRU w l t 'LRU'";
    script << ", $LFU w l t 'LFU', $by_expert w l t 'LRU, by expert', $memory w l t 'all in memory'\n";
    std::filesystem::remove(path);
    if (!script.flush()) moe::fail_environment("serve_layer: cannot write serve_layer.svg.gp here");
    std::printf("\npicture: gnuplot serve_layer.svg.gp\n");
    if (limit && (peak > allowed || !has_failed)) return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
