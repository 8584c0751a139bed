// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/lfs_pointer.hpp"
#include "moe/io/file/mapped_file.hpp"
#include "moe/io/file/output_file.hpp"
#include "moe/io/file/safetensors_header.hpp"
#include "moe/io/file/tensor.hpp"

namespace moe::inline MOE_ABI {

/// What a safetensors file holds: its header, and the data that the tensors' offsets count from.
struct SafetensorsContents {
  SafetensorsHeader header = {};
  std::span<const std::byte> data = {};
};

/// Checks the bytes of a whole file: 8 bytes of header length, a JSON header, raw little-endian data
/// (https://github.com/huggingface/safetensors). Afterwards every tensor lies inside `data`, has the bytes of its
/// shape, and shares none with another. Allocates in proportion to the header only; reads nothing of the data. Throws
/// std::runtime_error that opens with `label` and names the tensor where there is one.
inline SafetensorsContents parse_safetensors(const std::string& label, std::span<const std::byte> bytes) {
  constexpr std::size_t kPrefix = 8;
  detail::refuse_lfs_pointer(label, bytes);
  if (bytes.size() < kPrefix) fail_environment(label, ": has ", bytes.size(), " bytes, expected at least 8");
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kPrefix; ++i) length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  if (length > kMaxSafetensorsHeader)
    fail_environment(label, ": header of ", length, " bytes, expected at most ", kMaxSafetensorsHeader);
  if (length > bytes.size() - kPrefix)
    fail_environment(label, ": header of ", length, " bytes in a file of ", bytes.size(), " bytes");
  const std::span<const std::byte> data = bytes.subspan(kPrefix + static_cast<std::size_t>(length));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kPrefix, static_cast<std::size_t>(length));
  return {parse_safetensors_header(label, text, data.size()), data};
}

/// Reads a safetensors file. The constructor maps it and checks the header against the size of the file; data are read
/// when asked for. Never reads outside the file, and allocates in proportion to the header only. Tensors of types that
/// the library does not compute with are listed, with their bytes, and refused when their values are asked for.
/// Every error about the file is a std::runtime_error that names it and the tensor. Immutable, share freely; see
/// MappedFile for files that shrink meanwhile.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& path, FileAccess access = FileAccess::Map)
      : file_(std::string("moe::SafetensorsReader: '") + path.string() + "'", path, access),
        contents_(parse_safetensors(file_.label(), file_.bytes())) {}

  const std::map<std::string, TensorInfo, std::less<>>& tensors() const { return contents_.header.tensors; }
  const Metadata& metadata() const { return contents_.header.metadata; }

  /// Throws std::runtime_error where the file has no such tensor.
  const TensorInfo& tensor(std::string_view name) const { return entry(name).second; }

  /// The tensor with its bytes in the mapping, which live as long as the reader. Throws std::runtime_error where the
  /// file has no such tensor or has become shorter than it was.
  TensorView view(std::string_view name) const {
    const auto& [key, info] = entry(name);
    const std::uint64_t size = info.end - info.begin;
    if (!file_.is_intact())
      fail_environment(file_.label(), ": cannot read the ", size, " bytes of ", detail::in_quotes(name),
                       ": the file has become shorter since it was opened");
    return {.label = file_.label(),
            .name = key,
            .dtype = info.dtype,
            .shape = info.shape,
            .bytes = contents_.data.subspan(static_cast<std::size_t>(info.begin), static_cast<std::size_t>(size)),
            .other = info.other};
  }

  /// Lets the pages of a tensor leave memory until it is read again; see MappedFile::forget().
  void forget(std::string_view name) const { file_.forget(view(name).bytes); }

  /// The elements of a tensor, row by row, as float, double or std::int64_t. Same type: the same bits; wider S: exact;
  /// narrower S only if allowed, rounded to nearest (and never from floating-point to integers).
  /// Throws std::invalid_argument unless `values` has as many elements as the tensor.
  template <class S>
  void read(std::string_view name, std::span<S> values, Narrowing narrowing = Narrowing::Refuse) const {
    static_assert(!std::is_same_v<S, bool>, "moe::SafetensorsReader::read: read BOOL as std::uint8_t or wider");
    const TensorView tensor = view(name);
    detail::require_known(tensor);
    if (values.size() != static_cast<std::size_t>(tensor.size()))
      fail(file_.label(), ": read of tensor ", detail::in_quotes(name), " into ", values.size(), " scalars, expected ",
           tensor.size());
    const bool is_possible = std::is_floating_point_v<S> || is_exact(tensor.dtype, dtype_of<S>());
    if (!is_possible || (narrowing == Narrowing::Refuse && !is_exact(tensor.dtype, dtype_of<S>())))
      fail_environment(file_.label(), ": tensor ", detail::in_quotes(name), " is ", dtype_name(tensor.dtype),
                       ", which ", dtype_name(dtype_of<S>()), " cannot hold exactly",
                       is_possible ? " (pass moe::Narrowing::Allow to round)" : "");
    detail::decode(tensor.dtype, tensor.bytes.data(), values);
  }

 private:
  const std::pair<const std::string, TensorInfo>& entry(std::string_view name) const {
    const auto found = tensors().find(name);
    if (found == tensors().end()) fail_environment(file_.label(), ": tensor ", detail::in_quotes(name), " is missing");
    return *found;
  }

  MappedFile file_;
  SafetensorsContents contents_;
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
      : header_(std::move(header)), file_(std::string("moe::SafetensorsWriter: '") + path.string() + "'", path) {
    if (header_.tensors.contains("__metadata__")) fail(label(), ": a tensor cannot have the name '__metadata__'");
    assign_offsets(header_);
    const std::string text = format_safetensors_header(header_);
    if (text.size() > kMaxSafetensorsHeader)
      fail(label(), ": header of ", text.size(), " bytes, expected at most ", kMaxSafetensorsHeader);
    for (const auto& [name, info] : header_.tensors) pending_.insert(name);
    std::string prefix(8, '\0');
    for (std::size_t i = 0; i < prefix.size(); ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
    data_begin_ = prefix.size() + text.size();
    file_.write(prefix + text, "header");
  }

  /// The elements of one tensor, row by row, of the type that the header says; with Narrowing::Allow also any other
  /// floating-point type, rounded to nearest, ties to even (too large: infinity, in F8_E4M3 NaN). Throws
  /// std::invalid_argument for a name, type or size that the header does not have, or a tensor written before.
  template <class S>
  void write(std::string_view name, std::span<const S> values, Narrowing narrowing = Narrowing::Refuse) {
    const TensorInfo& info = pending(name);
    const std::size_t size = dtype_size(info.dtype);
    const bool is_same = info.dtype == dtype_of<S>();
    const bool converts = std::is_floating_point_v<S> && is_floating(info.dtype) && narrowing == Narrowing::Allow;
    if (!(is_same || converts) || (info.end - info.begin) / size != values.size())
      fail(label(), ": tensor ", detail::in_quotes(name), " given as ", values.size(), " ", dtype_name(dtype_of<S>()),
           ", expected ", info.end - info.begin, " bytes of ", dtype_name(info.dtype));
    if (is_same) return put(name, std::as_bytes(values));
    if constexpr (std::is_floating_point_v<S>) {
      std::vector<std::byte> encoded(values.size() * size);
      detail::encode(values, info.dtype, encoded.data());
      put(name, encoded);
    }
  }

  /// A part of the bytes of a tensor, from byte `first` of it on; parts may come in any order, each byte once. Throws
  /// as the others, and for a part that goes beyond the tensor or over another part.
  void write_part(std::string_view name, std::uint64_t first, std::span<const std::byte> bytes) {
    const TensorInfo& info = pending(name);
    const std::uint64_t size = info.end - info.begin;
    const std::uint64_t end = first + bytes.size();
    if (first > size || bytes.size() > size - first)
      fail(label(), ": ", bytes.size(), " bytes from ", first, " on of tensor ", detail::in_quotes(name),
           ", which has ", size, " bytes");
    auto done = partly_.find(name);
    if (done == partly_.end()) done = partly_.emplace(name, Parts{}).first;
    if (!add_part(first, end, done->second))
      fail(label(), ": bytes ", first, " to ", end, " of tensor ", detail::in_quotes(name), " are written twice");
    file_.write_at(data_begin_ + info.begin + first, bytes, name);
    if (size == 0 || done->second == Parts{{0, size}}) {
      partly_.erase(done);
      pending_.erase(pending_.find(name));
    }
  }

  /// The same for bytes that are encoded already, of any type.
  void write_bytes(std::string_view name, std::span<const std::byte> bytes) {
    const TensorInfo& info = pending(name);
    if (info.end - info.begin != bytes.size())
      fail(label(), ": tensor ", detail::in_quotes(name), " given as ", bytes.size(), " bytes, expected ",
           info.end - info.begin);
    put(name, bytes);
  }

  /// Puts the file in its place. Throws std::invalid_argument while a tensor is missing, std::runtime_error if the
  /// system refuses. Without it nothing is left behind.
  void commit() {
    if (!pending_.empty()) fail(label(), ": tensor ", detail::in_quotes(*pending_.begin()), " has not been written");
    file_.commit();
  }

 private:
  using Parts = std::map<std::uint64_t, std::uint64_t>;  ///< ends of runs of bytes by where they begin

  /// False where a byte of [first, end) is there already. Neighbours become one run.
  static bool add_part(std::uint64_t first, std::uint64_t end, Parts& parts) {
    if (first == end) return true;
    auto next = parts.lower_bound(first);
    if (next != parts.end() && next->first < end) return false;
    auto before = next == parts.begin() ? parts.end() : std::prev(next);
    if (before != parts.end() && before->second > first) return false;
    if (next != parts.end() && next->first == end) {
      end = next->second;
      parts.erase(next);
    }
    if (before != parts.end() && before->second == first)
      before->second = end;
    else
      parts.emplace(first, end);
    return true;
  }

  const std::string& label() const { return file_.label(); }
  const TensorInfo& pending(std::string_view name) const {
    const auto found = header_.tensors.find(name);
    if (found == header_.tensors.end()) fail(label(), ": tensor ", detail::in_quotes(name), " is not in the header");
    if (!pending_.contains(name)) fail(label(), ": tensor ", detail::in_quotes(name), " is written twice");
    return found->second;
  }
  void put(std::string_view name, std::span<const std::byte> bytes) {
    file_.write_at(data_begin_ + header_.tensors.find(name)->second.begin, bytes, name);
    pending_.erase(pending_.find(name));
  }

  SafetensorsHeader header_;
  detail::OutputFile file_;
  std::uint64_t data_begin_ = 0;
  std::set<std::string, std::less<>> pending_;
  std::map<std::string, Parts, std::less<>> partly_;  ///< of tensors that write_part() has begun
};

}  // namespace moe::inline MOE_ABI
