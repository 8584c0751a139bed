// SPDX-License-Identifier: MIT
// Interposes every way to the heap, and anonymous mappings, for one source file per program: Eigen and aligned buffers
// do not go through operator new, large zeroed ones not even through malloc. Counts allocations and bytes, of addresses
// that are reserved those that may be written. Needs glibc.
#pragma once

#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <functional>

namespace test {

inline std::atomic<long> allocations{0};
inline std::atomic<long> bytes_held{0}, most_bytes_held{0};

inline void count(long bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const long held = bytes_held += bytes;
  long most = most_bytes_held.load();
  while (held > most && !most_bytes_held.compare_exchange_weak(most, held)) {
  }
}

/// Addresses without memory. The latest few, as whoever reserves them returns what he does not need at once.
struct Reserved {
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
};
inline std::array<Reserved, 16> reserved;
inline std::atomic<std::size_t> num_reserved{0};
inline void reserve(std::byte* begin, std::size_t bytes) {
  reserved[num_reserved++ % reserved.size()] = {begin, bytes};
}
inline bool is_reserved(const std::byte* address) {
  for (const Reserved& r : reserved)
    if (std::less_equal<>{}(r.begin, address) && std::less<>{}(address, r.begin + r.bytes)) return true;
  return false;
}

inline void* counted(void* memory) {
  count(static_cast<long>(malloc_usable_size(memory)));
  return memory;
}

}  // namespace test

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);

void* malloc(std::size_t size) noexcept { return test::counted(__libc_malloc(size)); }
void* calloc(std::size_t count, std::size_t size) noexcept { return test::counted(__libc_calloc(count, size)); }
void* realloc(void* memory, std::size_t size) noexcept {
  test::bytes_held -= static_cast<long>(malloc_usable_size(memory));
  return test::counted(__libc_realloc(memory, size));
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return test::counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return test::counted(__libc_memalign(alignment, size));
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  *memory = test::counted(__libc_memalign(alignment, size));
  return *memory || size == 0 ? 0 : ENOMEM;
}
void free(void* memory) noexcept {
  test::bytes_held -= static_cast<long>(malloc_usable_size(memory));
  __libc_free(memory);
}

// glibc's own calls, those of malloc among them, do not come this way.
void* mmap(void* address, std::size_t length, int protection, int flags, int file, off_t offset) noexcept {
  auto* const memory = reinterpret_cast<void*>(syscall(SYS_mmap, address, length, protection, flags, file, offset));
  if (memory == MAP_FAILED || (flags & MAP_ANONYMOUS) == 0) return memory;
  if (protection == PROT_NONE)
    test::reserve(static_cast<std::byte*>(memory), length);
  else
    test::count(static_cast<long>(length));
  return memory;
}
int mprotect(void* address, std::size_t length, int protection) noexcept {
  const auto result = static_cast<int>(syscall(SYS_mprotect, address, length, protection));
  if (result == 0 && protection == PROT_NONE) test::bytes_held -= static_cast<long>(length);
  if (result == 0 && protection != PROT_NONE) test::count(static_cast<long>(length));
  return result;
}
// What is reserved is given back before it has been written to.
int munmap(void* address, std::size_t length) noexcept {
  const auto result = static_cast<int>(syscall(SYS_munmap, address, length));
  if (result == 0 && !test::is_reserved(static_cast<std::byte*>(address)))
    test::bytes_held -= static_cast<long>(length);
  return result;
}
}
