// SPDX-License-Identifier: MIT
#pragma once

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "moe/io/file/temporary_file.hpp"

namespace moe::inline MOE_ABI::detail {

/// A directory that appears whole or not at all: it is filled beside its place under another name (see
/// TemporaryFile), and moved there by commit(). There must be nothing at its place, or an empty directory. What an
/// earlier program left of the same name because it was killed is removed, where it holds files alone.
/// Errors are std::runtime_error with the label and the system's reason. One per thread.
class OutputDirectory {
 public:
  OutputDirectory(std::string label, const std::filesystem::path& target)
      : label_(std::move(label)), target_(without_last_separator(target)) {
    require_free();
    remove_stale();
    const int attempts = 100;  // another program can take the directory away before it is locked; not that often
    for (int i = 0; i < attempts && !is_made_; ++i) make();
    if (!is_made_) fail_environment(label_, ": cannot lock a temporary directory beside it");
  }
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;
  ~OutputDirectory() {
    std::error_code ignored;
    if (is_made_) std::filesystem::remove_all(path_, ignored);
    unlock();
  }

  const std::string& label() const { return label_; }
  /// Where to write.
  const std::filesystem::path& path() const { return path_; }

  void commit() {
    require_free();
    std::error_code error;
    std::filesystem::rename(path_, target_, error);
    if (error) fail_environment(label_, ": cannot rename '", path_.string(), "': ", error.message());
    is_made_ = false;
  }

 private:
  static std::filesystem::path without_last_separator(const std::filesystem::path& path) {
    return path.has_filename() ? path : path.parent_path();
  }
  void require_free() const {
    std::error_code ignored;
    const auto status = std::filesystem::symlink_status(target_, ignored);
    if (!std::filesystem::exists(status)) return;
    if (!std::filesystem::is_directory(status) || !std::filesystem::is_empty(target_, ignored))
      fail_environment(label_, ": is there already, expected a new name or an empty directory");
  }
  std::filesystem::path folder() const { return target_.has_parent_path() ? target_.parent_path() : "."; }

#if defined(__unix__) || defined(__APPLE__)
  void make() {
    path_ = temporary_name(target_);
    if (mkdir(path_.c_str(), 0777) != 0) {
      if (errno != EEXIST) fail_environment(label_, ": cannot make a directory: ", system_reason());
      return;
    }
    descriptor_ = open_directory(path_);
    is_made_ = descriptor_ >= 0 && lock_made(descriptor_, path_);
    if (is_made_) return;
    unlock();
    (void)rmdir(path_.c_str());
  }
  void unlock() {
    if (descriptor_ >= 0) (void)close(descriptor_);
    descriptor_ = -1;
  }
  static int open_directory(const std::filesystem::path& path) {
    return open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  }
  void remove_stale() const {
    const std::string name = target_.filename().string();
    std::error_code error;
    for (std::filesystem::directory_iterator entry(folder(), error), end; !error && entry != end;
         entry.increment(error)) {
      if (!is_temporary_name(entry->path().filename().string(), name)) continue;
      const int descriptor = open_directory(entry->path());
      if (descriptor < 0) continue;
      if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {  // somebody is writing, or nobody can tell
        (void)close(descriptor);
        continue;
      }
      std::error_code ignored;
      for (std::filesystem::directory_iterator file(entry->path(), ignored); !ignored && file != end;
           file.increment(ignored))
        if (file->symlink_status(ignored).type() == std::filesystem::file_type::regular)
          (void)unlink(file->path().c_str());
      (void)rmdir(entry->path().c_str());  // fails where something else is left
      (void)close(descriptor);
    }
  }

  int descriptor_ = -1;
#else
  void make() {
    path_ = temporary_name(target_);
    std::error_code error;
    is_made_ = std::filesystem::create_directory(path_, error);
    if (error) fail_environment(label_, ": cannot make a directory: ", error.message());
  }
  void unlock() {}
  void remove_stale() const {}
#endif

  std::string label_;
  std::filesystem::path target_, path_;
  bool is_made_ = false;
};

}  // namespace moe::inline MOE_ABI::detail
