// SPDX-License-Identifier: MIT
// Digits in bad weather: what a camera might make of them, and how close a restored image is to the one that was taken.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/core/matrix.hpp>
#include <moe/core/random.hpp>

#include "digits.hpp"
#include "regression.hpp"

namespace systems {

enum class Weather { Noise, Blur, Rain, Snow, Fog };
inline constexpr std::array kWeatherNames = {"noise", "blur", "rain", "snow", "fog"};
inline constexpr std::array kSeenWeather = {Weather::Noise, Weather::Blur, Weather::Rain};  // in training

inline constexpr moe::Index kSide = 8;  // of an image

namespace detail {

/// An image, dark outside its borders.
using Pixels = std::span<float, kPixels>;
inline float pixel(const Pixels& image, moe::Index row, moe::Index column) {
  const bool inside = row >= 0 && row < kSide && column >= 0 && column < kSide;
  return inside ? image[static_cast<std::size_t>(row * kSide + column)] : 0.0f;
}
inline void brighten(const Pixels& image, moe::Index row, moe::Index column, double by) {
  if (row >= 0 && row < kSide && column >= 0 && column < kSide)
    image[static_cast<std::size_t>(row * kSide + column)] += static_cast<float>(by);
}

/// Weights 1 2 1 along rows and columns.
inline void blur(const Pixels& image) {
  std::array<float, kPixels> sharp{};
  std::ranges::copy(image, sharp.begin());
  for (moe::Index r = 0; r < kSide; ++r)
    for (moe::Index c = 0; c < kSide; ++c) {
      float sum = 0;
      for (moe::Index i = -1; i <= 1; ++i)
        for (moe::Index j = -1; j <= 1; ++j)
          sum += static_cast<float>((2 - i * i) * (2 - j * j)) * pixel(Pixels(sharp), r + i, c + j);
      image[static_cast<std::size_t>(r * kSide + c)] = sum / 16;
    }
}

/// draw(i) in [0, 1), normal(i) standard normal.
template <class Draw, class Normal>
void spoil(Weather weather, const Pixels& image, const Draw& draw, const Normal& normal) {
  const auto place = [&](moe::Index i) { return static_cast<moe::Index>(draw(i) * kSide); };
  switch (weather) {
    case Weather::Noise:
      for (std::size_t p = 0; p < image.size(); ++p)
        image[p] += static_cast<float>(0.25 * normal(static_cast<moe::Index>(p)));
      break;
    case Weather::Blur:
      return blur(image);
    case Weather::Rain:  // streaks of four pixels, a column to the left every other row
      for (moe::Index s = 0; s < 5; ++s)
        for (moe::Index i = 0; i < 4; ++i)
          brighten(image, place(3 * s) - 2 + i, place(3 * s + 1) + 1 - i / 2, 0.4 + 0.4 * draw(3 * s + 2));
      break;
    case Weather::Snow:  // flakes of a pixel and what lies beside it
      for (moe::Index s = 0; s < 6; ++s)
        for (moe::Index i = -1; i <= 1; ++i)
          for (moe::Index j = -1; j <= 1; ++j)
            brighten(image, place(2 * s) + i, place(2 * s + 1) + j, 0.9 / (1 << (2 * (i * i + j * j))));
      break;
    case Weather::Fog: {  // light of the air instead of that of the scene
      const auto kept = static_cast<float>(0.3 + 0.3 * draw(0));
      for (float& value : image) value = kept * value + (1 - kept) * 0.8f;
    }
  }
  for (float& value : image) value = std::clamp(value, 0.0f, 1.0f);
}

}  // namespace detail

/// Images [num_images, 64] from 0 (black) to 1, image i in weather of(i); a function of seed and part, too.
template <class Of>
moe::Matrix<float> in_weather(moe::Matrix<float> images, const Of& of, std::uint64_t seed, std::uint64_t part) {
  const moe::RandomField random(moe::Purpose::User, seed, part);
  for (moe::Index i = 0; i < images.rows(); ++i)
    detail::spoil(
        of(i), detail::Pixels(images.row(i).data(), kPixels), [&](moe::Index j) { return random.uniform(i, j); },
        [&](moe::Index j) { return random.normal(i, j); });
  return images;
}

/// All images of the test in one weather.
inline moe::Matrix<float> test_images(Weather weather, std::uint64_t seed) {
  const auto of = [&](moe::Index) { return weather; };
  return in_weather(digits().test.rows, of, seed + 2000, static_cast<std::uint64_t>(weather));
}

/// Peak signal-to-noise ratio in dB, mean over images.
inline double psnr(const moe::Matrix<float>& images, const moe::Matrix<float>& clean) {
  double sum = 0;
  for (moe::Index i = 0; i < images.rows(); ++i)
    sum -= 10 * std::log10(static_cast<double>((images.row(i) - clean.row(i)).squaredNorm()) / kPixels);
  return sum / static_cast<double>(images.rows());
}

}  // namespace systems
