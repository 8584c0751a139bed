// SPDX-License-Identifier: MIT
// What errors say.
#pragma once

#include <stdexcept>
#include <string>

namespace test {

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// The text of the Error that a call throws, or "" if it throws none.
template <class Error = std::invalid_argument, class F>
std::string message_of(F&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace test
