// SPDX-License-Identifier: MIT
// What is done with bytes of a fuzzer, or of a file that once was found: each returns whether the bytes were accepted,
// and stops the program where the library breaks a promise. Any exception but std::runtime_error gets out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/families/model_config.hpp"
#include "moe/io/file/csv.hpp"
#include "moe/io/file/data_file.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/safetensors.hpp"

namespace test {

inline void require(bool promise, const char* text) {
  if (promise) return;
  std::fprintf(stderr, "broken promise: %s\n", text);
  std::abort();
}

/// Elements [first, size) as one scalar or another; integers are refused as floats and the other way round.
template <class S>
void read_from(const moe::TensorView& tensor, moe::Index first) {
  std::vector<S> values(static_cast<std::size_t>(tensor.size() - first));
  try {
    if constexpr (std::is_floating_point_v<S>)
      moe::read_values(tensor, first, std::span<S>(values));
    else
      moe::read_integers(tensor, first, std::span<S>(values));
    require(moe::is_floating(tensor.dtype) == std::is_floating_point_v<S>, "a tensor is read as what it is");
  } catch (const std::runtime_error&) {
    const bool is_large = !std::is_floating_point_v<S> && tensor.dtype == moe::Dtype::U64;
    require(is_large || moe::is_floating(tensor.dtype) != std::is_floating_point_v<S>, "a tensor can be read");
  }
}

/// A tensor of a type that is not known is refused when its values are asked for.
inline void require_unread(const moe::TensorView& tensor) {
  try {
    (void)moe::read_all<float>(tensor);
    require(false, "values of a type that is not known are not read");
  } catch (const std::runtime_error&) {
  }
}

/// Reads all elements in the ways that there are, and writes floats in every type.
inline void touch(const moe::TensorView& tensor) {
  const auto size = static_cast<std::size_t>(tensor.size());
  if (tensor.dtype == moe::Dtype::Other) {
    require(size / 8 <= tensor.bytes.size(), "an element of any type has a bit");
    return require_unread(tensor);
  }
  require(size * moe::dtype_size(tensor.dtype) == tensor.bytes.size(), "a tensor has the bytes of its type");
  std::uint64_t elements = 1;
  for (const moe::Index extent : tensor.shape) elements *= static_cast<std::uint64_t>(extent);
  require(elements == size, "a tensor has the elements of its shape");
  for (const moe::Index first : {moe::Index{0}, std::min<moe::Index>(1, tensor.size())}) {
    read_from<float>(tensor, first);
    read_from<double>(tensor, first);
    read_from<std::int64_t>(tensor, first);
  }
  if (!moe::is_floating(tensor.dtype)) return;
  const std::vector<double> values = moe::read_all<double>(tensor);
  for (const auto& traits : moe::detail::kDtypes) {
    if (!traits.is_floating) continue;
    std::vector<std::byte> encoded(size * traits.size);
    moe::detail::encode(std::span<const double>(values), traits.dtype, encoded.data());
    if (!moe::is_exact(tensor.dtype, traits.dtype)) continue;
    std::vector<double> again(size);
    moe::detail::decode(traits.dtype, encoded.data(), std::span<double>(again));
    for (std::size_t i = 0; i < size; ++i)
      require(again[i] == values[i] || (std::isnan(again[i]) && std::isnan(values[i])), "a wider type is exact");
  }
}

/// The header says no more than its text: nothing is allocated that the file does not justify.
inline void require_proportion(const moe::SafetensorsHeader& header, std::size_t size) {
  std::size_t said = 0;
  for (const auto& [key, value] : header.metadata) said += key.size() + value.size();
  for (const auto& [name, info] : header.tensors) said += name.size() + info.other.size() + info.shape.size();
  require(said <= size, "a header holds no more than its text");
}

inline bool fuzz_safetensors(std::span<const std::byte> bytes) {
  const std::string label = "fuzz";
  try {
    const moe::SafetensorsContents contents = moe::parse_safetensors(label, bytes);
    require_proportion(contents.header, bytes.size());
    std::uint64_t used = 0;
    for (const auto& [name, info] : contents.header.tensors) {
      require(info.begin <= info.end && info.end <= contents.data.size(), "a tensor lies in the data");
      used += info.end - info.begin;
      touch(
          {label, name, info.dtype, info.shape,
           contents.data.subspan(static_cast<std::size_t>(info.begin), static_cast<std::size_t>(info.end - info.begin)),
           info.other});
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

/// As data of people, any text is a frame or refused.
inline void fuzz_data_frame(std::string_view text) {
  try {
    const moe::DataFrame frame = moe::detail::DataFileReader("fuzz", text, {}).read();
    require(frame.num_rows > 0 && !frame.columns.empty(), "a frame has rows and columns");
    frame.validate("fuzz");
  } catch (const std::runtime_error&) {
  }
}

inline bool fuzz_csv(std::span<const std::byte> bytes) {
  fuzz_data_frame({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  try {
    const moe::CsvTable table =
        moe::detail::CsvParser("fuzz", {reinterpret_cast<const char*>(bytes.data()), bytes.size()}).parse();
    require(table.values.rows() > 0 && table.values.allFinite(), "a table has rows of finite numbers");
    require(static_cast<std::size_t>(table.values.cols()) == table.names.size(), "every column has a name");
    require(2 * static_cast<std::size_t>(table.values.size()) <= bytes.size() + 1, "a number takes a character");
    require(std::set(table.names.begin(), table.names.end()).size() == table.names.size(), "names are different");
    for (const std::string& name : table.names) require(!name.empty(), "a name has characters");
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
    if (array.is_fortran) {
      std::vector<double> values(static_cast<std::size_t>(array.tensor.size()));
      moe::detail::decode(array.tensor.dtype, array.tensor.bytes.data(), std::span<double>(values));
      require(moe::detail::rows_first(array.tensor.shape, values).size() == values.size(), "all elements are kept");
    }
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace test
