// SPDX-License-Identifier: MIT
// Interposes every way to the heap, and anonymous mappings, for one source file per program: Eigen and aligned buffers
// do not go through operator new, large zeroed ones not even through malloc. Counts allocations and bytes. Needs glibc.
#pragma once

#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>

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
  if (memory != MAP_FAILED && (flags & MAP_ANONYMOUS) != 0) test::count(static_cast<long>(length));
  return memory;
}
int munmap(void* address, std::size_t length) noexcept {
  const auto result = static_cast<int>(syscall(SYS_munmap, address, length));
  if (result == 0) test::bytes_held -= static_cast<long>(length);
  return result;
}
}
