// SPDX-License-Identifier: MIT
// Directories of models written anew with some tensors replaced: what changes, what does not, and what is refused.
#include "moe/io/checkpoint/rewrite_checkpoint.hpp"

#include <numeric>

#include "moe/io/file/json_text.hpp"
#include "support/catch.hpp"
#include "support/checkpoints.hpp"
#include "support/text.hpp"

#if defined(__unix__)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

namespace {

using moe::CheckpointEdit;
using moe::Dtype;
using moe::TensorGroup;
using test::contains;

/// A model in one file, with a tensor of a type that is not computed with and one that is empty.
class Source {
 public:
  Source() {
    std::filesystem::create_directory(path());
    const std::string header =
        R"({"__metadata__":{"made":"by hand"},"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
        R"("e":{"dtype":"I64","shape":[0,4],"data_offsets":[12,12]},)"
        R"("s":{"dtype":"F8_E8M0","shape":[5],"data_offsets":[12,17]},)"
        R"("b":{"dtype":"BF16","shape":[2,2],"data_offsets":[17,25]}})";
    std::string data(25, '\0');
    std::iota(data.begin(), data.end(), '\1');
    test::write_bytes(path() / "model.safetensors", test::safetensors_bytes(header, data));
    test::write_bytes(path() / "config.json", R"({"z": 1.0, "a": {"k": 4}, "big": 12345678901234567890, "x": 1e-05})");
    test::write_bytes(path() / "vocabulary.txt", "words");
    test::write_bytes(path() / "other.safetensors", test::safetensors_bytes("{}", ""));
  }
  std::filesystem::path path() const { return directory_ / "source"; }
  std::filesystem::path out() const { return directory_ / "out"; }
  std::size_t num_files() const { return directory_.num_files(); }
  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_ / ""))
      names.insert(entry.path().filename().string());
    return names;
  }

  std::string complaint(const CheckpointEdit& edit) const {
    try {
      (void)moe::rewrite_checkpoint(moe::Checkpoint::open(path()), out(), edit);
    } catch (const std::exception& error) {
      CHECK(num_files() == 1);
      return error.what();
    }
    return "";
  }

 private:
  test::TemporaryDirectory directory_;
};

std::string bytes_of(const moe::Checkpoint& checkpoint, const std::string& name) {
  const auto bytes = checkpoint.at(name).bytes;
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::span<const std::byte> span_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TensorGroup group_of(std::set<std::string> replaced, const std::string& name,
                     std::function<void(moe::TensorSink&)> write) {
  return {std::move(replaced), {{name, {.dtype = Dtype::U8, .shape = {2, 3}}}}, std::move(write)};
}

}  // namespace

TEST_CASE("rewrite_checkpoint: groups replace tensors, others and their types stay", "[io]") {
  const Source source;
  const auto before = moe::Checkpoint::open(source.path());
  CheckpointEdit edit;
  edit.groups.push_back(group_of({"b"}, "b.codes", [](moe::TensorSink& to) {
    to.write("b.codes", 4, span_of("ef"));  // in any order
    to.write("b.codes", 0, span_of("abcd"));
  }));
  edit.groups.push_back(group_of({}, "more", [](moe::TensorSink& to) { to.write("more", span_of("ABCDEF")); }));
  edit.groups.back().tensors.emplace("nothing", moe::TensorInfo{.dtype = Dtype::F32, .shape = {0}});
  edit.config = [](nlohmann::ordered_json& json) {
    json["a"]["k"] = 2;
    json["new"] = "field";
  };
  const auto result = moe::rewrite_checkpoint(before, source.out(), edit);
  const auto after = moe::Checkpoint::open(source.out());
  CHECK(after.names() == std::vector<std::string>{"a", "b.codes", "e", "more", "nothing", "s"});
  for (const char* name : {"a", "e", "s"}) {
    CHECK(bytes_of(after, name) == bytes_of(before, name));
    CHECK(after.at(name).type() == before.at(name).type());
    CHECK(after.at(name).shape == before.at(name).shape);
  }
  CHECK(bytes_of(after, "b.codes") == "abcdef");
  CHECK(bytes_of(after, "more") == "ABCDEF");
  CHECK(after.metadata() == moe::Metadata{{"format", "pt"}, {"made", "by hand"}});
  CHECK(after.ignored().empty());
  CHECK(result.total_size == 12 + 5 + 6 + 6);
  CHECK(result.left_out == std::vector<std::string>{"other.safetensors"});
  CHECK(test::read_bytes(source.out() / "vocabulary.txt") == "words");
  CHECK(test::read_bytes(source.out() / "config.json") ==
        "{\n  \"z\": 1.0,\n  \"a\": {\n    \"k\": 2\n  },\n  \"big\": 12345678901234567890,\n  \"x\": 1e-05,\n"
        "  \"new\": \"field\"\n}\n");
  CHECK(result.files.size() == 6);
  for (const std::string& file : result.files) CHECK(std::filesystem::exists(source.out() / file));
}

TEST_CASE("rewrite_checkpoint: without changes it is a copy, also into an empty directory", "[io]") {
  const Source source;
  std::filesystem::create_directory(source.out());
  const auto before = moe::Checkpoint::open(source.path());
  const auto result = moe::rewrite_checkpoint(before, source.out() / "", {}, {.other_files = moe::OtherFiles::Leave});
  const auto after = moe::Checkpoint::open(source.out());
  CHECK(after.names() == before.names());
  for (const std::string& name : before.names()) CHECK(bytes_of(after, name) == bytes_of(before, name));
  CHECK(result.left_out == std::vector<std::string>{"other.safetensors", "vocabulary.txt"});
  CHECK(moe::detail::parse_json("", test::read_bytes(source.out() / "config.json")) ==
        moe::detail::parse_json("", test::read_bytes(source.path() / "config.json")));
}

TEST_CASE("rewrite_checkpoint: groups that cannot be are refused, and leave nothing", "[io][error]") {
  const Source source;
  const auto complaint = [&](std::vector<TensorGroup> groups) {
    return source.complaint({.groups = std::move(groups)});
  };
  const auto fill = [](moe::TensorSink& to) { to.write("x", span_of("abcdef")); };
  CHECK(contains(complaint({group_of({"c"}, "x", fill)}), "tensor 'c' is missing"));
  CHECK(contains(complaint({group_of({"b"}, "x", fill), group_of({"b"}, "y", fill)}), "tensor 'b' is replaced twice"));
  CHECK(contains(complaint({group_of({"b"}, "a", fill)}), "tensor 'a' is there already"));
  CHECK(contains(complaint({group_of({"b"}, "x", fill), group_of({"a"}, "x", fill)}), "tensor 'x' is there already"));
  CHECK(contains(complaint({group_of({}, "x", nullptr)}), "tensor 'x' has not been written"));
  CHECK(contains(complaint({group_of({}, "x", [](auto& to) { to.write("x", 1, span_of("abcde")); })}),
                 "tensor 'x' has not been written"));
  CHECK(contains(complaint({group_of({}, "x", [](auto& to) { to.write("x", 3, span_of("abcd")); })}),
                 "4 bytes from 3 on of tensor 'x', which has 6 bytes"));
  CHECK(contains(complaint({group_of({}, "x",
                                     [](auto& to) {
                                       to.write("x", 0, span_of("abc"));
                                       to.write("x", 2, span_of("cdef"));
                                     })}),
                 "bytes 2 to 6 of tensor 'x' are written twice"));
  CHECK(contains(complaint({group_of({}, "x",
                                     [](auto& to) {  // twice the same half
                                       to.write("x", 3, span_of("abc"));
                                       to.write("x", 3, span_of("abc"));
                                     })}),
                 "bytes 3 to 6 of tensor 'x' are written twice"));
  CHECK(contains(complaint({group_of({}, "x", [](auto& to) { to.write("y", span_of("abcdef")); })}),
                 "tensor 'y' was not announced"));
  CHECK(contains(complaint({group_of({}, "x", [](auto&) { throw std::runtime_error("mine"); })}), "mine"));
  CHECK(contains(complaint({{{}, {{"x", {.dtype = Dtype::Other, .shape = {2}, .other = "U4"}}}, fill}}),
                 "tensor 'x' is 'U4', expected a type of moe::Dtype, or another whose size is known"));
  CHECK(contains(complaint({{{}, {{"x", {.dtype = Dtype::Other, .shape = {3}, .other = "F4"}}}, fill}}),
                 "a size of whole bytes"));
}

TEST_CASE("rewrite_checkpoint: what is no model's directory is refused", "[io][error]") {
  const Source source;
  CHECK_THROWS_AS(moe::rewrite_checkpoint(moe::Checkpoint::open(source.path() / "model.safetensors"), source.out(), {}),
                  std::invalid_argument);
  test::write_bytes(source.path() / "config.json", "{1}");
  CHECK(contains(source.complaint({}), "config.json': not JSON"));
  std::filesystem::remove(source.path() / "config.json");
  CHECK(contains(source.complaint({.config = [](nlohmann::ordered_json&) {}}), "config.json"));
  (void)moe::rewrite_checkpoint(moe::Checkpoint::open(source.path()), source.out(), {});
  CHECK_FALSE(std::filesystem::exists(source.out() / "config.json"));
}

#if defined(__unix__)

TEST_CASE("rewrite_checkpoint: a full disk leaves nothing", "[io][error]") {
  const Source source;
  TensorGroup group{{}, {{"x", {.dtype = Dtype::U8, .shape = {50000}}}}, [](moe::TensorSink& to) {
                      to.write("x", span_of(std::string(50000, 'x')));
                    }};
  const CheckpointEdit edit{.groups = {group}};
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t bytes : {rlim_t{100}, rlim_t{400}, rlim_t{20000}}) {  // in a copied file, and in that of the group
    const rlimit limit{bytes, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message = source.complaint(edit);
    setrlimit(RLIMIT_FSIZE, &before);
    CAPTURE(bytes, message);
    CHECK(contains(message, "File too large"));
  }
  std::signal(SIGXFSZ, handler);
}

TEST_CASE("rewrite_checkpoint: a program that is killed leaves no directory of that name", "[io][error]") {
  const Source source;
  const auto before = moe::Checkpoint::open(source.path());
  const pid_t child = fork();
  if (child == 0) {
    const CheckpointEdit edit{.groups = {group_of({}, "x", [](moe::TensorSink&) { std::raise(SIGKILL); })}};
    (void)moe::rewrite_checkpoint(before, source.out(), edit);
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  REQUIRE(source.num_files() == 2);
  CHECK_FALSE(source.names().contains("out"));
  for (const std::string& name : source.names())
    if (name != "source") CHECK_FALSE(std::filesystem::exists(source.path() / ".." / name / "config.json"));
  (void)moe::rewrite_checkpoint(before, source.out(), {});
  CHECK(source.names() == std::set<std::string>{"out", "source"});
}

#endif
