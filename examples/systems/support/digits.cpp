// SPDX-License-Identifier: MIT
#include "digits.hpp"

#include <cmath>
#include <numeric>
#include <utility>

#include <moe/layer/structure.hpp>

#include "../../digits/data.hpp"
#include "cache.hpp"
#include "train.hpp"

namespace systems {

namespace {

constexpr moe::Index kHidden = 24, kBatch = 64;

/// Whole batches of all rows in a random order, anew every epoch.
class Epochs {
 public:
  Epochs(const Labelled& data, std::uint64_t seed) : data_(&data), seed_(seed), order_(data.labels.size()) {
    std::iota(order_.begin(), order_.end(), moe::Index{0});
  }

  std::uint64_t batches() const { return order_.size() / kBatch; }
  Labelled operator()(std::uint64_t update) {
    const std::uint64_t batch = update % batches();
    if (batch == 0) shuffle(update / batches());
    const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(batch) * kBatch;
    return rows_of(*data_, {begin, begin + kBatch});
  }

 private:
  void shuffle(std::uint64_t epoch) {
    const moe::RandomField random(moe::Purpose::Shuffle, seed_, epoch);
    for (std::size_t i = order_.size() - 1; i > 0; --i)
      std::swap(order_[i], order_[random.below(i + 1, static_cast<moe::Index>(i))]);
  }

  const Labelled* data_;
  std::uint64_t seed_;
  std::vector<moe::Index> order_;
};

void train_epochs(DigitsModel& model, std::uint64_t epochs, Training how, std::uint64_t seed) {
  Epochs batches(digits().train, seed);
  how.updates = epochs * batches.batches();
  train(model, how, seed, [&](std::uint64_t update) { return batches(update); });
}

void add_noise(DigitsModel& model, double size, std::uint64_t seed) {
  std::int64_t leaf = 0;
  moe::visit(
      [&](const std::string&, auto& weights) {
        const auto values = moe::parameter_span(weights);
        const moe::RandomField random(moe::Purpose::Noise, seed, leaf++);
        double squares = 0;
        for (const auto value : values) squares += static_cast<double>(value) * static_cast<double>(value);
        const double scale = size * std::sqrt(squares / static_cast<double>(values.size()));
        for (std::size_t i = 0; i < values.size(); ++i)
          if (values[i] != 0)
            values[i] += static_cast<std::remove_cvref_t<decltype(values[i])>>(
                scale * random.normal(static_cast<std::int64_t>(i)));
      },
      model.layer());
}

std::string_view bytes_of(const moe::Matrix<float>& rows) {
  return {reinterpret_cast<const char*>(rows.data()), static_cast<std::size_t>(rows.size()) * sizeof(float)};
}

Labelled labelled(const digits::Images& images) { return {images.pixels, images.labels}; }

}  // namespace

const Digits& digits() {
  static const Digits data = [] {
    const auto file = digits::load(MOE_EXAMPLE_DATA "/digits.csv");
    return Digits{labelled(file.train), labelled(file.test)};
  }();
  return data;
}

DigitsModel digits_model(const Page& page, const DigitsExperts& what, std::uint64_t seed) {
  const auto epochs = page.amount<std::uint64_t>(what.copies > 1 ? 30 : 40, 4);
  Hash hash;
  hash << "digits 1" << what.experts << what.copies << what.noise << epochs << bytes_of(digits().train.rows);
  DigitsModel model{ReluLayer(moe::LinearRouter::random(what.experts, kPixels, seed), moe::TopKGate{.k = 2},
                              moe::ExpertPool<ReluMlp>::random(what.experts, kPixels, kHidden, seed + 10)),
                    moe::Linear::random(kDigits, kPixels, seed + 20)};
  std::vector<moe::Index> ids;
  for (moe::Index i = 0; i < what.experts * what.copies; ++i) ids.push_back(i / what.copies);
  // The cache is asked for a model of the final size.
  DigitsModel final_model(moe::take_experts(model.layer(), ids), model.head());
  return cached(page, "digits" + std::to_string(std::ssize(ids)), seed, hash, final_model, [&](DigitsModel& out) {
    train_epochs(model, epochs, {.weight_decay = 0.05, .max_norm = 5, .balance = 0.05}, seed);
    out = model;
    if (what.copies == 1) return;
    out.layer() = moe::take_experts(model.layer(), ids);
    add_noise(out, what.noise, seed);
    train_epochs(out, page.amount<std::uint64_t>(5, 1), {.rate = 5e-4, .weight_decay = 0.05, .max_norm = 5},
                 seed + 100);
  });
}

}  // namespace systems
