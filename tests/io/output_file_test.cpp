// SPDX-License-Identifier: MIT
// Who may read a file that is replaced, and what remains of programs that were killed while they wrote one.
#include "moe/io/file/output_file.hpp"

#include <string>
#include <vector>

#include "moe/io/file/csv.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/output_directory.hpp"
#include "moe/io/file/safetensors.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

#if defined(__unix__)
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace {

using moe::detail::OutputFile;
using test::TemporaryDirectory;

struct stat status_of(const std::filesystem::path& path) {
  struct stat status {};
  REQUIRE(stat(path.c_str(), &status) == 0);
  return status;
}
unsigned mode_of(const std::filesystem::path& path) { return status_of(path).st_mode & 07777; }

void write_text(const std::filesystem::path& path, const std::string& text) {
  OutputFile file("label", path);
  file.write(text);
  file.commit();
}

/// The one file of the directory that is not the target.
std::filesystem::path temporary_in(const TemporaryDirectory& directory, const std::string& target) {
  for (const auto& entry : std::filesystem::directory_iterator(directory / ""))
    if (entry.path().filename() != target) return entry.path();
  return {};
}

/// A process begins to write the file and is killed.
void be_killed_while_writing(const std::filesystem::path& path) {
  const pid_t child = fork();
  if (child == 0) {
    OutputFile file("label", path);
    file.write("half");
    std::raise(SIGKILL);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
}

}  // namespace

TEST_CASE("OutputFile: the mode of a file that is replaced is kept, and nobody else reads it meanwhile", "[io]") {
  for (const mode_t mode : {mode_t{0600}, mode_t{0640}, mode_t{0444}, mode_t{0755}}) {
    const TemporaryDirectory directory;
    CAPTURE(mode);
    test::write_bytes(directory / "x", "old");
    REQUIRE(chmod((directory / "x").c_str(), mode) == 0);
    {
      OutputFile file("label", directory / "x");
      file.write(std::string(100000, 'y'));
      REQUIRE((mode_of(temporary_in(directory, "x")) & 077) == 0);
      file.commit();
    }
    REQUIRE(mode_of(directory / "x") == mode);
    REQUIRE(test::read_bytes(directory / "x").size() == 100000);
    REQUIRE(directory.num_files() == 1);
  }
}

TEST_CASE("OutputFile: every writer keeps the mode", "[io]") {
  const TemporaryDirectory directory;
  const std::vector<float> values{1};
  const std::vector<std::string> names{"x"};
  for (const char* name : {"safetensors", "npy", "csv"}) {
    test::write_bytes(directory / name, "old");
    REQUIRE(chmod((directory / name).c_str(), 0600) == 0);
  }
  moe::SafetensorsWriter(directory / "safetensors", {}).commit();
  moe::write_npy(directory / "npy", std::span<const float>(values), {1});
  moe::write_csv(directory / "csv", names, moe::Matrix<double>::Ones(1, 1));
  for (const char* name : {"safetensors", "npy", "csv"}) REQUIRE(mode_of(directory / name) == 0600);
}

TEST_CASE("OutputFile: a new file has the mode that the process gives new files", "[io]") {
  const TemporaryDirectory directory;
  const mode_t before = umask(027);
  write_text(directory / "x", "new");
  umask(before);
  REQUIRE(mode_of(directory / "x") == 0640);
}

TEST_CASE("OutputFile: a link that is replaced gives the mode of what it pointed to", "[io]") {
  const TemporaryDirectory directory;
  test::write_bytes(directory / "secret", "old");
  REQUIRE(chmod((directory / "secret").c_str(), 0600) == 0);
  std::filesystem::create_symlink("secret", directory / "x");
  write_text(directory / "x", "new");
  REQUIRE(mode_of(directory / "x") == 0600);
  REQUIRE(test::read_bytes(directory / "secret") == "old");
}

TEST_CASE("OutputFile: the owner is kept where that is permitted", "[io]") {
  if (geteuid() != 0) return;  // may not give files away
  const TemporaryDirectory directory;
  test::write_bytes(directory / "x", "old");
  REQUIRE(chown((directory / "x").c_str(), 12345, 54321) == 0);
  REQUIRE(chmod((directory / "x").c_str(), 0640) == 0);
  write_text(directory / "x", "new");
  const struct stat status = status_of(directory / "x");
  REQUIRE(status.st_uid == 12345);
  REQUIRE(status.st_gid == 54321);
  REQUIRE((status.st_mode & 07777) == 0640);
}

TEST_CASE("OutputFile: what a killed program left is removed by the next save of that name", "[io]") {
  const TemporaryDirectory directory;
  test::write_bytes(directory / "x", "old");
  for (int i = 0; i < 3; ++i) be_killed_while_writing(directory / "x");
  be_killed_while_writing(directory / "y");
  REQUIRE(test::read_bytes(directory / "x") == "old");
  const std::vector<std::string> foreign{"x.moe-1234", "x.moe-1234567g", "x.1234.tmp", "xx.moe-12345678",
                                         "x.moe-123456789"};
  for (const std::string& name : foreign) test::write_bytes(directory / name, "foreign");
  std::filesystem::create_directory(directory / "x.moe-00000000");
  write_text(directory / "x", "new");
  REQUIRE(test::read_bytes(directory / "x") == "new");
  REQUIRE(directory.num_files() == 1 + foreign.size() + 2);  // and what was left of y, and the directory
  for (const std::string& name : foreign) REQUIRE(test::read_bytes(directory / name) == "foreign");
}

TEST_CASE("OutputFile: what another program is writing is left alone", "[io]") {
  const TemporaryDirectory directory;
  OutputFile first("label", directory / "x");
  first.write("first");
  {
    OutputFile second("label", directory / "x");
    REQUIRE(directory.num_files() == 2);
    second.write("second");
    second.commit();
  }
  REQUIRE(test::read_bytes(directory / "x") == "second");
  REQUIRE(directory.num_files() == 2);
  first.commit();
  REQUIRE(test::read_bytes(directory / "x") == "first");
  REQUIRE(directory.num_files() == 1);
}

TEST_CASE("lock_made: what somebody else has locked or removed is not ours, what cannot be locked is", "[io]") {
  const TemporaryDirectory directory;
  const auto path = directory / "x";
  const auto opened = [&](int flags) { return open(path.c_str(), flags | O_CLOEXEC); };
  std::filesystem::create_directory(path);
  const int first = opened(O_RDONLY), second = opened(O_RDONLY);
  REQUIRE(moe::detail::lock_made(first, path));
  REQUIRE_FALSE(moe::detail::lock_made(second, path));
#if defined(O_PATH)
  const int unlockable = opened(O_PATH);  // EBADF, as for directories of some network file systems
  REQUIRE(moe::detail::lock_made(unlockable, path));
  close(unlockable);
#endif
  close(first);
  std::filesystem::remove(path);
  REQUIRE_FALSE(moe::detail::lock_made(second, path));
  std::filesystem::create_directory(path);  // another one of that name
  REQUIRE_FALSE(moe::detail::lock_made(second, path));
  close(second);
}

#if defined(__has_feature)
#if __has_feature(undefined_behavior_sanitizer)
#define MOE_TEST_NEEDS_FILES  // which opens a pipe to look at an object, and takes what it cannot read for broken
#endif
#endif
#ifndef MOE_TEST_NEEDS_FILES
TEST_CASE("OutputDirectory: one that cannot be opened and locked is removed", "[io][error]") {
  const TemporaryDirectory directory;
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none{0, before.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  bool fails = false;
  try {
    const moe::detail::OutputDirectory output("label", directory / "x");
  } catch (const std::runtime_error&) {
    fails = true;
  }
  setrlimit(RLIMIT_NOFILE, &before);
  REQUIRE(fails);
  REQUIRE(directory.num_files() == 0);
}
#endif

#endif
