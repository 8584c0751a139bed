// SPDX-License-Identifier: MIT
// What a load cannot be faster than: storage, memcpy, writing the panels, and getting memory for them. All threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "clock.hpp"
#include "moe/core/parallel.hpp"
#include "moe/io/file/mapped_file.hpp"

namespace bench {

using moe::Index;

/// Writes the file out and takes it out of the page cache, as far as the system lets a program do that.
inline void drop_from_cache(const std::filesystem::path& path) {
#if defined(__linux__)
  const int file = open(path.c_str(), O_RDONLY);
  (void)fsync(file);
  (void)posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  (void)close(file);
#else
  (void)path;
#endif
}

/// Share of the file that is in the page cache; 1 where the system does not say.
inline double cached_share(const std::filesystem::path& path) {
#if defined(__linux__)
  const moe::MappedFile file("cached_share", path);
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> in_core((file.bytes().size() + page - 1) / page);
  if (!file.is_mapped() ||
      mincore(const_cast<std::byte*>(file.bytes().data()), file.bytes().size(), in_core.data()) != 0)
    return 1;
  const auto cached = std::count_if(in_core.begin(), in_core.end(), [](unsigned char c) { return (c & 1) != 0; });
  return static_cast<double>(cached) / static_cast<double>(in_core.size());
#else
  (void)path;
  return 1;
#endif
}

inline constexpr Index kChunk = Index{256} << 10;

/// Seconds of one limit on memory that was new to the process, and again on the same.
struct TwoSeconds {
  double fresh = 0, touched = 0;
};

/// memset of `size` bytes: for fresh memory one byte per page of 4 KiB, as the system fills it.
inline TwoSeconds write_seconds(Index size) {
  moe::AlignedBuffer<std::byte> buffer(size);
  const auto each_chunk = [&](const auto& work) {
    return seconds_of([&] {
      moe::parallel_ranges(size, Index{2} << 20, [&](Index begin, Index end, Index) { work(begin, end); });
      keep(buffer);
    });
  };
  TwoSeconds seconds;
  seconds.fresh = each_chunk([&](Index begin, Index end) {
    for (Index i = begin; i < end; i += 4096) buffer.data()[i] = std::byte{1};
  });
  seconds.touched = each_chunk(
      [&](Index begin, Index end) { std::memset(buffer.data() + begin, 2, static_cast<std::size_t>(end - begin)); });
  return seconds;
}

/// memcpy of the file, mapped, in the cache and touched before.
inline TwoSeconds copy_seconds(const std::filesystem::path& path) {
  const moe::MappedFile file("copy", path);
  const auto bytes = file.bytes();
  moe::parallel_ranges(std::ssize(bytes), kChunk, [&](Index begin, Index end, Index) {
    for (Index i = begin; i < end; i += 4096) keep(bytes[static_cast<std::size_t>(i)]);
  });
  moe::AlignedBuffer<std::byte> copy(std::ssize(bytes));
  const auto run = [&] {
    moe::parallel_ranges(std::ssize(bytes), kChunk, [&](Index begin, Index end, Index) {
      std::memcpy(copy.data() + begin, bytes.data() + begin, static_cast<std::size_t>(end - begin));
    });
    keep(copy);
  };
  TwoSeconds seconds;
  seconds.fresh = seconds_of(run);
  seconds.touched = seconds_of(run);
  return seconds;
}

/// Reading the file into a buffer per thread, when it is not cached.
inline double storage_seconds(const std::filesystem::path& path) {
  drop_from_cache(path);
  std::vector<std::vector<char>> buffers(static_cast<std::size_t>(moe::num_workers()), std::vector<char>(kChunk));
#if defined(__linux__)
  const int file = open(path.c_str(), O_RDONLY);
  const double seconds = seconds_of([&] {
    moe::parallel_ranges(static_cast<Index>(std::filesystem::file_size(path)), kChunk,
                         [&](Index begin, Index end, Index worker) {
                           auto& buffer = buffers[static_cast<std::size_t>(worker)];
                           if (pread(file, buffer.data(), static_cast<std::size_t>(end - begin), begin) != end - begin)
                             moe::fail_environment("moe_bench_load: cannot read ", path.string());
                           keep(buffer);
                         });
  });
  (void)close(file);
  return seconds;
#else
  std::ifstream stream(path, std::ios::binary);
  return seconds_of([&] {
    while (stream.read(buffers[0].data(), kChunk)) keep(buffers);
  });
#endif
}

}  // namespace bench
