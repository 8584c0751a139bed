// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "moe/core/error.hpp"

namespace moe::inline MOE_ABI::detail {

/// Throws std::runtime_error for the few lines that a clone has in place of a large file where Git LFS is not
/// installed.
inline void refuse_lfs_pointer(const std::string& label, std::string_view text) {
  if (text.starts_with("version https://git-lfs.github.com/spec/v"))
    fail_environment(label, ": is a pointer of Git LFS, not the file that it stands for, which `git lfs pull` fetches");
}
inline void refuse_lfs_pointer(const std::string& label, std::span<const std::byte> bytes) {
  refuse_lfs_pointer(label, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace moe::inline MOE_ABI::detail
