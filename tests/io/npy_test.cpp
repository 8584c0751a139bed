// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "moe/io/file/npy.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using moe::Index;
using test::TemporaryDirectory;

/// A file of format major.0 as NumPy's documentation describes it, without padding.
std::string npy_bytes(int major, const std::string& header, const std::string& data) {
  std::string bytes = "\x93NUMPY";
  bytes +=
      {static_cast<char>(major), '\0', static_cast<char>(header.size() & 0xFF), static_cast<char>(header.size() >> 8)};
  if (major > 1) bytes += {'\0', '\0'};
  return bytes + header + data;
}
std::string dictionary(const std::string& descr, const std::string& order, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

template <class S>
moe::NpyValues<S> read(const std::string& bytes, moe::Narrowing narrowing = moe::Narrowing::Refuse) {
  const TemporaryDirectory directory;
  test::write_bytes(directory / "x.npy", bytes);
  return moe::read_npy<S>(directory / "x.npy", narrowing);
}

void require_refused(const std::string& bytes, const std::string& message) {
  CAPTURE(bytes);
  const std::string label = "label";
  const auto parse = [&] { moe::parse_npy(label, std::as_bytes(std::span(bytes))); };
  REQUIRE_THROWS_WITH(parse(), ContainsSubstring("label: ") && ContainsSubstring(message));
  REQUIRE_THROWS_AS(parse(), std::runtime_error);
}

const std::vector<float> kFloats{
    1.5f, -0.0f, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::infinity(), 5, 6};
const std::string kData = test::bytes_of(kFloats);

}  // namespace

TEST_CASE("write_npy: writes the bytes of numpy.save", "[io][golden]") {
  const TemporaryDirectory directory;
  moe::write_npy(directory / "x", std::span<const float>(kFloats).first(3), {1, 3});
  // numpy 1.24.2: numpy.save("x.npy", numpy.zeros((1, 3), "<f4")), first 128 bytes.
  const std::string header = std::string("\x93NUMPY\x01\x00v\x00", 10) +
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }" + std::string(58, ' ') +
                             "\n";
  REQUIRE(header.size() == 128);
  REQUIRE(test::read_bytes(directory / "x") == header + kData.substr(0, 12));
}

TEST_CASE("read_npy: every type and shape that is written comes back", "[io]") {
  const TemporaryDirectory directory;
  for (const std::vector<Index>& shape : std::vector<std::vector<Index>>{{6}, {2, 3}, {1, 3, 2, 1}}) {
    moe::write_npy(directory / "f", std::span<const float>(kFloats), shape);
    const auto values = moe::read_npy<float>(directory / "f");
    REQUIRE(values.shape == shape);
    REQUIRE(test::bytes_of(values.values) == kData);
  }
  const std::vector<std::int64_t> big{std::numeric_limits<std::int64_t>::min()};
  moe::write_npy(directory / "i", std::span<const std::int64_t>(big), {});
  REQUIRE(moe::read_npy<std::int64_t>(directory / "i").shape.empty());
  REQUIRE(moe::read_npy<std::int64_t>(directory / "i").values == big);
  moe::write_npy(directory / "e", std::span<const double>(), {0, 4});
  REQUIRE(moe::read_npy<double>(directory / "e").shape == std::vector<Index>{0, 4});
  const moe::Matrix<float> matrix = moe::Matrix<float>::Random(3, 5);
  moe::write_npy<float>(directory / "m", matrix.leftCols(2));
  REQUIRE(moe::read_npy<float>(directory / "m").values ==
          std::vector<float>{matrix(0, 0), matrix(0, 1), matrix(1, 0), matrix(1, 1), matrix(2, 0), matrix(2, 1)});
}

TEST_CASE("read_npy: formats 1.0 to 3.0, keys in any order, types in both spellings", "[io]") {
  for (const int major : {1, 2, 3})
    REQUIRE(read<float>(npy_bytes(major, dictionary("<f4", "False", "(2, 3)"), kData)).values == kFloats);
  REQUIRE(read<float>(npy_bytes(1, "{\"shape\":(6,),'fortran_order':False , 'descr':'<f4'}", kData)).values == kFloats);
  for (const char* descr : {"|u1", "<u1"})
    REQUIRE(read<std::int64_t>(npy_bytes(1, dictionary(descr, "False", "(2,)"), "\x01\xff")).values ==
            std::vector<std::int64_t>{1, 255});
  REQUIRE(read<float>(npy_bytes(1, dictionary("|b1", "False", "()"), "\x01")).values == std::vector<float>{1});
  REQUIRE(read<double>(npy_bytes(1, dictionary("<f2", "False", "(2,)"), std::string("\x00\x3c\x01\x80", 4))).values ==
          std::vector<double>{1, -0x1p-24});
}

TEST_CASE("read_npy: Fortran order is turned into rows", "[io]") {
  REQUIRE(read<float>(npy_bytes(1, dictionary("<f4", "True", "(2, 3)"), kData)).values ==
          std::vector<float>{kFloats[0], kFloats[2], kFloats[4], kFloats[1], kFloats[3], kFloats[5]});
  std::vector<float> cube(24), expected(24);
  for (std::size_t i = 0; i < 24; ++i) cube[i] = static_cast<float>(i);
  for (std::size_t a = 0, i = 0; a < 2; ++a)
    for (std::size_t b = 0; b < 3; ++b)
      for (std::size_t c = 0; c < 4; ++c) expected[i++] = cube[a + 2 * (b + 3 * c)];
  REQUIRE(read<float>(npy_bytes(1, dictionary("<f4", "True", "(2, 3, 4)"), test::bytes_of(cube))).values == expected);
}

TEST_CASE("read_npy: what the target cannot hold is refused unless rounding is allowed", "[io][error]") {
  const std::string doubles =
      npy_bytes(1, dictionary("<f8", "False", "(1,)"), test::bytes_of(std::vector<double>{0.1}));
  REQUIRE_THROWS_WITH(read<float>(doubles), ContainsSubstring("array is F64, which F32 cannot hold"));
  REQUIRE(read<float>(doubles, moe::Narrowing::Allow).values == std::vector<float>{0.1f});
  REQUIRE_THROWS_AS(read<std::int64_t>(doubles, moe::Narrowing::Allow), std::runtime_error);
}

TEST_CASE("parse_npy: headers that are not as NumPy writes them are refused", "[io][error]") {
  const std::string good = dictionary("<f4", "False", "(6,)");
  require_refused("", "does not begin as");
  require_refused(kData, "does not begin as");
  require_refused(npy_bytes(4, good, kData), "has format 4.0");
  require_refused(npy_bytes(1, dictionary(">f4", "False", "(6,)"), kData), "type '>f4' is not supported");
  require_refused(npy_bytes(1, dictionary("|O", "False", "(6,)"), kData), "type '|O' is not supported");
  require_refused(npy_bytes(1, dictionary("<f4", "0", "(6,)"), kData), "expected 'False'");
  require_refused(npy_bytes(1, dictionary("<f4", "False", "(6)"), kData), "expected a tuple");
  require_refused(npy_bytes(1, dictionary("<f4", "False", "[6]"), kData), "expected '('");
  require_refused(npy_bytes(1, dictionary("<f4", "False", "(-6,)"), kData), "expected an extent");
  require_refused(npy_bytes(1, dictionary("<f4", "False", "(9223372036854775808,)"), kData), "extent too large");
  require_refused(npy_bytes(1, dictionary("<f4", "False", "(4294967296, 4294967296)"), kData), "do not fill");
  require_refused(npy_bytes(1, dictionary("<f4", "False", "(5,)"), kData), "24 bytes of data do not fill shape [5]");
  require_refused(npy_bytes(1, good + "x", kData), "text after the dictionary");
  require_refused(npy_bytes(1, "{'descr': '<f4', 'descr': '<f4'}", kData), "'descr' occurs twice");
  require_refused(npy_bytes(1, "{'descr': '<f4', 'shape': (6,)}", kData), "are needed");
  require_refused(npy_bytes(1, "{'descr': [('a', '<f4')], }", kData), "expected a string");
  require_refused(npy_bytes(1, "{'extra': 1}", kData), "unknown key 'extra'");
  require_refused(npy_bytes(2, std::string(20000, ' '), kData), "header of 20000 bytes");
}

TEST_CASE("parse_npy: every truncated file, and any other length of header, is refused", "[io][error]") {
  const std::string label = "label", bytes = npy_bytes(2, dictionary("<f4", "False", "(6,)"), kData);
  const auto loads = [&](const std::string& changed) {
    try {
      moe::parse_npy(label, std::as_bytes(std::span(changed)));
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  };
  REQUIRE(loads(bytes));
  for (std::size_t size = 0; size < bytes.size(); ++size) REQUIRE_FALSE(loads(bytes.substr(0, size)));
  for (std::size_t place = 8; place < 12; ++place)
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = bytes;
      changed[place] = static_cast<char>(changed[place] ^ (1 << bit));
      REQUIRE_FALSE(loads(changed));
    }
}

TEST_CASE("write_npy: a shape without the values' size, or a place that is none, is an error", "[io][error]") {
  const TemporaryDirectory directory;
  const auto write = [&](const char* name, const std::vector<Index>& shape) {
    moe::write_npy(directory / name, std::span<const float>(kFloats), shape);
  };
  REQUIRE_THROWS_WITH(write("x", {5}), ContainsSubstring("6 values for shape [5]"));
  REQUIRE_THROWS_AS(write("x", {-2, -3}), std::invalid_argument);
  REQUIRE_THROWS_AS(write("none/x", {6}), std::runtime_error);
}

TEST_CASE("npy: numpy reads what is written and its files are read", "[io][interop]") {
  const TemporaryDirectory directory;
  std::string python;
  for (const char* name : {"python3", "/usr/bin/python3"})
    if (python.empty() && std::system((std::string(name) + " -c 'import numpy' 2>/dev/null").c_str()) == 0)
      python = name;
  if (python.empty()) {
    WARN("no numpy: not compared");
    return;
  }
  moe::write_npy(directory / "ours.npy", std::span<const float>(kFloats), {2, 3});
  test::write_bytes(directory / "script.py",
                    "import sys, numpy\n"
                    "d = sys.argv[1]\n"
                    "a = numpy.load(d + 'ours.npy')\n"
                    "assert a.dtype == numpy.float32 and a.shape == (2, 3) and a.flags.c_contiguous\n"
                    "numpy.save(d + 'again.npy', a)\n"
                    "numpy.save(d + 'fortran.npy', numpy.asfortranarray(a.astype(numpy.float64)))\n"
                    "with numpy.errstate(over='ignore'):\n"
                    "  numpy.save(d + 'half.npy', numpy.arange(70000).astype(numpy.float16))\n");
  REQUIRE(std::system((python + " " + (directory / "script.py").string() + " " + (directory / "").string()).c_str()) ==
          0);
  REQUIRE(moe::read_npy<float>(directory / "again.npy").values == kFloats);
  REQUIRE(moe::read_npy<double>(directory / "fortran.npy").values ==
          std::vector<double>(kFloats.begin(), kFloats.end()));
  const auto half = moe::read_npy<float>(directory / "half.npy").values;
  REQUIRE(half[2049] == 2048);  // a tie, to even
  REQUIRE(half[2051] == 2052);
  REQUIRE(half[65519] == 65504);
  REQUIRE(half[65520] == std::numeric_limits<float>::infinity());
}
