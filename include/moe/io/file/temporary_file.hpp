// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "moe/core/error.hpp"
#include "moe/io/file/message.hpp"

namespace moe::inline MOE_ABI::detail {

/// Names of temporary files: that of the target, this, and eight hexadecimal digits.
inline constexpr std::string_view kTemporaryMark = ".moe-";

/// Whether `name` is that of a temporary file for `target`, both without directory.
inline bool is_temporary_name(std::string_view name, std::string_view target) {
  constexpr std::size_t kDigits = 8;
  if (!name.starts_with(target)) return false;
  name.remove_prefix(target.size());
  return name.starts_with(kTemporaryMark) && name.size() == kTemporaryMark.size() + kDigits &&
         name.find_first_not_of("0123456789abcdef", kTemporaryMark.size()) == name.npos;
}

inline std::filesystem::path temporary_name(const std::filesystem::path& target) {
  char digits[9];
  std::snprintf(digits, sizeof digits, "%08x", std::random_device{}() & 0xFFFFFFFFu);
  std::filesystem::path name = target;
  return name += std::string(kTemporaryMark) + digits;
}

#if defined(__unix__) || defined(__APPLE__)

/// Locks what a save has just made at `path` and opened. False where another save took it for a stale one before, and
/// has removed it or is about to. Where the file system has no locks there is nothing to wait for.
inline bool lock_made(int descriptor, const std::filesystem::path& path) {
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return false;
  struct stat ours, named;
  return fstat(descriptor, &ours) == 0 && stat(path.c_str(), &named) == 0 && ours.st_dev == named.st_dev &&
         ours.st_ino == named.st_ino;
}

/// An empty file beside `target`, to be filled under its own name and then moved to that of the target, whose owner and
/// permissions it takes; until then nobody else may read it. Where there is no target yet, it has the permissions of a
/// new file. It is locked (flock) as long as this lives, by which a later save tells a file that is being written from
/// one whose writer was killed: those are removed before. (Machines that share a directory without sharing locks must
/// not save one name at a time.) Access lists and other attributes are not kept.
/// Throws std::runtime_error with the label and the system's reason if it cannot be created. One per thread.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& label, const std::filesystem::path& target) : target_(target) {
    remove_stale();
    replaces_ = stat(target_.c_str(), &replaced_) == 0;  // of what a link points to: what readers of the name could see
    int attempts = 100;  // another save can take a file away before it is locked; not that often
    do {
      if (descriptor_ >= 0) (void)unlink(path_.c_str());
      release();
      if (attempts-- == 0) fail_environment(label, ": cannot lock a temporary file beside it");
      path_ = temporary_name(target_);
      descriptor_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, replaces_ ? 0600 : 0666);
      if (descriptor_ < 0 && errno != EEXIST) fail_environment(label, ": cannot open: ", system_reason());
    } while (descriptor_ < 0 || !lock_made(descriptor_, path_));
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { release(); }

  const std::filesystem::path& path() const { return path_; }

  /// Puts the file in the place of the target. Returns the system's error.
  std::error_code move() {
    if (replaces_) take_owner();
    std::error_code error;
    std::filesystem::rename(path_, target_, error);
    return error;
  }

 private:
  void release() {
    if (descriptor_ >= 0) (void)close(descriptor_);
    descriptor_ = -1;
  }

  /// A group that cannot be kept must not give its rights to ours. Where the file system has no permissions, these
  /// calls fail and there is nothing to keep.
  void take_owner() const {
    mode_t mode = replaced_.st_mode & 07777;
    if (fchown(descriptor_, replaced_.st_uid, replaced_.st_gid) != 0) {
      mode &= 0777;
      if (fchown(descriptor_, static_cast<uid_t>(-1), replaced_.st_gid) != 0) mode &= 0707 | (mode & 07) << 3;
    }
    (void)fchmod(descriptor_, mode);
  }

  void remove_stale() const {
    const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
    const std::string name = target_.filename().string();
    std::error_code error;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
      if (is_temporary_name(entry->path().filename().string(), name)) remove_if_stale(entry->path());
  }

  static void remove_if_stale(const std::filesystem::path& path) {
    constexpr int kFlags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    int descriptor = open(path.c_str(), O_RDWR | kFlags);  // network file systems lock only what can be written
    if (descriptor < 0) descriptor = open(path.c_str(), O_RDONLY | kFlags);
    if (descriptor < 0) return;
    struct stat status;
    if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && flock(descriptor, LOCK_EX | LOCK_NB) == 0)
      (void)unlink(path.c_str());
    (void)close(descriptor);
  }

  std::filesystem::path target_, path_;
  int descriptor_ = -1;
  bool replaces_ = false;
  struct stat replaced_ {};
};

#else

/// The same without locks and owners: what a killed program leaves is not removed.
class TemporaryFile {
 public:
  TemporaryFile(const std::string&, const std::filesystem::path& target)
      : target_(target), path_(temporary_name(target)) {}

  const std::filesystem::path& path() const { return path_; }

  std::error_code move() {
    std::error_code error;
    std::filesystem::rename(path_, target_, error);
    return error;
  }

 private:
  std::filesystem::path target_, path_;
};

#endif

}  // namespace moe::inline MOE_ABI::detail
