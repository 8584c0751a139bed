// SPDX-License-Identifier: MIT
// Devices and pipes that give bytes for ever.
#if defined(__unix__)
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <string>
#include <thread>

#include "moe/io/checkpoint/checkpoint.hpp"
#include "moe/io/families/model_config.hpp"
#include "moe/io/file/csv.hpp"
#include "moe/io/file/npy.hpp"
#include "moe/io/file/parameters.hpp"
#include "support/catch.hpp"
#include "support/files.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using test::TemporaryDirectory;

struct Named {
  double value = 0;
  template <class F, class... Self>
  static void visit(F&& f, Self&... self) {
    f("value", self.value...);
  }
};

}  // namespace

TEST_CASE("Readers: devices without end are refused by every reader", "[io][error]") {
  for (const char* device : {"/dev/zero", "/dev/urandom", "/dev/null"}) {
    if (!std::filesystem::exists(device)) continue;
    CAPTURE(device);
    const auto refused = ContainsSubstring(std::string(device) + "': is no regular file, expected a file");
    for (const moe::FileAccess access : {moe::FileAccess::Map, moe::FileAccess::Read}) {
      Named none;
      REQUIRE_THROWS_WITH(moe::SafetensorsReader(device, access), refused);
      REQUIRE_THROWS_WITH(moe::Checkpoint::open(device, access), refused);
      REQUIRE_THROWS_WITH(moe::read_npy<float>(device, moe::Narrowing::Refuse, access), refused);
      REQUIRE_THROWS_WITH(moe::load_parameters(device, none, moe::Narrowing::Refuse, access), refused);
    }
    REQUIRE_THROWS_WITH(moe::read_csv(device), refused);
    REQUIRE_THROWS_WITH(moe::read_moe_config(device), refused);
    REQUIRE_THROWS_WITH(moe::read_moe_family(device), refused);
    const TemporaryDirectory directory;
    std::filesystem::create_symlink(device, directory / "model.safetensors.index.json");
    REQUIRE_THROWS_WITH(moe::Checkpoint::open(directory / ""), ContainsSubstring("is no regular file"));
  }
}

TEST_CASE("read_csv: a pipe is read to its end, and refused where there is none", "[io][error]") {
  const TemporaryDirectory directory;
  const auto pipe = directory / "pipe";
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  std::thread writer([&] { std::ofstream(pipe) << "x,y\n1,2\n"; });
  const moe::CsvTable table = moe::read_csv(pipe);
  writer.join();
  REQUIRE(table.values == moe::Matrix<double>{{1, 2}});
  auto* const handler = std::signal(SIGPIPE, SIG_IGN);
  writer = std::thread([&] {
    std::ofstream stream(pipe);
    while (stream << "1,2\n") continue;
  });
  REQUIRE_THROWS_WITH(moe::detail::TextFile("label", pipe, 1000000, moe::detail::TextFrom::FileOrPipe),
                      ContainsSubstring("label: is a pipe with more than 1000000 bytes"));
  writer.join();
  std::signal(SIGPIPE, handler);
}
#endif
