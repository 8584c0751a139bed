// SPDX-License-Identifier: MIT
// Files that another program shortens while they are open.
#include <filesystem>
#include <span>
#include <vector>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using test::TemporaryDirectory;

/// A parameter that shortens a file, if it has one, when it is set.
struct ShrinkingNumber {
  double value = 0;
  std::filesystem::path path = {};

  std::vector<moe::Index> shape() const { return {}; }
  std::span<double> span() { return {&value, 1}; }
  std::span<const double> span() const { return {&value, 1}; }
  void read(std::span<double> values) const { values[0] = value; }
  void write(std::span<const double> values) {
    value = values[0];
    if (!path.empty()) std::filesystem::resize_file(path, 100);
  }
};
struct Shrinking {
  ShrinkingNumber first, second;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("first", self.first...);
    f("second", self.second...);
  }
};

}  // namespace

TEST_CASE("Readers: a file that shrinks does not harm what has been read", "[io]") {
  const TemporaryDirectory directory;
  const std::vector<double> values(100000, 0.125);
  test::write_tensors(directory / "x", {{"v", moe::Dtype::F64, {100000}, test::bytes_of(values)}});
  const moe::Checkpoint checkpoint = moe::Checkpoint::open(directory / "x", moe::FileAccess::Read);
  std::filesystem::resize_file(directory / "x", 10);
  REQUIRE(moe::read_all<double>(checkpoint.at("v")) == values);
}

TEST_CASE("load_parameters: a file that shrinks meanwhile is an error where it is mapped, none where it is read",
          "[io][error]") {
  for (const moe::FileAccess access : {moe::FileAccess::Map, moe::FileAccess::Read}) {
    const TemporaryDirectory directory;
    Shrinking object{{1, {}}, {2, {}}};
    moe::save_parameters(directory / "x", object);
    object = {{0, directory / "x"}, {0, {}}};
    const auto load = [&] { moe::load_parameters(directory / "x", object, moe::Narrowing::Refuse, access); };
    if (access == moe::FileAccess::Read) {
      load();
      REQUIRE((object.first.value == 1 && object.second.value == 2));
    } else if (moe::SafetensorsReader(directory / "x").view("first").size() == 1) {
      REQUIRE_THROWS_WITH(load(), ContainsSubstring("the file has become shorter"));
      REQUIRE(object.first.value == 0);
    }
  }
}
