// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "moe/io/safetensors_header.hpp"

namespace moe::inline MOE_ABI {

/// Reads a safetensors file: 8 bytes of header length, a JSON header, raw little-endian data
/// (https://github.com/huggingface/safetensors). The constructor reads and checks the header against the size of the
/// file; tensors are read when asked for. Never reads outside the file, and allocates in proportion to the header only.
/// Every error about the file is a std::runtime_error that names it and the tensor. One per thread.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& path)
      : label_(std::string("moe::SafetensorsReader: '") + path.string() + "'") {
    std::error_code error;
    const std::uint64_t size = std::filesystem::file_size(path, error);
    if (!error) stream_.open(path, std::ios::binary);
    if (error || !stream_) fail_environment(label_, ": cannot open: ", (error ? error : last_error()).message());
    std::array<unsigned char, 8> prefix{};
    if (size < prefix.size()) fail_environment(label_, ": has ", size, " bytes, expected at least 8");
    read_at(0, prefix.data(), prefix.size(), "header");
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < prefix.size(); ++i) length |= std::uint64_t{prefix[i]} << (8 * i);
    if (length > kMaxSafetensorsHeader)
      fail_environment(label_, ": header of ", length, " bytes, expected at most ", kMaxSafetensorsHeader);
    if (length > size - prefix.size())
      fail_environment(label_, ": header of ", length, " bytes in a file of ", size, " bytes");
    std::string text(length, '\0');
    read_at(prefix.size(), text.data(), length, "header");
    data_begin_ = prefix.size() + length;
    header_ = parse_safetensors_header(label_, text, size - data_begin_);
  }

  const std::map<std::string, TensorInfo, std::less<>>& tensors() const { return header_.tensors; }
  const Metadata& metadata() const { return header_.metadata; }

  /// Throws std::runtime_error where the file has no such tensor.
  const TensorInfo& tensor(std::string_view name) const {
    const auto found = header_.tensors.find(name);
    if (found == header_.tensors.end()) fail_environment(label_, ": tensor '", name, "' is missing");
    return found->second;
  }

  /// The elements of a tensor, row by row. Same type: the same bits; wider S: exact; narrower S only if allowed,
  /// rounded to nearest. Throws std::invalid_argument unless `values` has as many elements as the tensor.
  template <class S>
  void read(std::string_view name, std::span<S> values, Narrowing narrowing = Narrowing::Refuse) {
    const TensorInfo& info = tensor(name);
    const std::uint64_t size = (info.end - info.begin) / dtype_size(info.dtype);
    if (values.size() != size)
      fail(label_, ": read of tensor '", name, "' into ", values.size(), " scalars, expected ", size);
    if (narrowing == Narrowing::Refuse && !is_exact(info.dtype, dtype_of<S>()))
      fail_environment(label_, ": tensor '", name, "' is ", dtype_name(info.dtype), ", which ",
                       dtype_name(dtype_of<S>()), " cannot hold exactly (pass moe::Narrowing::Allow to round)");
    if (info.dtype == dtype_of<S>()) return read_at(data_begin_ + info.begin, values.data(), values.size_bytes(), name);
    std::array<std::byte, 65536> buffer;
    const std::size_t element = dtype_size(info.dtype), block = buffer.size() / element;
    for (std::size_t i = 0; i < values.size(); i += block) {
      const std::span<S> part = values.subspan(i, std::min(block, values.size() - i));
      read_at(data_begin_ + info.begin + i * element, buffer.data(), part.size() * element, name);
      detail::decode(info.dtype, buffer.data(), part);
    }
  }

 private:
  static std::error_code last_error() { return {errno, std::generic_category()}; }

  void read_at(std::uint64_t offset, void* to, std::size_t bytes, std::string_view what) {
    if (bytes == 0) return;
    stream_.seekg(static_cast<std::streamoff>(offset));
    stream_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    if (!stream_) {
      stream_.clear();
      fail_environment(label_, ": cannot read the ", bytes, " bytes of '", what, "' at offset ", offset);
    }
  }

  std::string label_;
  std::ifstream stream_;
  std::uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

/// Writes a safetensors file, tensor by tensor in any order, under a temporary name in the same directory; commit()
/// renames it, so that `path` holds the old file or the whole new one, whatever happens to the program in between.
/// (What a power cut leaves is up to the file system.) Equal contents give equal bytes. One per thread.
///   moe::SafetensorsWriter writer(path, {.tensors = {{"x", {moe::Dtype::F32, {2, 3}}}}});
///   writer.write("x", std::span<const float>(values));
///   writer.commit();
class SafetensorsWriter {
 public:
  /// Places the tensors (`begin` and `end` of the header are overwritten) and opens the file. Throws
  /// std::invalid_argument for a header that cannot be written, std::runtime_error if the file cannot be.
  SafetensorsWriter(const std::filesystem::path& path, SafetensorsHeader header)
      : path_(path),
        temporary_(path),
        label_(std::string("moe::SafetensorsWriter: '") + path.string() + "'"),
        header_(std::move(header)) {
    if (header_.tensors.contains("__metadata__")) fail(label_, ": a tensor cannot have the name '__metadata__'");
    assign_offsets(header_);
    const std::string text = format_safetensors_header(header_);
    if (text.size() > kMaxSafetensorsHeader)
      fail(label_, ": header of ", text.size(), " bytes, expected at most ", kMaxSafetensorsHeader);
    for (const auto& [name, info] : header_.tensors) pending_.insert(name);
    std::array<char, 8> prefix{};
    for (std::size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
    data_begin_ = prefix.size() + text.size();
    temporary_ += std::string(".") + std::to_string(std::random_device{}()) + ".tmp";
    stream_.open(temporary_, std::ios::binary | std::ios::trunc);
    stream_.write(prefix.data(), static_cast<std::streamsize>(prefix.size()));
    stream_.write(text.data(), static_cast<std::streamsize>(text.size()));
    if (!stream_) fail_write("header");
  }
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// Without commit() nothing is left behind.
  ~SafetensorsWriter() { discard(); }

  /// The elements of one tensor, row by row. Throws std::invalid_argument for a name, type or size that the header does
  /// not have, or a tensor written before.
  template <class S>
  void write(std::string_view name, std::span<const S> values) {
    const auto found = header_.tensors.find(name);
    if (found == header_.tensors.end()) fail(label_, ": tensor '", name, "' is not in the header");
    const TensorInfo& info = found->second;
    if (info.dtype != dtype_of<S>() || info.end - info.begin != values.size_bytes())
      fail(label_, ": tensor '", name, "' given as ", values.size(), " ", dtype_name(dtype_of<S>()), ", expected ",
           info.end - info.begin, " bytes of ", dtype_name(info.dtype));
    if (pending_.erase(found->first) == 0) fail(label_, ": tensor '", name, "' is written twice");
    stream_.seekp(static_cast<std::streamoff>(data_begin_ + info.begin));
    stream_.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
    if (!stream_) fail_write(name);
  }

  /// Puts the file in its place. Throws std::invalid_argument while a tensor is missing, std::runtime_error if the
  /// system refuses.
  void commit() {
    if (!pending_.empty()) fail(label_, ": tensor '", *pending_.begin(), "' has not been written");
    stream_.close();
    if (!stream_) fail_write("header");
    std::error_code error;
    std::filesystem::rename(temporary_, path_, error);
    if (error) fail_environment(label_, ": cannot rename ", temporary_.string(), ": ", error.message());
    temporary_.clear();
  }

 private:
  [[noreturn]] void fail_write(std::string_view what) {
    const std::error_code error(errno, std::generic_category());
    discard();
    fail_environment(label_, ": cannot write '", what, "': ", error.message());
  }
  void discard() {
    stream_.close();
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove(temporary_, ignored);
    temporary_.clear();
  }

  std::filesystem::path path_, temporary_;
  std::string label_;
  SafetensorsHeader header_;
  std::ofstream stream_;
  std::uint64_t data_begin_ = 0;
  std::set<std::string, std::less<>> pending_;
};

}  // namespace moe::inline MOE_ABI
