// SPDX-License-Identifier: MIT
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "moe/core/aligned.hpp"
#include "moe/core/error.hpp"
#include "moe/io/file/message.hpp"

namespace moe::inline MOE_ABI {

/// How a file comes into memory: mapped where the system can (pages are read when touched and can be dropped again), or
/// read as a whole.
enum class FileAccess { Map, Read };

/// The bytes of a file, read-only. Immutable, share freely; moves, never copies.
/// Caution: a file that another program shortens while it is mapped ends this one with SIGBUS where a page that is gone
/// is touched; no library can prevent that. is_intact() tells whether it has happened so far. FileAccess::Read avoids
/// it, at the price of memory; whatever opens files of tensors offers it.
class MappedFile {
 public:
  MappedFile() = default;

  /// Opens a regular file; one that cannot be mapped is read. `label` opens the messages.
  /// Throws std::runtime_error with the system's reason if it cannot be opened or read, or is a directory, pipe or
  /// device.
  MappedFile(std::string label, const std::filesystem::path& path, FileAccess access = FileAccess::Map)
      : MappedFile() {  // so that the destructor runs if this throws
    label_ = std::move(label);
    path_ = path;
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (error || !std::filesystem::exists(status)) {
      if (!error) error = std::make_error_code(std::errc::no_such_file_or_directory);
      fail_environment(label_, ": cannot open: ", error.message());
    }
    if (!std::filesystem::is_regular_file(status))
      fail_environment(label_, ": is ", std::filesystem::is_directory(status) ? "a directory" : "no regular file",
                       ", expected a file");
    if (!(access == FileAccess::Map && map())) read();
  }

  MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(label_, other.label_);
    std::swap(path_, other.path_);
    std::swap(mapping_, other.mapping_);
    std::swap(size_, other.size_);
    std::swap(descriptor_, other.descriptor_);
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
#if defined(__unix__) || defined(__APPLE__)
    if (mapping_) (void)munmap(mapping_, size_);
    if (descriptor_ >= 0) (void)close(descriptor_);
#endif
  }

  std::span<const std::byte> bytes() const {
    return {mapping_ ? static_cast<const std::byte*>(mapping_) : buffer_.data(), size_};
  }
  bool is_mapped() const { return mapping_ != nullptr; }
  const std::string& label() const { return label_; }
  const std::filesystem::path& path() const { return path_; }

  /// Pages of `part` leave the memory of the process, and come back when they are touched; does nothing for a file that
  /// has been read.
  void forget(std::span<const std::byte> part) const {
#if defined(__unix__) || defined(__APPLE__)
    if (!mapping_ || part.empty()) return;
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<std::uintptr_t>(part.data()), last = first + part.size();
    const std::uintptr_t begin = first / page * page;
    (void)madvise(reinterpret_cast<void*>(begin), last - begin, MADV_DONTNEED);
#else
    (void)part;
#endif
  }

  /// False once a mapped file is shorter than it was when it was opened. One system call.
  bool is_intact() const {
#if defined(__unix__) || defined(__APPLE__)
    struct stat now;
    if (mapping_) return fstat(descriptor_, &now) == 0 && static_cast<std::uint64_t>(now.st_size) >= size_;
#endif
    return true;
  }

 private:
  /// False where the file system cannot map, or there is nothing to map.
  bool map() {
#if defined(__unix__) || defined(__APPLE__)
    descriptor_ =
        open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // does not wait if it became a pipe meanwhile
    if (descriptor_ < 0) fail_system("open");
    struct stat status;
    if (fstat(descriptor_, &status) != 0) fail_system("open");
    if (!S_ISREG(status.st_mode)) fail_environment(label_, ": is no regular file, expected a file");
    if (status.st_size <= 0 || !std::in_range<std::size_t>(status.st_size)) return false;
    const auto size = static_cast<std::size_t>(status.st_size);
    void* const mapping = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (mapping == MAP_FAILED) return false;
    mapping_ = mapping;
    size_ = size;
    return true;
#else
    return false;
#endif
  }

  void read() {
    errno = 0;
    std::ifstream stream(path_, std::ios::binary | std::ios::ate);
    const std::streamoff size = stream ? static_cast<std::streamoff>(stream.tellg()) : -1;
    if (size < 0) fail_system("open");
    buffer_ = AlignedBuffer<std::byte>::uninitialised(static_cast<Index>(size));
    stream.seekg(0);
    stream.read(reinterpret_cast<char*>(buffer_.data()), size);
    if (!stream) fail_system("read");
    size_ = static_cast<std::size_t>(size);
  }

  [[noreturn]] void fail_system(const char* verb) const {
    fail_environment(label_, ": cannot ", verb, ": ", detail::system_reason());
  }

  std::string label_;
  std::filesystem::path path_;
  void* mapping_ = nullptr;
  std::size_t size_ = 0;
  int descriptor_ = -1;
  AlignedBuffer<std::byte> buffer_;
};

}  // namespace moe::inline MOE_ABI
