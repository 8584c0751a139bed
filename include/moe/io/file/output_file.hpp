// SPDX-License-Identifier: MIT
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "moe/core/error.hpp"
#include "moe/io/file/message.hpp"
#include "moe/io/file/temporary_file.hpp"

namespace moe::inline MOE_ABI::detail {

/// A file that appears whole or not at all: it is written beside its place under another name, and moved there by
/// commit(). What is no regular file (a device, a pipe) is written in place. A symbolic link is replaced, not followed.
/// Owner and permissions are those of the file that is replaced, as far as the system lets this program give them; what
/// an earlier program left of the same name because it was killed is removed (see TemporaryFile).
/// Other programs see the old file or the new one; after a power failure it may be neither, as nothing is forced to
/// storage. Errors are std::runtime_error with the label and the system's reason. One per thread.
class OutputFile {
 public:
  OutputFile(std::string label, const std::filesystem::path& path) : label_(std::move(label)) {
    std::error_code ignored;
    const auto status = std::filesystem::status(path, ignored);
    if (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status)) temporary_.emplace(label_, path);
    errno = 0;
    stream_.open(temporary_ ? temporary_->path() : path, std::ios::binary | std::ios::trunc);
    is_open_ = true;
    if (!stream_) fail_system("open");
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() { discard(); }

  const std::string& label() const { return label_; }

  /// Appends. `what` is named in messages.
  void write(std::span<const std::byte> bytes, std::string_view what = "data") {
    errno = 0;
    put(bytes, what);
  }
  void write(std::string_view text, std::string_view what = "data") {
    write(std::as_bytes(std::span(text.data(), text.size())), what);
  }
  /// Writes from `place` on, counted from the beginning.
  void write_at(std::uint64_t place, std::span<const std::byte> bytes, std::string_view what) {
    errno = 0;  // moving writes what is buffered
    stream_.seekp(static_cast<std::streamoff>(place));
    put(bytes, what);
  }

  /// Writes what is buffered and puts the file in its place.
  void commit() {
    errno = 0;
    stream_.close();
    if (!stream_) fail_system("write");
    const std::error_code error = temporary_ ? temporary_->move() : std::error_code();
    if (error) fail_environment(label_, ": cannot rename '", temporary_->path().string(), "': ", error.message());
    is_open_ = false;
  }

 private:
  void put(std::span<const std::byte> bytes, std::string_view what) {
    if (stream_) stream_.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!stream_) fail_system("write " + in_quotes(what));
  }
  [[noreturn]] void fail_system(const std::string& verb) {
    const std::string reason = system_reason();
    discard();
    fail_environment(label_, ": cannot ", verb, ": ", reason);
  }
  void discard() {
    if (!std::exchange(is_open_, false)) return;
    stream_.close();
    std::error_code ignored;
    if (temporary_) std::filesystem::remove(temporary_->path(), ignored);
  }

  std::string label_;
  std::optional<TemporaryFile> temporary_;  // none where a device or pipe is written in place
  bool is_open_ = false;
  std::ofstream stream_;
};

}  // namespace moe::inline MOE_ABI::detail
