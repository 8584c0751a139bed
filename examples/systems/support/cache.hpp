// SPDX-License-Identifier: MIT
// Models that are trained once: files whose names say what they were trained on, and how.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

#include <moe/io/file/parameters.hpp>

#include "page.hpp"

namespace systems {

/// FNV-1a of numbers and texts, one after the other.
class Hash {
 public:
  Hash& operator<<(std::string_view text) {
    for (const char c : text) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    hash_ = (hash_ ^ text.size()) * 0x100000001b3u;
    return *this;
  }
  template <class T>
    requires std::is_arithmetic_v<T>
  Hash& operator<<(T number) {
    std::ostringstream text;
    text.precision(17);
    text << number;
    return *this << std::string_view(text.str());
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

/// `model` as the cache has it, else as train(model) leaves it, which is then kept. Files appear whole or not at all,
/// so that several programs may share a cache; one that cannot be read is written anew.
template <class Model, class Train>
Model cached(const Page& page, const std::string& name, std::uint64_t seed, const Hash& hash, Model model,
             const Train& train) {
  std::ostringstream file;
  file << name << '-' << seed << '-' << std::hex << hash.value() << ".safetensors";
  const std::filesystem::path path = page.cache() / file.str();
  if (std::filesystem::exists(path)) try {
      moe::load_parameters(path, model);
      return model;
    } catch (const std::runtime_error&) {
    }
  train(model);
  std::filesystem::create_directories(page.cache());
  moe::save_parameters(path, model);
  return model;
}

}  // namespace systems
