// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <vector>

#include "moe/core/matrix.hpp"

namespace moe::inline MOE_ABI {

/// A bag of reusable working memory: get<T>() is the one object of type T in it, made by its default constructor on
/// first use and kept. So an expert of your own keeps its buffers between calls without being mutable itself:
///   auto& hidden = context.scratch.get<MyBuffers>().hidden;
/// part(i) is a bag of its own for task i of a parallel loop: for the task, not for whoever runs it, so that the same
/// call finds everything warm whichever thread gets which task. A copy starts empty. Not thread-safe: one per thread.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) {}
  Scratch(Scratch&&) = default;
  Scratch& operator=(const Scratch&) { return *this; }
  Scratch& operator=(Scratch&&) = default;
  ~Scratch() = default;

  template <class T>
  T& get() {
    for (const Slot& slot : slots_)
      if (slot.type == &kKey<T>) return *static_cast<T*>(slot.object.get());
    slots_.push_back({&kKey<T>, {new T(), [](void* object) { delete static_cast<T*>(object); }}});
    return *static_cast<T*>(slots_.back().object.get());
  }

  /// Makes part(0) ... part(count - 1) available; to be called before the loop, by one thread.
  void reserve_parts(Index count) {
    while (static_cast<Index>(parts_.size()) < count) parts_.push_back(std::make_unique<Scratch>());
  }
  Scratch& part(Index i) { return *parts_[static_cast<std::size_t>(i)]; }

 private:
  /// A place in memory for every type, which nobody writes: a constant could share its place with others. Two libraries
  /// of one program may have two for one type, which costs an object more; comparing type_info compares long names.
  template <class T>
  inline static char kKey = 0;

  struct Slot {
    const char* type;  // the address of its kKey
    std::unique_ptr<void, void (*)(void*)> object;
  };
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Scratch>> parts_;
};

}  // namespace moe::inline MOE_ABI
