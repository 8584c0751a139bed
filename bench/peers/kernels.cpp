// SPDX-License-Identifier: MIT
#include "kernels.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "../clock.hpp"

#ifdef MOE_BENCH_OPENBLAS
#include <cblas.h>
extern "C" char* openblas_get_corename(void);
extern "C" char* openblas_get_config(void);
extern "C" void openblas_set_num_threads(int);
#endif
#ifdef MOE_BENCH_ONEDNN
#include <dnnl.hpp>
#endif

namespace bench {

namespace {

#ifdef MOE_BENCH_OPENBLAS

constexpr const char* kTrial = "--trial-of-openblas";
constexpr const char* kTried =
    "MOE_BENCH_OPENBLAS_TRIED";  // tells the program that starts once more, and what it prints
constexpr const char* kCoreType = "OPENBLAS_CORETYPE";

/// Names of OpenBLAS for what the program is compiled for; the empty one leaves the choice as it is.
/// Where the peers are kept below the processor, a name in the environment is the user's business.
std::vector<std::string> candidates() {
#if defined(__AVX512F__)
  return {"", "Haswell", "SkylakeX", "Cooperlake", "SapphireRapids"};
#elif defined(__x86_64__)
  if (const char* const chosen = std::getenv(kCoreType)) return {chosen};
#ifdef __AVX2__
  return {"Haswell", "Zen"};
#else
  return {"Nehalem"};
#endif
#else
  return {""};
#endif
}

/// Entries that are as good as random, and the same everywhere.
std::vector<float> entries(int count, int seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i)
    values[static_cast<std::size_t>(i)] = static_cast<float>(std::sin(0.7 * i * (seed + 1) + seed));
  return values;
}

/// Whether C = A B is right for all that the peers call, in sizes that fill no tile.
bool products_are_right(int m, int n, int k) {
  const auto a = entries(m * k, 1), b = entries(k * n, 2);
  const auto at = [](const std::vector<float>& v, int i) {
    return static_cast<double>(v[static_cast<std::size_t>(i)]);
  };
  std::vector<float> at_b(a), b_t(b), c(static_cast<std::size_t>(m * n)), ct(c), cb(c), row(c);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < k; ++j) at_b[static_cast<std::size_t>(j * m + i)] = a[static_cast<std::size_t>(i * k + j)];
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < n; ++j) b_t[static_cast<std::size_t>(j * k + i)] = b[static_cast<std::size_t>(i * n + j)];
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, a.data(), k, b.data(), n, 0, c.data(), n);
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1, at_b.data(), m, b.data(), n, 1, ct.data(), n);
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a.data(), k, b_t.data(), k, 0, cb.data(), n);
  for (int i = 0; i < m; ++i)
    cblas_sgemv(CblasRowMajor, CblasTrans, k, n, 1, b.data(), n, a.data() + i * k, 1, 0, row.data() + i * n, 1);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int l = 0; l < k; ++l) {
        sum += at(a, i * k + l) * at(b, l * n + j);
        size += std::abs(at(a, i * k + l) * at(b, l * n + j));
      }
      for (const auto* found : {&c, &ct, &cb, &row})
        if (!(std::abs(at(*found, i * n + j) - sum) <= 1e-5 * size)) return false;
    }
  return true;
}

/// What a process of its own does: prints the kernels, whether they are right, and GFLOP/s of a product as layers have.
int run_trial() {
  alarm(30);
  openblas_set_num_threads(1);
  bool right = true;
  for (const int m : {1, 3, 17, 70}) right = right && products_are_right(m, 131, 67) && products_are_right(m, 64, 300);
  constexpr int kRows = 64, kColumns = 1024, kInner = 512;
  const auto a = entries(kRows * kInner, 3), b = entries(kInner * kColumns, 4);
  std::vector<float> c(static_cast<std::size_t>(kRows * kColumns));
  std::vector<double> seconds;
  for (int repetition = 0; repetition < 25; ++repetition)
    seconds.push_back(seconds_of([&] {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, kRows, kColumns, kInner, 1, a.data(), kInner, b.data(),
                  kColumns, 0, c.data(), kColumns);
    }));
  std::printf("%s %d %.0f\n", openblas_get_corename(), right ? 1 : 0,
              2e-9 * kRows * kColumns * kInner / median(seconds));
  std::fflush(stdout);
  return 0;
}

struct Trial {
  std::string core;
  bool right = false;
  double gflops = 0;
};

/// Runs run_trial() in a process with these kernels; a process that dies is not right.
Trial try_in_a_process(const std::string& core) {
  int ends[2];
  if (pipe(ends) != 0) return {core};
  const pid_t child = fork();
  if (child == 0) {
    (void)dup2(ends[1], STDOUT_FILENO);
    (void)close(ends[0]);
    if (!core.empty()) (void)setenv(kCoreType, core.c_str(), 1);
    const char* const arguments[] = {"trial", kTrial, nullptr};
    execv("/proc/self/exe", const_cast<char* const*>(arguments));
    _exit(127);
  }
  (void)close(ends[1]);
  std::string line;
  char part[256];
  for (ssize_t count; (count = read(ends[0], part, sizeof part)) > 0;)
    line.append(part, static_cast<std::size_t>(count));
  (void)close(ends[0]);
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return {core};
  Trial trial;
  std::istringstream(line) >> trial.core >> trial.right >> trial.gflops;
  return trial;
}

/// Starts the program once more, with the best kernels in its environment. Returns where the choice was right.
void choose_openblas(char** argv) {
  if (argv[1] && std::strcmp(argv[1], kTrial) == 0) std::exit(run_trial());
  if (std::getenv(kTried)) return;
  std::vector<Trial> trials;
  Trial best;
  std::string best_name, tried;
  for (const std::string& name : candidates()) {
    const Trial trial = try_in_a_process(name);
    const auto same = [&](const Trial& other) { return other.core == trial.core; };
    if (std::ranges::any_of(trials, same)) continue;
    trials.push_back(trial);
    if (trial.right && trial.gflops > 1.05 * best.gflops) best = trial, best_name = name;
  }
  std::ostringstream note;
  for (const Trial& trial : trials) {
    note << (tried.empty() ? "" : ", ") << trial.core << ' ';
    if (trial.right)
      note << trial.gflops << " GFLOP/s";
    else
      note << (trial.gflops > 0 ? "wrong" : "does not run");
    tried = note.str();
  }
  if (setenv(kTried, tried.c_str(), 1) != 0 || best_name.empty()) return;
  const char* const chosen = std::getenv(kCoreType);
  if (chosen && best_name == chosen) return;
  if (setenv(kCoreType, best_name.c_str(), 1) == 0) execv("/proc/self/exe", argv);
}

#endif

#ifdef MOE_BENCH_ONEDNN

std::string onednn_kernels() {
  const auto has = [isa = dnnl::get_effective_cpu_isa()](dnnl::cpu_isa wanted) {
    return (static_cast<int>(isa) & static_cast<int>(wanted)) == static_cast<int>(wanted);
  };
  if (has(dnnl::cpu_isa::avx512_core_amx)) return "AVX-512 with BF16, AMX for BF16 and s8";
  if (has(dnnl::cpu_isa::avx512_core_bf16)) return "AVX-512 with BF16";
  if (has(dnnl::cpu_isa::avx512_core)) return "AVX-512";
  return has(dnnl::cpu_isa::avx2) ? "AVX2" : has(dnnl::cpu_isa::sse41) ? "SSE4.1" : "its reference";
}

#endif

}  // namespace

void choose_peer_kernels([[maybe_unused]] char** argv) {
#if defined(MOE_BENCH_ONEDNN) && defined(__x86_64__) && !defined(__AVX512F__)
#ifdef __AVX2__
  dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
#else
  dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
#endif
#endif
#ifdef MOE_BENCH_OPENBLAS
  choose_openblas(argv);
#endif
}

std::vector<std::string> peer_kernels() {
  std::vector<std::string> lines;
  std::ostringstream eigen;
  eigen << "Eigen " << EIGEN_WORLD_VERSION << '.' << EIGEN_MAJOR_VERSION << '.' << EIGEN_MINOR_VERSION << ": "
        << Eigen::SimdInstructionSetsInUse();
  lines.push_back(eigen.str());
#ifdef MOE_BENCH_OPENBLAS
  std::string name, version;
  std::istringstream(openblas_get_config()) >> name >> version;
  const char* const tried = std::getenv(kTried);
  lines.push_back(name + ' ' + version + ": " + openblas_get_corename() + (tried ? std::string(" of ") + tried : ""));
#endif
#ifdef MOE_BENCH_ONEDNN
  const dnnl_version_t* const version_of = dnnl_version();
  std::ostringstream onednn;
  onednn << "oneDNN " << version_of->major << '.' << version_of->minor << '.' << version_of->patch << ": "
         << onednn_kernels();
  lines.push_back(onednn.str());
#endif
  return lines;
}

}  // namespace bench
