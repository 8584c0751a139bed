// SPDX-License-Identifier: MIT
#pragma once

#include <cassert>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "moe/core/abi.hpp"

/// Checks an invariant of the library itself (never of its input), in debug builds only.
#define MOE_ASSERT(condition) assert(condition)

namespace moe::inline MOE_ABI {

namespace detail {

/// Anything that can be streamed, by reference. Messages are put together out of these in one place: streams in
/// every function that checks something took 6% of the time to compile examples/hello.cpp (g++ 12, -O2).
class MessagePart {
 public:
  MessagePart(const char* text)
      : object_(text),
        stream_([](std::ostream& out, const void* object) { out << static_cast<const char*>(object); }) {}
  template <class T>
  MessagePart(const T& value)
      : object_(&value),
        stream_([](std::ostream& out, const void* object) { out << *static_cast<const T*>(object); }) {}

  void stream(std::ostream& out) const { stream_(out, object_); }

 private:
  const void* object_;
  void (*stream_)(std::ostream&, const void*);
};

inline std::string message(std::initializer_list<MessagePart> parts) {
  std::ostringstream text;
  for (const MessagePart& part : parts) part.stream(text);
  return text.str();
}
[[noreturn]] inline void throw_argument(std::initializer_list<MessagePart> parts) {
  throw std::invalid_argument(message(parts));
}
[[noreturn]] inline void throw_environment(std::initializer_list<MessagePart> parts) {
  throw std::runtime_error(message(parts));
}

}  // namespace detail

/// Throws std::invalid_argument with the parts streamed one after the other.
/// Sentence shape: function, value found, name and value expected, as in
/// `moe::MoeLayer::forward: tokens has 32 columns, expected model_dim = 64`.
/// The parts are values: sentences whose parts are of the same types share their code, whatever their lengths.
template <class... Parts>
[[noreturn]] void fail(Parts... parts) {
  detail::throw_argument({detail::MessagePart(parts)...});
}

/// Throws std::runtime_error: for broken files and environments, where fail() is for wrong arguments.
template <class... Parts>
[[noreturn]] void fail_environment(Parts... parts) {
  detail::throw_environment({detail::MessagePart(parts)...});
}

}  // namespace moe::inline MOE_ABI
