// SPDX-License-Identifier: MIT
// What is done with bytes of a fuzzer, or of a file that once was found: each returns whether the bytes were accepted,
// and stops the program where the library breaks a promise. Any exception but std::runtime_error gets out.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/checkpoint_index.hpp"
#include "moe/io/model_config.hpp"
#include "moe/io/npy.hpp"
#include "moe/io/safetensors.hpp"

namespace test {

inline void require(bool promise, const char* text) {
  if (promise) return;
  std::fprintf(stderr, "broken promise: %s\n", text);
  std::abort();
}

/// Reads all elements in the ways that there are.
inline void touch(const moe::TensorView& tensor) {
  const auto size = static_cast<std::size_t>(tensor.size());
  require(size * moe::dtype_size(tensor.dtype) == tensor.bytes.size(), "a tensor has the bytes of its type");
  std::uint64_t elements = 1;
  for (const moe::Index extent : tensor.shape) elements *= static_cast<std::uint64_t>(extent);
  require(elements == size, "a tensor has the elements of its shape");
  if (moe::is_floating(tensor.dtype)) {
    std::vector<float> values(size);
    moe::read_values(tensor, 0, std::span<float>(values));
  } else {
    std::vector<std::int64_t> values(size);
    try {
      moe::read_integers(tensor, 0, std::span<std::int64_t>(values));
    } catch (const std::runtime_error&) {
      require(tensor.dtype == moe::Dtype::U64, "only U64 is refused as an integer");
    }
  }
}

inline bool fuzz_safetensors(std::span<const std::byte> bytes) {
  const std::string label = "fuzz";
  try {
    const moe::SafetensorsContents contents = moe::parse_safetensors(label, bytes);
    std::uint64_t used = 0;
    for (const auto& [name, info] : contents.header.tensors) {
      require(info.begin <= info.end && info.end <= contents.data.size(), "a tensor lies in the data");
      used += info.end - info.begin;
      touch({label, name, info.dtype, info.shape,
             contents.data.subspan(static_cast<std::size_t>(info.begin),
                                   static_cast<std::size_t>(info.end - info.begin))});
    }
    require(used == contents.data.size(), "tensors fill the data");
    // What was read can be written, and says the same.
    const std::string text = moe::format_safetensors_header(contents.header);
    const moe::SafetensorsHeader again = moe::parse_safetensors_header(label, text, contents.data.size());
    require(moe::format_safetensors_header(again) == text, "a header that is read can be written");
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

inline bool fuzz_index(std::span<const std::byte> bytes) {
  try {
    const moe::CheckpointIndex index =
        moe::parse_checkpoint_index("fuzz", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    const std::filesystem::path root = "/checkpoint";
    for (const auto& [name, file] : index.weight_map) {
      const std::string whole = (root / file).lexically_normal().string();
      require(whole.starts_with("/checkpoint/") && whole.size() > std::string_view("/checkpoint/").size(),
              "a file stays below the directory");
    }
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

inline bool fuzz_config(std::span<const std::byte> bytes) {
  try {
    const moe::MoeConfig config =
        moe::parse_moe_config("fuzz", std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    try {
      config.validate();
    } catch (const std::invalid_argument&) {
      require(false, "a configuration that is read is in range");
    }
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

inline bool fuzz_npy(std::span<const std::byte> bytes) {
  const std::string label = "fuzz";
  try {
    const moe::NpyArray array = moe::parse_npy(label, bytes);
    touch(array.tensor);
    if (array.is_fortran && array.tensor.dtype == moe::Dtype::F32)
      (void)moe::detail::rows_first(array.tensor.shape, moe::read_all<float>(array.tensor));
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace test
