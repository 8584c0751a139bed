// SPDX-License-Identifier: MIT
#include "moe/core/aligned.hpp"

#include <cstdint>
#include <utility>

#include "support/catch.hpp"

namespace {

using moe::AlignedBuffer;
using moe::Index;
using moe::RowBuffer;

std::size_t misalignment(const void* data, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(data) % alignment;
}

TEST_CASE("AlignedBuffer: starts at a cache line and is zero", "[core]") {
  for (const Index size : {1, 15, 16, 17, 1000}) {
    CAPTURE(size);
    const AlignedBuffer<float> buffer(size);
    REQUIRE(buffer.size() == size);
    REQUIRE(buffer.span().size() == static_cast<std::size_t>(size));
    REQUIRE(misalignment(buffer.data(), moe::kCacheLine) == 0);
    for (const float x : buffer.span()) REQUIRE(x == 0);
  }
}

TEST_CASE("AlignedBuffer: starts at a huge page from 2 MiB on, and all of it can be used", "[core]") {
  const Index count = static_cast<Index>(moe::kHugePage / sizeof(double));
  for (const Index size : {count, count + 1}) {
    CAPTURE(size);
    AlignedBuffer<double> buffer(size);
    REQUIRE(misalignment(buffer.data(), moe::kHugePage) == 0);
    buffer.data()[0] = 1;
    buffer.data()[size - 1] = 2;
    REQUIRE(buffer.span().back() == 2);
  }
}

TEST_CASE("AlignedBuffer: size 0 holds nothing", "[core]") {
  AlignedBuffer<float> empty(0);
  const AlignedBuffer<float> copy = empty, none;
  CHECK(empty.data() == nullptr);
  CHECK(copy.span().empty());
  CHECK(none.size() == 0);
}

TEST_CASE("AlignedBuffer: a copy is deep", "[core]") {
  AlignedBuffer<float> original(5);
  original.data()[3] = 4;
  AlignedBuffer<float> copy = original;
  copy.data()[3] = 5;
  CHECK(original.data()[3] == 4);
  copy = original;
  CHECK(copy.data()[3] == 4);
  CHECK(copy.data() != original.data());
}

TEST_CASE("AlignedBuffer: assignment keeps memory of the same size, and takes other memory else", "[core]") {
  AlignedBuffer<float> original(5), same(5), other(500000);
  original.data()[3] = 4;
  const float* const memory = same.data();
  same = original;
  other = original;
  CHECK(same.data() == memory);
  CHECK(same.data()[3] == 4);
  CHECK((other.size() == 5 && other.data()[3] == 4));
  const AlignedBuffer<float>& itself = same;
  same = itself;
  CHECK(same.data()[3] == 4);
}

TEST_CASE("AlignedBuffer: a move leaves nothing behind", "[core]") {
  AlignedBuffer<float> original(5);
  const float* const data = original.data();
  AlignedBuffer<float> moved = std::move(original);
  CHECK(moved.data() == data);
  CHECK(original.size() == 0);  // NOLINT(bugprone-use-after-move): an empty buffer is promised
  CHECK(original.data() == nullptr);
  original = std::move(moved);
  CHECK(original.data() == data);
}

TEST_CASE("AlignedBuffer: a size that no machine has is bad_alloc", "[core][error]") {
  CHECK_THROWS_AS(AlignedBuffer<double>(Index{1} << 61), std::bad_alloc);
}

TEST_CASE("RowBuffer: rows start at cache lines and hold their values", "[core]") {
  RowBuffer<float> buffer;
  buffer.resize(3, 17);
  CHECK(buffer.stride() == 48);  // 17 floats take two cache lines; made odd
  for (Index r = 0; r < 3; ++r) CHECK(misalignment(buffer.row(r), moe::kCacheLine) == 0);
  buffer.matrix().setConstant(2);
  buffer.matrix()(1, 16) = 3;
  CHECK(buffer.row(1)[16] == 3);
  CHECK(std::as_const(buffer).matrix().sum() == 2 * 51 + 1);
}

TEST_CASE("RowBuffer: pads columns to whole cache lines", "[core]") {
  CHECK(RowBuffer<float>::padded(0) == 0);
  CHECK(RowBuffer<float>::padded(1) == 16);
  CHECK(RowBuffer<float>::padded(16) == 16);
  CHECK(RowBuffer<double>::padded(9) == 16);
}

TEST_CASE("RowBuffer: keeps its memory unless it must grow", "[core]") {
  RowBuffer<double> buffer;
  buffer.resize(4, 20);
  const double* const data = buffer.row(0);
  buffer.resize(2, 8);
  CHECK(buffer.row(0) == data);
  buffer.resize(12, 8);  // 12 * 8 = 4 * 24: as much as at first
  CHECK(buffer.row(0) == data);
  CHECK(buffer.rows() == 12);
  CHECK(buffer.cols() == 8);
  const auto before = buffer.storage().size();
  buffer.resize(13, 8);
  CHECK(buffer.storage().size() > before);
}

TEST_CASE("RowBuffer: without rows or columns has an empty matrix", "[core]") {
  RowBuffer<float> buffer;
  CHECK(buffer.matrix().size() == 0);
  buffer.resize(0, 7);
  CHECK(buffer.matrix().rows() == 0);
  CHECK(buffer.matrix().cols() == 7);
  buffer.resize(3, 0);
  CHECK(buffer.matrix().size() == 0);
}

TEST_CASE("RowBuffer: impossible sizes are refused, and what has been moved from is empty", "[core][error]") {
  moe::RowBuffer<double> buffer;
  CHECK_THROWS_WITH(buffer.resize(-1, 3), "moe::RowBuffer: rows is -1, expected at least 0");
  CHECK_THROWS_WITH(buffer.resize(3, -1), "moe::RowBuffer: cols is -1, expected at least 0");
  CHECK_THROWS_AS(buffer.resize(moe::Index{1} << 33, moe::Index{1} << 33), std::invalid_argument);
  buffer.resize(2, 3);
  const moe::RowBuffer<double> moved = std::move(buffer);
  CHECK(moved.rows() == 2);
  CHECK(buffer.rows() == 0);
  CHECK(buffer.cols() == 0);
  buffer.resize(2, 3);
  buffer.matrix().setZero();
  CHECK(buffer.rows() == 2);
}

}  // namespace
