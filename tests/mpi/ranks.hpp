// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>

// What tests that run on several ranks have in place of Catch2, whose checks are for one thread of one process: a check
// that fails throws, and whoever runs the ranks sees it.
namespace test {

template <class... Parts>
void expect(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::logic_error(text.str());
}

/// f() throws an E whose text has `part` in it.
template <class E, class F>
void expect_throws(const std::string& part, const F& f) {
  try {
    f();
  } catch (const E& error) {
    return expect(std::string(error.what()).find(part) != std::string::npos, "the error says '", error.what(),
                  "', expected '", part, "' in it");
  }
  throw std::logic_error("no exception, expected one that says '" + part + "'");
}

}  // namespace test
