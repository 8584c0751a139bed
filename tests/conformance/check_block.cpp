// SPDX-License-Identifier: MIT
// check_block FILE.safetensors [--json]: builds the MoE block, or the router, that the metadata of a file of reference
// vectors describes, runs it on every token count in the file and compares all that the file holds: logits, chosen
// experts, weights, outputs, gradients and losses. Exits with 0 if everything is within its tolerance, 1 if something
// is not, or is in the file but was not compared, 2 if the file is broken or not understood.
#include <cstring>

#include "file.hpp"

namespace {

int run(const std::string& path, bool json) {
  const moe::Checkpoint file = moe::Checkpoint::open(path);
  const check::Report report = check::check_file(file);
  if (json) {
    nlohmann::json result = report.json();
    result["file"] = path;
    result["case"] = check::Facts(file.metadata()).text("case", "");
    std::printf("%s\n", result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    report.print();
    const check::Line& worst = report.worst();
    std::printf("%s: %s, worst %s: error %.2e, tolerance %.1e\n", path.c_str(), report.passed() ? "passed" : "FAILED",
                worst.name.c_str(), worst.error, worst.tolerance);
  }
  return report.passed() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::string path;
  bool json = false, understood = true;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0)
      json = true;
    else if (argv[i][0] != '-' && path.empty())
      path = argv[i];
    else
      understood = false;
  }
  if (path.empty() || !understood) {
    std::fprintf(stderr, "usage: check_block FILE.safetensors [--json]\n");
    return 2;
  }
  try {
    return run(path, json);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "check_block: %s: %s\n", path.c_str(), error.what());
    const nlohmann::json result = {{"file", path}, {"passed", false}, {"error", error.what()}};
    if (json) std::printf("%s\n", result.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return 2;
  }
}
