// SPDX-License-Identifier: MIT
// Files that are none, and places that cannot be written.
#include <csignal>
#include <functional>
#include <string>
#include <vector>

#if defined(__unix__)
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "moe/io/file/csv.hpp"
#include "moe/io/file/npy.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using test::TemporaryDirectory;

const std::vector<double> kValues(100000, 0.125);
const std::vector<std::string> kNames{"x"};

/// A way to write kValues to a file.
struct Writer {
  const char* name;
  std::function<void(const std::filesystem::path&)> write;
};
const std::vector<Writer> kWriters{
    {"safetensors",
     [](const auto& path) {
       moe::SafetensorsWriter writer(path, {.tensors = {{"v", {moe::Dtype::F64, {100000}}}}});
       writer.write("v", std::span<const double>(kValues));
       writer.commit();
     }},
    {"npy", [](const auto& path) { moe::write_npy(path, std::span<const double>(kValues), {100000}); }},
    {"csv", [](const auto& path) {
       moe::write_csv(path, kNames, Eigen::Map<const moe::Matrix<double>>(kValues.data(), 100000, 1));
     }}};

#if defined(__unix__)
/// No file may grow beyond so many bytes while this lives: the closest to a full disk that needs no disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_{};
};
#endif

}  // namespace

TEST_CASE("Writers: a directory that is missing or in the way is named, and nothing is left", "[io][error]") {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "taken");
  for (const Writer& writer : kWriters) {
    CAPTURE(writer.name);
    REQUIRE_THROWS_WITH(writer.write(directory / "none/x"), ContainsSubstring("none/x': cannot open: No such file"));
    REQUIRE_THROWS_WITH(writer.write(directory / "taken"), ContainsSubstring("taken': cannot open: Is a directory"));
    REQUIRE_THROWS_AS(writer.write(directory / "taken"), std::runtime_error);
  }
  REQUIRE(directory.num_files() == 1);
}

TEST_CASE("Writers: replace a file, or a link but not what it points to", "[io]") {
  for (const Writer& writer : kWriters) {
    const TemporaryDirectory directory;
    CAPTURE(writer.name);
    test::write_bytes(directory / "shared", "old");
    std::filesystem::create_symlink("shared", directory / "x");
    writer.write(directory / "x");
    REQUIRE(test::read_bytes(directory / "shared") == "old");
    const std::string written = test::read_bytes(directory / "x");
    REQUIRE(written.size() > 400000);
    writer.write(directory / "shared");
    REQUIRE(test::read_bytes(directory / "shared") == written);
    REQUIRE(directory.num_files() == 2);
  }
}

#if defined(__unix__)
TEST_CASE("Writers: a disk that is full is an error, the old file stays and nothing else", "[io][error]") {
  for (const Writer& writer : kWriters)
    for (const rlim_t bytes : {rlim_t{0}, rlim_t{100}, rlim_t{300000}}) {
      const TemporaryDirectory directory;
      CAPTURE(writer.name, bytes);
      test::write_bytes(directory / "x", "old");
      std::string message;
      try {
        const FileSizeLimit limit(bytes);
        writer.write(directory / "x");
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      REQUIRE_THAT(message, ContainsSubstring("/x': cannot write") && ContainsSubstring("File too large"));
      REQUIRE(test::read_bytes(directory / "x") == "old");
      REQUIRE(directory.num_files() == 1);
    }
}

TEST_CASE("Writers: a directory without permission to write is named", "[io][error]") {
  if (geteuid() == 0) return;  // may write anywhere
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "locked");
  std::filesystem::permissions(directory / "locked", std::filesystem::perms::owner_read);
  for (const Writer& writer : kWriters)
    REQUIRE_THROWS_WITH(writer.write(directory / "locked/x"), ContainsSubstring("locked/x': cannot open: Permission"));
}

TEST_CASE("Readers: pipes, sockets' like, dangling and circular links are refused without waiting", "[io][error]") {
  const TemporaryDirectory directory;
  REQUIRE(mkfifo((directory / "pipe").c_str(), 0600) == 0);
  std::filesystem::create_symlink("nowhere", directory / "dangling");
  std::filesystem::create_symlink("circle", directory / "circle");
  for (const moe::FileAccess access : {moe::FileAccess::Map, moe::FileAccess::Read}) {
    const auto open = [&](const char* name) { moe::SafetensorsReader(directory / name, access); };
    REQUIRE_THROWS_WITH(open("pipe"), ContainsSubstring("pipe': is no regular file"));
    REQUIRE_THROWS_WITH(open("dangling"), ContainsSubstring("dangling': cannot open: No such file"));
    REQUIRE_THROWS_WITH(open("circle"), ContainsSubstring("circle': cannot open: Too many"));
    REQUIRE_THROWS_WITH(open(""), ContainsSubstring("is a directory"));
  }
  REQUIRE_THROWS_WITH(moe::read_npy<float>(directory / "pipe"), ContainsSubstring("is no regular file"));
}
#endif

TEST_CASE("Readers: a link to a file is read, an empty file is refused", "[io]") {
  const TemporaryDirectory directory;
  kWriters[0].write(directory / "x");
  std::filesystem::create_symlink("x", directory / "link");
  REQUIRE(moe::SafetensorsReader(directory / "link").tensors().size() == 1);
  test::write_bytes(directory / "empty", "");
  REQUIRE_THROWS_WITH(moe::SafetensorsReader(directory / "empty"), ContainsSubstring("has 0 bytes"));
  REQUIRE_THROWS_WITH(moe::read_npy<float>(directory / "empty"), ContainsSubstring("does not begin as a .npy file"));
}

TEST_CASE("Messages: text of files is cut between characters and holds no control characters", "[io]") {
  using moe::detail::shown;
  REQUIRE(shown("plain \u00e9") == "plain \u00e9");
  REQUIRE(shown(std::string("a\0\x1b[2J\x7f\r", 8)) == "a??[2J??");
  REQUIRE(shown("\u009b31m \u00a0") == "??31m \u00a0");
  REQUIRE(shown("abcdef", 6) == "abcdef");
  REQUIRE(shown("abcdef", 5) == "abcde...");
  REQUIRE(shown("abc\u20ac", 5) == "abc...");  // three bytes, of which two would be left
  REQUIRE(shown("\x80\x80\x80", 2) == "...");  // not UTF-8: cut further, never outside
}

TEST_CASE("SafetensorsReader: what is no file is a runtime_error that names it", "[io][error]") {
  const TemporaryDirectory directory;
  REQUIRE_THROWS_WITH(moe::SafetensorsReader(directory / "none"),
                      ContainsSubstring("none") && ContainsSubstring("No such file"));
  REQUIRE_THROWS_AS(moe::SafetensorsReader(directory / ""), std::runtime_error);
}
