// SPDX-License-Identifier: MIT
// The checker of reference vectors on a generated file of every family: passes as it is, and fails, or refuses the
// file, once anything in it is changed.
#include "conformance/family_cases.hpp"
#include "conformance/file.hpp"
#include "support/catch.hpp"

namespace {

/// The bytes of a file, and what its header says.
class Bytes {
 public:
  explicit Bytes(const std::filesystem::path& path) : path_(path) {
    std::ifstream stream(path, std::ios::binary);
    text_.assign(std::istreambuf_iterator<char>(stream), {});
    std::uint64_t length = 0;
    std::memcpy(&length, text_.data(), sizeof length);
    header_ = nlohmann::json::parse(text_.substr(8, length));
    data_ = 8 + length;
  }
  const nlohmann::json& header() const { return header_; }

  /// One number of a tensor, moved by a hundredth of the largest.
  void change(const std::string& name, std::size_t place) {
    const auto& tensor = header_[name];
    const std::size_t first = data_ + tensor["data_offsets"][0].get<std::size_t>();
    const std::size_t size = tensor["data_offsets"][1].get<std::size_t>() + data_ - first;
    const std::string type = tensor["dtype"];
    if (type == "F32") move<float>(first, size / 4, place);
    if (type == "F64") move<double>(first, size / 8, place);
    if (type == "I64") move<std::int64_t>(first, size / 8, place);
    if (type == "U8") text_[first + place % size] ^= 1;
  }
  /// Sets a number of a tensor to NaN, in F32.
  void poison(const std::string& name, std::size_t place) {
    const auto& offsets = header_[name]["data_offsets"];
    const std::size_t count = (offsets[1].get<std::size_t>() - offsets[0].get<std::size_t>()) / 4;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(text_.data() + data_ + offsets[0].get<std::size_t>() + place % count * 4, &nan, sizeof nan);
  }
  /// Writes the file with another header over the same data.
  void save(const nlohmann::json& header) const {
    test::write_bytes(path_, test::safetensors_bytes(header.dump(), text_.substr(data_)));
  }
  void save() const { test::write_bytes(path_, text_); }

 private:
  template <class T>
  void move(std::size_t first, std::size_t count, std::size_t place) {
    std::vector<T> values(count);
    std::memcpy(values.data(), text_.data() + first, count * sizeof(T));
    double largest = 0;
    for (const T value : values) largest = std::max(largest, std::abs(static_cast<double>(value)));
    T& value = values[place % count];
    value = static_cast<T>(std::is_integral_v<T> ? static_cast<double>(value) + 1
                                                 : static_cast<double>(value) + (largest > 0 ? 0.01 * largest : 1.0));
    std::memcpy(text_.data() + first, values.data(), count * sizeof(T));
  }

  std::filesystem::path path_;
  std::string text_;
  nlohmann::json header_;
  std::size_t data_ = 0;
};

check::Report checked(const std::filesystem::path& path) { return check::check_file(moe::Checkpoint::open(path)); }

/// Whether a file is found wrong: a comparison fails, or the file is refused with a message that is not empty.
bool is_found_wrong(const std::filesystem::path& path) {
  try {
    return !checked(path).passed();
  } catch (const std::invalid_argument& error) {
    return std::strlen(error.what()) > 0;
  } catch (const std::runtime_error& error) {
    return std::strlen(error.what()) > 0;
  }
}

bool is_of_run(const std::string& name) { return name[0] == 't' && name[1] >= '0' && name[1] <= '9'; }

}  // namespace

TEST_CASE("check_block: a file of every family and metadata value passes", "[io]") {
  for (const oracle::Case& one : oracle::all_cases(/*seed=*/1)) {
    const test::TemporaryDirectory directory;
    const auto path = directory / "case.safetensors";
    one.write(path);
    const check::Report report = checked(path);
    CAPTURE(one.name, report.json().dump(2));
    CHECK(report.passed());
  }
}

TEST_CASE("check_block: one changed number of any tensor of a run is found", "[io]") {
  for (const oracle::Case& one : oracle::small_cases(3)) {
    const test::TemporaryDirectory directory;
    const auto path = directory / "case.safetensors";
    one.write(path);
    const Bytes original(path);
    std::size_t place = 0;
    for (const auto& [name, tensor] : original.header().items()) {
      if (!is_of_run(name)) continue;
      Bytes changed = original;
      ++place;
      const std::size_t count = name.ends_with("cotangent") ? 400 : 1;  // that of a dropped token has no effect
      for (std::size_t i = 0; i < count; ++i) changed.change(name, place + i);
      changed.save();
      CAPTURE(one.name, name);
      CHECK(is_found_wrong(path));
    }
  }
}

TEST_CASE("check_block: a tensor that is missing, too many or of another shape is found", "[io][error]") {
  for (const oracle::Case& one : oracle::small_cases(4)) {
    const test::TemporaryDirectory directory;
    const auto path = directory / "case.safetensors";
    one.write(path);
    const Bytes original(path);
    for (const auto& [name, tensor] : original.header().items()) {
      if (name == "__metadata__") continue;
      const auto shape = tensor["shape"].get<std::vector<moe::Index>>();
      const bool is_one = std::all_of(shape.begin(), shape.end(), [](moe::Index extent) { return extent == 1; });
      nlohmann::json header = original.header();
      const nlohmann::json entry = header[name];
      CAPTURE(one.name, name);
      header.erase(name);  // another name for the same bytes, as a file has no holes
      header["stray"] = entry;
      original.save(header);
      CHECK(is_found_wrong(path));
      header.erase("stray");
      header[name] = entry;
      header[name]["shape"].push_back(1);
      original.save(header);
      if (!is_one) CHECK(is_found_wrong(path));
    }
  }
}

namespace {

/// What checking a file says, or "" if it is not refused.
std::string refusal(const std::filesystem::path& path) {
  try {
    checked(path);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

oracle::Case mixtral_case() {
  const oracle::Sizes sizes;
  return oracle::case_of(oracle::plain("mixtral", sizes, "gate.weight", true), sizes, {.gradients = true}, "");
}

}  // namespace

TEST_CASE("check_block: FP8 scales that are lost, or have a name of their own, are found", "[io][error]") {
  for (const oracle::Case& one : oracle::other_cases(/*seed=*/2)) {
    if (!one.name.ends_with(" fp8")) continue;
    const test::TemporaryDirectory directory;
    const auto path = directory / "case.safetensors";
    one.write(path);
    const Bytes original(path);
    nlohmann::json header = original.header();
    const std::string name = "model.layers.3.test.experts.1.up_proj.weight";
    header["elsewhere"] = header.at(name + "_scale_inv");
    header.erase(name + "_scale_inv");
    original.save(header);
    CHECK_THROWS_WITH(checked(path), Catch::Matchers::ContainsSubstring("'" + name + "_scale_inv' is missing"));
    header = original.header();
    header[name + "_scales"] = {{"dtype", "F32"}, {"shape", {0}}, {"data_offsets", {0, 0}}};
    original.save(header);
    CHECK_THROWS_WITH(checked(path), Catch::Matchers::ContainsSubstring("'" + name + "_scales'"));
    return;
  }
  FAIL("no case in FP8");
}

TEST_CASE("check_block: numbers that are none are refused, and named", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "case.safetensors";
  mixtral_case().write(path);
  const Bytes original(path);
  for (const auto& [name, tensor] : original.header().items()) {
    if (name == "__metadata__" || tensor["dtype"] != "F32") continue;
    Bytes changed = original;
    changed.poison(name, 3);
    changed.save();
    CAPTURE(name);
    CHECK(refusal(path).find(name) != std::string::npos);
  }
}

TEST_CASE("check_block: metadata that is missing or out of range is refused, and named", "[io][error]") {
  const test::TemporaryDirectory directory;
  const auto path = directory / "case.safetensors";
  mixtral_case().write(path);
  const Bytes original(path);
  for (const char* key : {"d_model", "d_ff", "n_experts", "top_k", "score_order"}) {
    nlohmann::json header = original.header();
    header["__metadata__"].erase(key);
    original.save(header);
    CHECK(refusal(path) == "metadata has no '" + std::string(key) + "'");
  }
  for (const char* key : {"d_model", "d_ff", "n_experts", "top_k"})
    for (const char* value : {"-1", "0", "1.5", "nan", "", "two", "7", "65536", "2147483648", "99999999999999999999"}) {
      nlohmann::json header = original.header();
      header["__metadata__"][key] = value;
      original.save(header);
      CAPTURE(key, value);
      if (std::string(key) != "d_ff" || std::string(value) != "7") CHECK(!refusal(path).empty());
    }
  for (const auto& [key, value] : std::multimap<std::string, std::string>{{"routed_scaling_factor", "inf"},
                                                                          {"norm_eps", "clamp_min"},
                                                                          {"norm_eps", "clamp_min 1e999"},
                                                                          {"expert_bias", "yes"},
                                                                          {"capacity", "5"},
                                                                          {"layer", "-3"},
                                                                          {"mode", "test"},

                                                                          {"token_counts", "0"},
                                                                          {"token_counts", "1,5,9"},
                                                                          {"grad_tokens", "1"},
                                                                          {"layout", "fused_out_in_concat_gate_up"},
                                                                          {"weight_dtype", "BF16"},
                                                                          {"zero_experts", "6"},
                                                                          {"zero_experts", "7"},
                                                                          {"n_group", "4"},
                                                                          {"compute_dtype", "BF16"},
                                                                          {"shared_expert", "mlp"},
                                                                          {"drop_policy", "none"}}) {
    nlohmann::json header = original.header();
    header["__metadata__"][key] = value;
    original.save(header);
    CAPTURE(key, value);
    CHECK(!refusal(path).empty());
  }
}
