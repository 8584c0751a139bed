// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "moe/core/huge_pages.hpp"
#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// Bytes of a cache line, and of the widest register (AVX-512).
inline constexpr std::size_t kCacheLine = 64;

/// Fixed array of scalars, aligned to a cache line, zero-initialised: large ones by the system, page by page when they
/// are touched, so that whoever fills them in parallel also takes the page faults in parallel, and near its own memory.
/// From 2 MiB on aligned to huge pages and advised of them. Copies deeply, into memory of the same kind. Same
/// thread-safety as std::vector. Throws std::bad_alloc.
template <class T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>, "moe::AlignedBuffer holds plain scalars");

 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(Index size) : size_(size) {
    if (map()) return;
    allocate();
    std::fill_n(data_, size_, T{});
  }
  AlignedBuffer(const AlignedBuffer& other) : size_(other.size_) {
    if (!(other.origin_ == Origin::Shared && share(false))) allocate();
    std::copy_n(other.data_, size_, data_);
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        origin_(std::exchange(other.origin_, Origin::Heap)) {}
  /// Keeps the memory where it is as large.
  AlignedBuffer& operator=(const AlignedBuffer& other) {
    if (size_ != other.size_)
      *this = AlignedBuffer(other);
    else if (this != &other)
      std::copy_n(other.data_, size_, data_);
    return *this;
  }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    AlignedBuffer taken(std::move(other));  // which is empty from here on
    std::swap(data_, taken.data_);
    std::swap(size_, taken.size_);
    std::swap(origin_, taken.origin_);
    return *this;
  }
  ~AlignedBuffer() {
    const std::size_t held = bytes(size_);
    if (origin_ == Origin::Shared)
      detail::HugePages::give(reinterpret_cast<std::byte*>(data_), held);
    else if (origin_ == Origin::Mapping)
      unmap(data_, pages(held));
    else if (data_)
      ::operator delete(data_, std::align_val_t{alignment(held)});
  }

  /// For what is kept and read again from memory, as weights are: from 64 KiB on in huge pages, which several share
  /// below 64 MiB (see detail::HugePages).
  static AlignedBuffer in_huge_pages(Index size) {
    AlignedBuffer result;
    result.size_ = size;
    if (result.share(true)) return result;
    return AlignedBuffer(size);
  }
  /// Contents left as the allocator gave them.
  static AlignedBuffer uninitialised(Index size) {
    AlignedBuffer result;
    result.size_ = size;
    result.allocate();
    return result;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  Index size() const { return size_; }
  std::span<T> span() { return {data_, static_cast<std::size_t>(size_)}; }
  std::span<const T> span() const { return {data_, static_cast<std::size_t>(size_)}; }

 private:
  enum class Origin : unsigned char { Heap, Mapping, Shared };

  /// Each of these takes memory of its kind, if this size belongs there and there is any.
  bool share(bool zero) {
    if (!detail::HugePages::serves(bytes(size_))) return false;
    std::byte* const memory = detail::HugePages::take(bytes(size_), zero);
    if (!memory) return false;
    data_ = reinterpret_cast<T*>(memory);
    origin_ = Origin::Shared;
    return true;
  }
#if defined(__linux__)
  /// Fresh pages of the system, which are zero.
  bool map() {
    const std::size_t wanted = pages(bytes(size_));
    if (wanted < kHugePage) return false;
    void* const mapping = mmap(nullptr, wanted + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return false;
    auto* const begin = static_cast<std::byte*>(mapping);
    const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
    if (before > 0) (void)munmap(begin, before);
    (void)munmap(begin + before + wanted, kHugePage - before);
    advise(begin + before, wanted);
    data_ = reinterpret_cast<T*>(begin + before);
    origin_ = Origin::Mapping;
    return true;
  }
  static void unmap(void* begin, std::size_t size) { (void)munmap(begin, size); }
#else
  bool map() { return false; }
  static void unmap(void*, std::size_t) {}
#endif

  void allocate() {
    const std::size_t wanted = pages(bytes(size_));
    if (size_ == 0) return;
    data_ = static_cast<T*>(::operator new(wanted, std::align_val_t{alignment(wanted)}));
    // Only whole huge pages: the tail shares its page with nobody as the allocation is rounded up to full pages.
    if (wanted >= kHugePage) advise(data_, wanted);
  }
  static void advise([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    (void)madvise(begin, size, MADV_HUGEPAGE);
#endif
  }
  static std::size_t alignment(std::size_t held) { return held >= kHugePage ? kHugePage : kCacheLine; }
  /// Rounded up to cache lines, so that a full register may be read at the last element of a padded row.
  static std::size_t bytes(Index size) {
    if (static_cast<std::size_t>(size) > (std::size_t{1} << 62) / sizeof(T)) throw std::bad_alloc();
    return (static_cast<std::size_t>(size) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
  }
  /// Large ones rounded up to whole pages.
  static std::size_t pages(std::size_t held) {
    constexpr std::size_t kLargestPage = 65536;  // of Linux on AArch64; munmap takes whole pages only
    return held >= kHugePage ? (held + kLargestPage - 1) / kLargestPage * kLargestPage : held;
  }

  T* data_ = nullptr;
  Index size_ = 0;
  Origin origin_ = Origin::Heap;
};

/// Grow-only matrix of scratch rows: resize() keeps the memory when it is large enough, and never its contents.
/// Rows are padded to full cache lines, so kernels may store whole registers; and they lie an odd number of lines
/// apart, as a column of rows at a power of two would fall on a few sets of the cache. A plain value, empty after it
/// has been moved from; one per thread.
template <class S>
class RowBuffer {
 public:
  /// Makes room for [rows, cols]; contents are unspecified. Allocates only when the buffer must grow. Throws
  /// std::invalid_argument for sizes that are negative or too large for an Index.
  void resize(Index rows, Index cols) {
    constexpr const char* kName = "moe::RowBuffer";
    const Index stride = stride_of(detail::checked_size(kName, "cols", cols));
    const Index size = detail::checked_product(kName, detail::checked_size(kName, "rows", rows), stride);
    if (size > buffer_.size()) {
      rows_ = 0;
      buffer_ = AlignedBuffer<S>();  // free first: peak memory is one buffer, not two
      buffer_ = AlignedBuffer<S>::uninitialised(size);
    }
    rows_ = rows;
    cols_ = cols;
    stride_ = stride;
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  /// Scalars from one row to the next.
  Index stride() const { return stride_; }
  S* row(Index r) { return buffer_.data() + r * stride_; }
  const S* row(Index r) const { return buffer_.data() + r * stride_; }
  /// All allocated scalars, for poisoning in tests.
  std::span<S> storage() { return buffer_.span(); }

  /// Eigen views of [rows, cols].
  auto matrix() {
    return Eigen::Map<Matrix<S>, 0, Eigen::OuterStride<>>(row(0), rows_, cols_, Eigen::OuterStride<>(stride_));
  }
  auto matrix() const {
    return Eigen::Map<const Matrix<S>, 0, Eigen::OuterStride<>>(row(0), rows_, cols_, Eigen::OuterStride<>(stride_));
  }

  /// The same where a matrix is asked for.
  operator MatrixRef<S>() { return matrix(); }
  operator ConstMatrixRef<S>() const { return matrix(); }

  /// Width of a row of `cols` scalars in whole cache lines.
  static Index padded(Index cols) {
    constexpr Index kLine = static_cast<Index>(kCacheLine / sizeof(S));
    return (cols + kLine - 1) / kLine * kLine;
  }
  /// Scalars from one row of `cols` scalars to the next: an odd number of cache lines.
  static Index stride_of(Index cols) {
    constexpr Index kLine = static_cast<Index>(kCacheLine / sizeof(S));
    return (padded(cols) / kLine | 1) * kLine;
  }

 private:
  AlignedBuffer<S> buffer_;
  detail::ZeroWhenMoved<Index> rows_ = 0, cols_ = 0, stride_ = 0;
};

}  // namespace moe::inline MOE_ABI
