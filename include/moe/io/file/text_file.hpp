// SPDX-License-Identifier: MIT
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>

#include "moe/io/file/mapped_file.hpp"

namespace moe::inline MOE_ABI::detail {

/// Where text may come from: a regular file, or a pipe, too, whose length shows when it ends.
enum class TextFrom { File, FileOrPipe };

/// All of a text that is parsed as a whole. It is read, not mapped: it may shrink meanwhile. Devices are refused, as
/// they may have no end, and pipes that are longer than `most_bytes`.
/// Throws std::runtime_error with the label for these, for what is longer, and as MappedFile does.
class TextFile {
 public:
  TextFile(const std::string& label, const std::filesystem::path& path, std::uintmax_t most_bytes,
           TextFrom from = TextFrom::File) {
    std::error_code error;
    if (from == TextFrom::FileOrPipe && std::filesystem::is_fifo(path, error)) {
      read_pipe(label, path, most_bytes);
      return;
    }
    const std::uintmax_t size = std::filesystem::file_size(path, error);  // what has none is refused below
    if (!error && size > most_bytes) fail_environment(label, ": has ", size, " bytes, expected at most ", most_bytes);
    file_ = MappedFile(label, path, FileAccess::Read);
  }

  std::string_view text() const {
    if (file_.bytes().empty()) return piped_;
    return {reinterpret_cast<const char*>(file_.bytes().data()), file_.bytes().size()};
  }

 private:
  void read_pipe(const std::string& label, const std::filesystem::path& path, std::uintmax_t most_bytes) {
    constexpr std::size_t kBlock = 65536;
    errno = 0;
    std::ifstream stream(path, std::ios::binary);
    if (!stream) fail_environment(label, ": cannot open: ", system_reason());
    while (stream) {
      const std::size_t before = piped_.size();
      piped_.resize(before + kBlock);
      stream.read(piped_.data() + before, static_cast<std::streamsize>(kBlock));
      piped_.resize(before + static_cast<std::size_t>(stream.gcount()));
      if (piped_.size() > most_bytes)
        fail_environment(label, ": is a pipe with more than ", most_bytes, " bytes, expected its end before");
    }
    if (stream.bad()) fail_environment(label, ": cannot read: ", system_reason());
  }

  MappedFile file_;
  std::string piped_;
};

}  // namespace moe::inline MOE_ABI::detail
