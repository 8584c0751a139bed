// SPDX-License-Identifier: MIT
// The checker on the two levels of tensor2tensor's top 2.
#include "conformance/variant_file.hpp"
#include "support/catch.hpp"

using test::change;
using test::line_of;
using test::VariantFile;

TEST_CASE("check_block: the losses of two levels are compared, one by one and scaled", "[io]") {
  for (const char* variant : {"hier_all", "hier_none", "hier_all_eval"})
    for (const char* loss : {"loss_outer", "loss_inner", "loss_scaled"}) {
      VariantFile file("two_levels");
      CHECK(file.check().passed());
      const std::string name = std::string(variant) + "." + loss;
      change(file.tensors.at(name), 0);
      const auto report = file.check();
      CAPTURE(name);
      CHECK(!report.passed());
      CHECK(line_of(report, variant).find(loss) != std::string::npos);
    }
  VariantFile file("two_levels");  // another coefficient than the usual 0.01
  auto& parameters = file.metadata.at("variant.hier_all_eval");
  parameters.replace(parameters.rfind('}'), 1, R"(, "loss_coef": 0.02})");
  CHECK(line_of(file.check(), "hier_all_eval").find("loss_scaled") != std::string::npos);
}
