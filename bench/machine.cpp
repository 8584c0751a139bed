// SPDX-License-Identifier: MIT
#include "machine.hpp"

#include <unistd.h>

#include <cstdlib>
#include <fstream>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace bench {

namespace {

/// Value of the first line `key : value` or `key: value kB` of a file in /proc.
std::string proc_value(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (line.compare(0, key.size(), key) != 0 || colon == std::string::npos) continue;
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

}  // namespace

Index last_level_cache() {
  // The kernel knows the size of one cache; sysconf adds up those of all sockets on some processors.
  for (const char* level : {"index3", "index2"}) {
    std::ifstream file(std::string("/sys/devices/system/cpu/cpu0/cache/") + level + "/size");
    if (Index kibibytes = 0; file >> kibibytes) return kibibytes << 10;
  }
#ifdef _SC_LEVEL3_CACHE_SIZE
  if (const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return Index{32} << 20;
}

Index available_memory() {
  const std::string kibibytes = proc_value("/proc/meminfo", "MemAvailable");
  if (!kibibytes.empty()) return static_cast<Index>(std::stoll(kibibytes)) << 10;
  return static_cast<Index>(sysconf(_SC_PHYS_PAGES)) * static_cast<Index>(sysconf(_SC_PAGESIZE));
}

std::string processor_name() {
  const std::string name = proc_value("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown processor" : name;
}

std::string instruction_set() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
  return "AVX2";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "base";
#endif
}

void set_threads([[maybe_unused]] int threads) {
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

int all_threads() {
#ifdef _OPENMP
  return omp_get_num_procs();
#else
  return 1;
#endif
}

}  // namespace bench
