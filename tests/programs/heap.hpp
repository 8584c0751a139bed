// SPDX-License-Identifier: MIT
// Interposes every way to the heap, for one source file per program: Eigen and aligned buffers do not go through operator
// new. Counts allocations and bytes. Needs glibc.
#pragma once

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>

namespace test {

inline std::atomic<long> allocations{0};
inline std::atomic<long> bytes_held{0}, most_bytes_held{0};

inline void* counted(void* memory) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const long held = bytes_held += static_cast<long>(malloc_usable_size(memory));
  long most = most_bytes_held.load();
  while (held > most && !most_bytes_held.compare_exchange_weak(most, held)) {
  }
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
}
