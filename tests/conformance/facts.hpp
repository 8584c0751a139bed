// SPDX-License-Identifier: MIT
// The metadata of a file of reference vectors, which is text, as what it means.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <moe/io/checkpoint/checkpoint.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

/// All errors are std::runtime_error that name the key, what it is and what was expected.
class Facts {
 public:
  explicit Facts(const moe::Metadata& metadata) : metadata_(metadata) {}

  const moe::Metadata& all() const { return metadata_; }
  bool has(const std::string& key) const { return metadata_.contains(key); }
  std::string text(const std::string& key, const std::string& otherwise) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? otherwise : found->second;
  }
  std::string text(const std::string& key) const {
    if (!has(key)) throw std::runtime_error("metadata has no '" + key + "'");
    return metadata_.find(key)->second;
  }

  double number(const std::string& key) const { return number_of(key, text(key)); }
  double number(const std::string& key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  /// The same of text that is part of the value of a key.
  double number_of(const std::string& key, const std::string& part) const {
    double value = 0;
    const char* const end = part.data() + part.size();
    const auto [stop, error] = std::from_chars(part.data(), end, value);
    if (error != std::errc{} || stop != end || !std::isfinite(value)) refuse(key, "a finite number");
    return value;
  }

  moe::Index integer(const std::string& key) const { return integer_of(key, text(key)); }
  moe::Index integer(const std::string& key, moe::Index otherwise) const { return has(key) ? integer(key) : otherwise; }
  moe::Index integer_of(const std::string& key, const std::string& part) const {
    constexpr moe::Index kMost = moe::Index{1} << 31;  // products of two fit
    moe::Index value = 0;
    const char* const end = part.data() + part.size();
    const auto [stop, error] = std::from_chars(part.data(), end, value);
    if (error != std::errc{} || stop != end || value < 0 || value > kMost) refuse(key, "an integer of 0 to 2^31");
    return value;
  }
  /// "1,7,33"; none if the key is missing or empty.
  std::vector<moe::Index> integers(const std::string& key) const {
    std::vector<moe::Index> values;
    const std::string list = text(key, "");
    for (std::size_t first = 0; first < list.size();) {
      const std::size_t end = std::min(list.find(',', first), list.size());
      values.push_back(integer_of(key, list.substr(first, end - first)));
      first = end + 1;
    }
    return values;
  }

  /// True, perhaps with an explanation: "true (one vector)".
  bool flag(const std::string& key) const {
    const std::string value = text(key, "false");
    if (value != "false" && value != "true" && !value.starts_with("true ")) refuse(key, "true or false");
    return value != "false";
  }
  /// One of a list; the first where the key is missing.
  std::string choice(const std::string& key, std::initializer_list<const char*> choices) const {
    const std::string value = text(key, *choices.begin());
    if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
      std::string expected;
      for (const char* one : choices) expected += (expected.empty() ? "'" : ", '") + std::string(one) + "'";
      refuse(key, expected);
    }
    return value;
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    throw std::runtime_error("metadata '" + key + "' is '" + text(key) + "', expected " + expected);
  }

 private:
  const moe::Metadata& metadata_;
};

}  // namespace check
