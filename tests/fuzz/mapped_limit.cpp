// SPDX-License-Identifier: MIT
// Large buffers of the library are mapped, which libFuzzer's -malloc_limit_mb does not see: the linker gives every call
// of mmap and munmap in a fuzz target to these (-Wl,--wrap), which stop the program beyond what an input justifies.
#include <sys/mman.h>
#include <sys/types.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr std::size_t kMostMapped = std::size_t{64} << 20;  // an input of 64 KiB, a thousand times
std::size_t mapped = 0;                                     // anonymous memory, in bytes; targets run on one thread
std::array<void*, 64> files{};  // mappings that are of files, at most eight shards at a time

}  // namespace

extern "C" {

void* __real_mmap(void* address, std::size_t size, int protection, int flags, int descriptor, off_t offset);
int __real_munmap(void* address, std::size_t size);

void* __wrap_mmap(void* address, std::size_t size, int protection, int flags, int descriptor, off_t offset) {
  const bool is_file = (flags & MAP_ANONYMOUS) == 0;
  if (!is_file && mapped + size > kMostMapped) {
    std::fprintf(stderr, "broken promise: %zu bytes are mapped, expected at most %zu\n", mapped + size, kMostMapped);
    std::abort();
  }
  void* const result = __real_mmap(address, size, protection, flags, descriptor, offset);
  if (result == MAP_FAILED) return result;
  if (is_file)
    *std::find(files.begin(), files.end() - 1, nullptr) = result;
  else
    mapped += size;
  return result;
}

int __wrap_munmap(void* address, std::size_t size) {
  const auto file = std::find(files.begin(), files.end(), address);
  if (file != files.end())
    *file = nullptr;
  else
    mapped -= std::min(size, mapped);
  return __real_munmap(address, size);
}

}  // extern "C"
