// SPDX-License-Identifier: MIT
// The models that pages start from, and how good they are: handwritten digits by 16 experts, by the same upcycled to
// 32, and next characters of prose and code by 16 experts, two per token. Trained once per seed and kept in the cache.
// The gate is that of Shazeer et al., "Outrageously large neural networks" (arXiv:1701.06538), without its noise.
// Digits are easy: to tell bit widths or orders of caching apart, use text. The picture shows what its experts take.
#include "support/digits.hpp"
#include "support/text.hpp"
#include "support/train.hpp"

int main(int argc, char** argv) {
  return systems::run_page(argc, argv, {"fixtures", "1701.06538", "moe/gate/top_k.hpp"}, [](systems::Page& page) {
    const systems::Labelled& test = systems::digits().test;
    const auto digits = page.over_seeds([&](std::uint64_t seed) -> std::vector<double> {
      const auto small = systems::digits16(page, seed), large = systems::digits32(page, seed);
      return {systems::accuracy(systems::outputs(small, test.rows), test.labels),
              systems::accuracy(systems::outputs(large, test.rows), test.labels)};
    });
    page.table({"digits", "accuracy"});
    page.row("16 experts of 24 units", {digits[0]});
    page.row("upcycled to 32", {digits[1]});

    constexpr auto kHeldOut = systems::Text::kHeldOut;
    const systems::Labelled prose = systems::text_from(systems::text().prose, -kHeldOut, kHeldOut);
    const systems::Labelled code = systems::text_from(systems::text().code, -kHeldOut, kHeldOut);
    const auto text = page.over_seeds([&](std::uint64_t seed) -> std::vector<double> {
      const systems::TextModel model = systems::text_model(page, seed);
      const double of_prose = systems::bits_per_character(model, prose), of_code = bits_per_character(model, code);
      return {of_prose, of_code, (of_prose + of_code) / 2};
    });
    page.table({"text, bits per character", "prose", "code"});
    page.row("16 experts of 64 units", {text[0], text[1]});
    systems::draw_experts(systems::text_model(page, page.first_seed()), "text.svg");

    page.expect("accuracy on digits, 16 experts", digits[0], {.low = 0.955});
    page.expect("accuracy on digits, 32 experts", digits[1], {.low = 0.955});
    page.claim("bits per character of held-out text", text[2], {.low = 2.2, .high = 2.8});
  });
}
