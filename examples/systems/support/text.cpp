// SPDX-License-Identifier: MIT
#include "text.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <numbers>
#include <numeric>
#include <string_view>

#include "cache.hpp"

namespace systems {

namespace {

constexpr moe::Index kBatch = 256;

moe::Index number_of(char c) { return c >= 32 && c < 127 ? c - 32 : c == '\n' ? 95 : 96; }

std::vector<moe::Index> numbers_of(const std::string& characters) {
  std::vector<moe::Index> numbers;
  std::ranges::transform(characters, std::back_inserter(numbers), number_of);
  return numbers;
}

void append(const std::filesystem::path& path, std::string& to) {
  std::ifstream file(path);
  if (!file) moe::fail_environment("systems::text: cannot open ", path.string());
  to.append(std::istreambuf_iterator<char>(file), {});
}

std::string read_prose() {
  std::string prose;
  for (const char* name : {"GPL-3", "GPL-2", "LGPL-2.1", "Apache-2.0", "MPL-2.0", "GFDL-1.3", "Artistic", "MPL-1.1"})
    append(std::filesystem::path("/usr/share/common-licenses") / name, prose);
  return prose;
}

const moe::Matrix<float>& embeddings() {
  static const moe::Matrix<float> table = [] {
    const moe::RandomField random(moe::Purpose::User, 5);
    moe::Matrix<float> all(kCharacters, kEmbedding);
    for (moe::Index i = 0; i < all.rows(); ++i)
      for (moe::Index j = 0; j < all.cols(); ++j)
        all(i, j) = static_cast<float>(random.normal(i, j) / std::sqrt(static_cast<double>(kEmbedding)));
    return all;
  }();
  return table;
}

/// A place of either kind, held-out ones apart, where the context is of that kind, too.
Labelled random_places(std::uint64_t seed, std::uint64_t update) {
  const moe::RandomField random(moe::Purpose::Shuffle, seed, update);
  const auto last = static_cast<std::uint64_t>(std::ssize(text().prose) - Text::kHeldOut - kContext);
  std::array<std::vector<moe::Index>, 2> places;
  for (moe::Index i = 0; i < kBatch; ++i)
    places[static_cast<std::size_t>(i % 2)].push_back(kContext + static_cast<moe::Index>(random.below(last, i)));
  Labelled prose = text_at(text().prose, places[0]);
  const Labelled code = text_at(text().code, places[1]);
  prose.rows.conservativeResize(kBatch, Eigen::NoChange);
  prose.rows.bottomRows(code.size()) = code.rows;
  prose.labels.insert(prose.labels.end(), code.labels.begin(), code.labels.end());
  return prose;
}

constexpr std::array<const char*, 8> kKinds = {"space", "line", "a-z", "A-Z", "0-9", ".,;:", "(){}[]<>", "other"};

std::size_t kind_of(moe::Index number) {
  const char c = number == 95 ? '\n' : number == 96 ? '\t' : static_cast<char>(number + 32);
  const auto is_in = [c](std::string_view set) { return set.find(c) != std::string_view::npos; };
  if (c == ' ') return 0;
  if (c == '\n') return 1;
  if (c >= 'a' && c <= 'z') return 2;
  if (c >= 'A' && c <= 'Z') return 3;
  if (c >= '0' && c <= '9') return 4;
  return is_in(".,;:") ? 5 : is_in("(){}[]<>") ? 6 : 7;
}

/// [kTextExperts, kinds]: share of the choices of each kind that an expert serves, over what is held out.
moe::Matrix<double> shares(const TextModel& model, const std::vector<moe::Index>& characters) {
  const Labelled data = text_from(characters, -Text::kHeldOut, Text::kHeldOut);
  moe::Workspace ws;
  moe::Matrix<float> out(data.size(), kTextDim);
  model.layer().layer().forward(data.rows, out, ws);
  moe::Matrix<double> share = moe::Matrix<double>::Zero(kTextExperts, std::ssize(kKinds));
  const auto first = characters.size() - static_cast<std::size_t>(Text::kHeldOut);
  for (moe::Index t = 0; t < data.size(); ++t)
    for (const moe::Index expert : ws.routing.experts(t))
      share(expert, static_cast<moe::Index>(kind_of(characters[first + static_cast<std::size_t>(t) - 1]))) += 1;
  for (moe::Index k = 0; k < share.cols(); ++k) share.col(k) /= std::max(1.0, share.col(k).sum());
  return share;
}

}  // namespace

const Text& text() {
  static const Text data = [] {
    const std::string prose = read_prose();
    std::string code;
    append(MOE_EXAMPLE_DATA "/headers.txt", code);
    const std::size_t size = std::min(prose.size(), code.size());
    return Text{numbers_of(prose.substr(0, size)), numbers_of(code.substr(0, size))};
  }();
  return data;
}

Labelled text_at(const std::vector<moe::Index>& characters, const std::vector<moe::Index>& places) {
  Labelled out{moe::Matrix<float>(std::ssize(places), kTextDim), {}};
  for (std::size_t i = 0; i < places.size(); ++i) {
    for (moe::Index k = 0; k < kContext; ++k)
      out.rows.row(static_cast<moe::Index>(i)).segment(k * kEmbedding, kEmbedding) =
          embeddings().row(characters[static_cast<std::size_t>(places[i] - kContext + k)]);
    out.labels.push_back(characters[static_cast<std::size_t>(places[i])]);
  }
  return out;
}

Labelled text_from(const std::vector<moe::Index>& characters, moe::Index first, moe::Index count) {
  std::vector<moe::Index> places(static_cast<std::size_t>(count));
  std::iota(places.begin(), places.end(), first < 0 ? std::ssize(characters) + first : first);
  return text_at(characters, places);
}

Labelled trained_text(moe::Index per_kind) {
  Labelled all{moe::Matrix<float>(2 * per_kind, kTextDim), {}};
  for (const auto* kind : {&text().prose, &text().code}) {
    const moe::Index trained = std::ssize(*kind) - Text::kHeldOut - kContext;
    std::vector<moe::Index> places;
    for (moe::Index i = 0; i < per_kind; ++i) places.push_back(kContext + i * trained / per_kind);
    const Labelled of_kind = text_at(*kind, places);
    all.rows.middleRows(std::ssize(all.labels), per_kind) = of_kind.rows;
    all.labels.insert(all.labels.end(), of_kind.labels.begin(), of_kind.labels.end());
  }
  return all;
}

const Labelled& held_out_text() {
  static const Labelled both = [] {
    constexpr auto kHeldOut = Text::kHeldOut;
    Labelled all = text_from(text().prose, -kHeldOut, kHeldOut);
    const Labelled code = text_from(text().code, -kHeldOut, kHeldOut);
    all.rows.conservativeResize(2 * kHeldOut, Eigen::NoChange);
    all.rows.bottomRows(kHeldOut) = code.rows;
    all.labels.insert(all.labels.end(), code.labels.begin(), code.labels.end());
    return all;
  }();
  return both;
}

TextModel text_model(const Page& page, std::uint64_t seed) {
  const auto updates = page.amount<std::uint64_t>(3000, 60);
  const Training how{.updates = updates, .weight_decay = 0.01, .max_norm = 1, .balance = 0.02};
  Hash hash;
  hash << "text 1" << how;
  for (const auto* kind : {&text().prose, &text().code})
    hash << std::string_view(reinterpret_cast<const char*>(kind->data()), kind->size() * sizeof(moe::Index));
  TextModel model{{ReluLayer(moe::LinearRouter::random(kTextExperts, kTextDim, seed), moe::TopKGate{.k = 2},
                             moe::ExpertPool<ReluMlp>::random(kTextExperts, kTextDim, kTextHidden, seed + 10)),
                   moe::ScaledIdentity{kTextDim}},
                  moe::Linear::random(kCharacters, kTextDim, seed + 20)};
  return cached(page, "text", seed, hash, std::move(model), [&](TextModel& out) {
    const auto report = [&](std::uint64_t update, double loss) {
      if (update % 200 == 0)
        std::fprintf(stderr, "text, seed %d: update %d of %d, %.2f bits per character\n", static_cast<int>(seed),
                     static_cast<int>(update), static_cast<int>(updates), loss / std::numbers::ln2);
    };
    train(
        out, how, seed, [&](std::uint64_t update) { return random_places(seed, update); }, report);
  });
}

double bits_per_character(const TextModel& model, const Labelled& data) {
  moe::Matrix<float> none;
  return loss_of(data, outputs(model, data.rows), {}, none) / std::numbers::ln2;
}

double held_out_bits(const TextModel& model) { return bits_per_character(model, held_out_text()); }

void draw_experts(const TextModel& model, const std::string& path) {
  moe::Matrix<double> share(kTextExperts, 2 * std::ssize(kKinds));
  share << shares(model, text().prose), shares(model, text().code);
  std::vector<moe::Index> order(static_cast<std::size_t>(kTextExperts)), favourite = order;
  std::iota(order.begin(), order.end(), moe::Index{0});
  for (const moe::Index e : order) share.row(e).maxCoeff(&favourite[static_cast<std::size_t>(e)]);
  std::ranges::stable_sort(order, {}, [&](moe::Index e) { return favourite[static_cast<std::size_t>(e)]; });

  std::ofstream script(path + ".gp");
  script << "set terminal svg size 900,520 font 'sans-serif,13' background '#ffffff'\nset output '" << path << "'\n"
         << "$share << END\n";
  for (std::size_t row = 0; row < order.size(); ++row)
    for (moe::Index k = 0; k < share.cols(); ++k) script << k << ' ' << row << ' ' << share(order[row], k) << '\n';
  script << "END\nset title 'Share of the choices that an expert serves, by the character read last (left: prose, "
            "right: code)'\nset ylabel 'expert'\nunset key\nset border 0\nset tics scale 0\nset yrange [15.5:-0.5]\n"
            "set xrange [-0.5:15.5]\nset xtics rotate by -45 noenhanced (";
  for (std::size_t k = 0; k < 2 * kKinds.size(); ++k)
    script << (k ? ", '" : "'") << kKinds[k % kKinds.size()] << "' " << k;
  script << ")\nset ytics (";
  for (std::size_t row = 0; row < order.size(); ++row) script << (row ? ", '" : "'") << order[row] << "' " << row;
  script
      << ")\nset arrow from 7.5,-0.5 to 7.5,15.5 nohead front lc '#333333'\nset cbrange [0:*]\n"
         "set palette defined (0 '#f7fbff', 0.5 '#6baed6', 1 '#08306b')\nplot $share using 1:2:3 with image pixels\n";
  script.close();
  if (!script) moe::fail_environment("systems::draw_experts: cannot write ", path, ".gp");
}

}  // namespace systems
