// SPDX-License-Identifier: MIT
#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "moe/io/checkpoint/weight_source.hpp"
#include "moe/io/file/gguf.hpp"
#include "moe/kernel/weight_rounding.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"
#include "support/gguf.hpp"
#include "support/matrices.hpp"
#include "support/text.hpp"

namespace {

using moe::Dtype;
using moe::GgufType;
using moe::Index;
using test::GgufEntry;
using test::GgufFile;
using test::raw;
using test::TemporaryDirectory;

std::span<const std::byte> as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }
moe::GgufHeader parse(const std::string& bytes) {
  static const std::string label = "file";
  return moe::parse_gguf(label, as_bytes(bytes));
}
/// What reading says, or "".
std::string complaint(const std::string& bytes) {
  return test::message_of<std::runtime_error>([&] { parse(bytes); });
}
void require_refused(const GgufFile& file, const std::string& part) {
  const std::string message = complaint(file.bytes());
  CAPTURE(message, part);
  REQUIRE(message.starts_with("file: "));
  REQUIRE(message.find(part) != message.npos);
}

/// What a length or number of 64 bits may be made to be, where so many bytes follow.
std::vector<std::uint64_t> lengths(std::size_t room) {
  constexpr std::uint64_t kOne = 1, kMost = std::numeric_limits<std::uint64_t>::max();
  return {0,          1,          255,       room,       room - 8,     room + 1,  (kOne << 32) - 1,
          kOne << 61, kOne << 62, kMost / 2, kOne << 63, kMost - room, kMost - 7, kMost};
}

/// A metadatum of every type, lists in lists, and tensors of several types and ranks.
GgufFile rich_file() {
  GgufFile file;
  file.metadata = {{"general.architecture", test::gguf_text("llama")},
                   {"general.alignment", test::gguf_u32(32)},
                   {"u8", {0, raw<std::uint8_t>(200)}},
                   {"i8", {1, raw<std::int8_t>(-100)}},
                   {"u16", {2, raw<std::uint16_t>(60000)}},
                   {"i16", {3, raw<std::int16_t>(-30000)}},
                   {"i32", {5, raw<std::int32_t>(-2000000000)}},
                   {"f32", test::gguf_f32(1.5f)},
                   {"flag", test::gguf_flag(true)},
                   {"u64", {10, raw<std::uint64_t>(1ull << 62)}},
                   {"large", {10, raw<std::uint64_t>(1ull << 63)}},
                   {"i64", {11, raw<std::int64_t>(-(1ll << 62))}},
                   {"f64", {12, raw(-0.1)}},
                   {"text", test::gguf_text("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80")},
                   {"flags", test::gguf_list(7, {raw('\1'), raw('\0')})},
                   {"texts", test::gguf_list(8, {test::gguf_string("a"), test::gguf_string("")})},
                   {"lists", test::gguf_list(9, {test::gguf_list(4, {raw(7u), raw(8u)}).bytes,
                                                 test::gguf_list(8, {test::gguf_string("z")}).bytes,
                                                 test::gguf_list(9, {}).bytes})}};
  file.tensors = {{"a", 0, {2, 3}, test::bytes_of<float>({1, 2, 3, 4, 5, 6})},
                  {"number", 28, {}, raw(0.25)},
                  {"empty", 1, {0, 5}, ""},
                  {"q", 8, {2, 64}, std::string(4 * 34, '\x11')},
                  {"k", 12, {1, 1, 2, 256}, std::string(2 * 144, '\x22')},
                  {"other", 16, {256}, std::string(66, '\x33')},
                  {"ints", 26, {1}, raw(-5)}};
  return file;
}

}  // namespace

TEST_CASE("GgufReader: metadata of every type are read", "[io]") {
  const TemporaryDirectory directory;
  for (const std::uint32_t version : {2u, 3u}) {
    GgufFile file = rich_file();
    file.version = version;
    test::write_bytes(directory / "x.gguf", file.bytes());
    const moe::GgufReader reader(directory / "x.gguf");
    REQUIRE(reader.version() == version);
    REQUIRE(reader.alignment() == 32);
    REQUIRE(reader.metadata().size() == file.metadata.size());
    const auto value = [&](const char* key) { return reader.value(key).value(); };
    const std::map<std::string, std::int64_t> integers{
        {"u8", 200},          {"i8", -100},       {"u16", 60000},       {"i16", -30000}, {"general.alignment", 32},
        {"i32", -2000000000}, {"u64", 1ll << 62}, {"i64", -(1ll << 62)}};
    for (const auto& [key, expected] : integers) {
      REQUIRE(value(key.c_str()).integer() == expected);
      REQUIRE_FALSE(value(key.c_str()).number());
      REQUIRE_FALSE(value(key.c_str()).text());
    }
    REQUIRE_FALSE(value("large").integer());
    REQUIRE(value("large").shown() == "9223372036854775808");
    REQUIRE(value("f32").number() == 1.5);
    REQUIRE(value("f64").number() == -0.1);
    REQUIRE(value("flag").flag() == true);
    REQUIRE(value("text").text() == "\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80");
    REQUIRE_FALSE(reader.value("none"));
    std::vector<std::string> found;
    value("lists").for_each([&](const moe::GgufValue& list) {
      found.push_back(list.shown());
      list.for_each([&](const moe::GgufValue& element) { found.push_back(element.shown()); });
    });
    REQUIRE(found == std::vector<std::string>{"a list of 2", "7", "8", "a list of 1", "'z'", "a list of 0"});
    std::vector<bool> flags;
    value("flags").for_each([&](const moe::GgufValue& flag) { flags.push_back(flag.flag().value()); });
    REQUIRE(flags == std::vector<bool>{true, false});
    value("text").for_each([](const moe::GgufValue&) { FAIL("a text has no elements"); });
  }
}

TEST_CASE("GgufReader: tensors have their reversed shapes, types and bytes, for every alignment", "[io]") {
  const TemporaryDirectory directory;
  for (const std::uint32_t alignment : {1u, 8u, 32u, 4096u}) {
    GgufFile file = rich_file();
    file.alignment = alignment;
    file.metadata[1].second = test::gguf_u32(alignment);
    test::write_bytes(directory / "x.gguf", file.bytes());
    const moe::GgufReader reader(directory / "x.gguf");
    REQUIRE(reader.tensors().size() == file.tensors.size());
    for (const test::GgufTensor& tensor : file.tensors) {
      const moe::TensorView view = reader.view(tensor.name);
      REQUIRE(view.shape == std::vector<Index>(tensor.extents.begin(), tensor.extents.end()));
      REQUIRE(std::ranges::equal(view.bytes, as_bytes(tensor.bytes)));
    }
    REQUIRE(reader.view("k").type() == "Q4_K");
    REQUIRE(reader.view("k").dtype == Dtype::Other);
    REQUIRE(reader.view("k").size() == 512);
    REQUIRE(moe::read_all<float>(reader.view("a")) == std::vector<float>{1, 2, 3, 4, 5, 6});
    REQUIRE(moe::read_all<double>(reader.view("number")) == std::vector<double>{0.25});
    REQUIRE(moe::read_all<std::int64_t>(reader.view("ints")) == std::vector<std::int64_t>{-5});
    REQUIRE_THROWS_AS(reader.view("none"), std::runtime_error);
  }
}

TEST_CASE("GgufReader: a file cut at any byte is refused", "[io][error]") {
  const std::string bytes = rich_file().bytes();
  REQUIRE(complaint(bytes).empty());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CAPTURE(size);
    REQUIRE_FALSE(complaint(bytes.substr(0, size)).empty());
  }
}

TEST_CASE("GgufReader: any number in any place of the header is read or refused", "[io][error]") {
  const GgufFile file = rich_file();
  const std::string bytes = file.bytes();
  const std::size_t header = file.header().size();
  int accepted = 0;
  const auto try_out = [&](const std::string& changed) {
    try {
      const moe::GgufHeader parsed = parse(changed);
      ++accepted;
      for (const auto& [name, info] : parsed.tensors)
        if (parsed.data_begin + info.end > changed.size() || info.begin > info.end) FAIL("outside: " << name);
      for (const auto& [key, value] : parsed.metadata)
        value.for_each([](const moe::GgufValue& element) { element.for_each([](const moe::GgufValue&) {}); });
    } catch (const std::runtime_error&) {
    }
  };
  for (std::size_t place = 0; place < header; ++place) {
    for (const int change : {1, 2, 0x40, 0x80, 0xFF}) {
      std::string changed = bytes;
      changed[place] = static_cast<char>(changed[place] ^ change);
      try_out(changed);
    }
    for (const std::uint64_t length : lengths(bytes.size() - place)) {
      std::string changed = bytes;
      changed.replace(place, 8, raw(length));
      try_out(changed.substr(0, bytes.size()));
    }
  }
  REQUIRE(accepted > 100);  // characters of names and numbers of metadata
}

TEST_CASE("GgufReader: says what is wrong with a file, where, and what it expected", "[io][error]") {
  GgufFile file = rich_file();
  REQUIRE(complaint("GGML").find("file: does not begin with the letters GGUF") == 0);
  file.version = 1;
  require_refused(file, "version 1, expected 2 or 3");
  file.version = 3u << 24;
  require_refused(file, "is big-endian, expected a little-endian file");

  const auto with_metadata = [](const std::string& key, const GgufEntry& entry) {
    GgufFile changed = rich_file();
    changed.metadata.emplace_back(key, entry);
    return changed;
  };
  require_refused(with_metadata("u8", test::gguf_u32(1)), "metadata 'u8' occurs twice");
  require_refused(with_metadata("", test::gguf_u32(1)), "a key is 0 bytes, expected 1 to 65535");
  require_refused(with_metadata("x", {13, ""}), "metadata 'x': the type of a value is 13, expected 0 to 12");
  require_refused(with_metadata("x", {7, "\2"}), "a flag is 2, expected 0 or 1");
  require_refused(with_metadata("x", test::gguf_list(7, {raw('\1'), raw('\3')})), "a flag is 3, expected 0 or 1");
  for (const char* text : {"\x80", "\xC0\x80", "\xC3", "\xED\xA0\x80", "\xF5\x80\x80\x80", "\xE0\x9F\xBF", "a\xFF"}) {
    require_refused(with_metadata("x", test::gguf_text(text)), "expected UTF-8");
    require_refused(with_metadata("x", test::gguf_list(8, {test::gguf_string(text)})), "expected UTF-8");
    require_refused(with_metadata(text, test::gguf_u32(1)), "expected UTF-8");
  }
  require_refused(with_metadata("x", {9, raw(9u) + raw(1ull << 60)}), "1152921504606846976 elements in the");
  require_refused(with_metadata("x", {8, raw(1ull << 60)}), "takes 1152921504606846976 bytes, the file ends after");
  GgufEntry deep = test::gguf_list(0, {});
  for (int depth = 1; depth < 16; ++depth) deep = test::gguf_list(9, {deep.bytes});
  REQUIRE(complaint(with_metadata("x", deep).bytes()).empty());
  require_refused(with_metadata("x", test::gguf_list(9, {deep.bytes})), "a list in lists is 17 deep");

  for (const std::uint32_t alignment : {0u, 3u, 48u}) {
    file = rich_file();
    file.metadata[1].second = test::gguf_u32(alignment);
    require_refused(file, "general.alignment is " + std::to_string(alignment) + ", expected a power of two");
  }
}

TEST_CASE("GgufReader: says what is wrong with a tensor, and what it expected", "[io][error]") {
  const auto with_tensor = [](const test::GgufTensor& tensor) {
    GgufFile changed = rich_file();
    changed.tensors.push_back(tensor);
    return changed;
  };
  require_refused(with_tensor({"a", 24, {1}, "x"}), "tensor 'a' occurs twice");
  require_refused(with_tensor({"x", 24, {1, 1, 1, 1, 1}, "x"}), "the number of extents is 5, expected at most 4");
  require_refused(with_tensor({"x", 24, {-1}, "x"}), "an extent is 18446744073709551615, expected less than 2^63");
  require_refused(with_tensor({"x", 99, {1}, "x"}), "the type is 99, expected the number of a type of ggml");
  require_refused(with_tensor({"x", 4, {1}, "x"}), "the type is 4, expected");
  require_refused(with_tensor({"x", 12, {4, 128}, std::string(288, 'x')}),
                  "a multiple of the 256 values of a block Q4_K");
  require_refused(with_tensor({"x", 0, {1ll << 40, 1ll << 40}, "x"}), "a size that can be addressed");
  require_refused(with_tensor({"x", 0, {1ll << 61}, "x"}), "a size that can be addressed");
  require_refused(with_tensor({"x", 0, {2}, "four"}), "of the data, which have");
  GgufFile file = rich_file();
  file.alignment = 8;  // what is said is 32
  require_refused(file, "the offset of its data is 24, expected a multiple of 32");
  // Two tensors in one place: the second is said to be 32 bytes shorter than it is.
  file = rich_file();
  file.tensors[3].extents = {4, 64};
  require_refused(file, "tensors 'q' and 'k' share bytes from");
  // An offset that wraps around.
  std::string bytes = rich_file().bytes();
  bytes.replace(rich_file().header().size() - 8, 8, raw(~0ull - 31));
  REQUIRE(complaint(bytes).find("which have") != std::string::npos);
}

TEST_CASE("GgufReader: long headers are read in time", "[io][slow]") {
  constexpr std::size_t kCount = 200000;
  GgufFile file;
  for (std::size_t i = 0; i < kCount; ++i) file.metadata.emplace_back("k" + std::to_string(i), GgufEntry{0, "x"});
  file.metadata.emplace_back("lists",
                             test::gguf_list(9, std::vector<std::string>(kCount, test::gguf_list(9, {}).bytes)));
  file.metadata.emplace_back("texts", test::gguf_list(8, std::vector<std::string>(kCount, test::gguf_string("t"))));
  for (std::size_t i = 0; i < kCount; ++i) file.tensors.push_back({"t" + std::to_string(i), 24, {1}, "x"});
  const std::string bytes = file.bytes();
  const moe::GgufHeader header = parse(bytes);
  REQUIRE(header.metadata.size() == kCount + 2);
  REQUIRE(header.tensors.size() == kCount);
  std::size_t count = 0;
  header.metadata.at("texts").for_each([&](const moe::GgufValue&) { ++count; });
  REQUIRE(count == kCount);
}

TEST_CASE("Checkpoint: a GGUF file in parts is opened by its first", "[io]") {
  const TemporaryDirectory directory;
  const auto part = [&](std::uint16_t number, std::uint16_t count, const std::string& tensor) {
    GgufFile file;
    file.metadata = {
        {"split.no", {2, raw(number)}}, {"split.count", {2, raw(count)}}, {"split.tensors.count", {5, raw(3)}}};
    if (number == 0) file.metadata.emplace_back("general.name", test::gguf_text("model"));
    file.tensors = {{tensor, 0, {1}, raw(static_cast<float>(number))}};
    return file.bytes();
  };
  const auto name = [&](int number) { return directory / ("m-0000" + std::to_string(number) + "-of-00003.gguf"); };
  const auto write_all = [&] {
    const char* tensors[] = {"a", "b", "c"};
    for (int i = 0; i < 3; ++i) test::write_bytes(name(i + 1), part(static_cast<std::uint16_t>(i), 3, tensors[i]));
  };
  const auto complaint_of = [&](const std::filesystem::path& path) {
    return test::message_of<std::runtime_error>([&] { moe::Checkpoint::open(path); });
  };
  write_all();
  const moe::Checkpoint checkpoint = moe::Checkpoint::open(name(1));
  REQUIRE(checkpoint.format() == moe::CheckpointFormat::Gguf);
  REQUIRE(checkpoint.names() == std::vector<std::string>{"a", "b", "c"});
  REQUIRE(moe::read_all<float>(checkpoint.at("c")) == std::vector<float>{2});
  REQUIRE(checkpoint.metadata() == moe::Metadata{{"general.name", "model"}});
  REQUIRE(checkpoint.ignored().empty());
  REQUIRE(moe::Checkpoint::open(name(1), moe::FileAccess::Read).names() == checkpoint.names());

  REQUIRE(test::contains(complaint_of(name(2)), "is part 1 (split.no) of 3, expected part 0"));
  std::filesystem::remove(name(3));
  REQUIRE(test::contains(complaint_of(name(1)), "m-00003-of-00003.gguf"));
  test::write_bytes(name(3), part(2, 3, "a"));
  REQUIRE(test::contains(complaint_of(name(1)), "tensor 'a' is in a part before, too"));
  test::write_bytes(name(3), part(2, 4, "c"));
  REQUIRE(test::contains(complaint_of(name(1)), "is one of 4 parts, expected 3"));
  test::write_bytes(name(3), part(1, 3, "c"));
  REQUIRE(test::contains(complaint_of(name(1)), "is part 1 (split.no) of 3, expected part 2"));
  write_all();
  test::write_bytes(directory / "other.gguf", part(0, 3, "a"));
  REQUIRE(
      test::contains(complaint_of(directory / "other.gguf"), "expected a name that ends with '-00001-of-00003.gguf'"));
  test::write_bytes(directory / "other.gguf", part(0, 1, "a"));
  REQUIRE(moe::Checkpoint::open(directory / "other.gguf").names().size() == 1);
}

TEST_CASE("WeightSource: blocks of GGUF are read in any part, and keep codes and scales where a format has them",
          "[io]") {
  const TemporaryDirectory directory;
  constexpr Index kRows = 3, kColumns = 512;
  GgufFile file;
  std::string random;
  for (const auto& type : moe::detail::kGgmlTypes) {
    const auto* block = moe::find_gguf_block(type.name);
    if (!block) continue;
    std::string bytes(static_cast<std::size_t>(kRows * kColumns / block->values * block->bytes), '\0');
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>((i * 37 + i / 61 * 13 + 5) % 251);
    file.tensors.push_back({std::string(type.name), type.id, {kRows, kColumns}, bytes});
  }
  REQUIRE(file.tensors.size() == moe::kGgufBlocks.size());
  test::write_bytes(directory / "x.gguf", file.bytes());
  const auto checkpoint = moe::Checkpoint::open(directory / "x.gguf");
  const std::map<std::string, moe::WeightFormat> kept{
      {"Q8_0", moe::WeightFormat::int8()}, {"Q4_0", moe::WeightFormat::int4()}, {"MXFP4", moe::WeightFormat::mxfp4()}};
  for (const test::GgufTensor& tensor : file.tensors) {
    CAPTURE(tensor.name);
    const auto source = moe::WeightSource::find(checkpoint, tensor.name);
    REQUIRE(source.shape() == std::vector<Index>{kRows, kColumns});
    REQUIRE(source.format() == tensor.name);
    REQUIRE(source.bytes() == tensor.bytes.size());
    std::vector<float> values(static_cast<std::size_t>(source.size())), part(700), decoded = values;
    source.read_values(0, values);
    moe::decode_gguf(*moe::find_gguf_block(tensor.name), as_bytes(tensor.bytes), 0, decoded);
    for (std::size_t i = 0; i < values.size(); ++i)  // 0 may have a sign in MXFP4
      REQUIRE((values[i] == decoded[i] || (std::isnan(values[i]) && std::isnan(decoded[i]))));
    for (Index first = 0; first + 700 <= source.size(); first += 1 + first / 3) {
      source.read_values(first, part);
      REQUIRE(std::equal(part.begin(), part.end(), values.begin() + first, test::same_bits<float>));
    }
    const auto found = kept.find(tensor.name);
    REQUIRE(source.kept_format().has_value() == (found != kept.end()));
    if (found == kept.end()) {
      REQUIRE(source.codes() == Dtype::Other);
      REQUIRE_THROWS_AS(source.stored(0), std::invalid_argument);
      continue;
    }
    REQUIRE(source.kept_format() == found->second);
    std::vector<std::uint32_t> codes(kColumns - 5);
    source.stored_codes(kColumns + 5, codes);
    for (Index i = 0; i < source.size(); ++i) {
      const moe::StoredWeight weight = source.stored(i);
      REQUIRE(weight.zero == 0);
      if (i >= kColumns + 5 && i < 2 * kColumns)
        REQUIRE(weight.code == codes[static_cast<std::size_t>(i - kColumns - 5)]);
      const float value = moe::detail::value_of_code(found->second, weight.code) * weight.scale;
      REQUIRE(test::same_bits(value, values[static_cast<std::size_t>(i)]));
    }
  }
}

TEST_CASE("WeightSource: types of GGUF that are not read are refused by name", "[io][error]") {
  const TemporaryDirectory directory;
  test::write_bytes(directory / "x.gguf", rich_file().bytes());
  const auto checkpoint = moe::Checkpoint::open(directory / "x.gguf");
  const auto complaint_of = [&](const char* name) {
    return test::message_of<std::runtime_error>([&] { moe::WeightSource::find(checkpoint, name); });
  };
  REQUIRE(test::contains(complaint_of("other"), "tensor 'other' is IQ2_XXS, a type of which moe reads no values"));
  REQUIRE(test::contains(complaint_of("ints"), "tensor 'ints' is I32, expected a floating-point type"));
  REQUIRE(complaint_of("q").empty());
}
