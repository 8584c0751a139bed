// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <vector>

#include "moe/core/error.hpp"
#include "moe/core/exclusive.hpp"
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

  /// Works in the memory of `lender`, which outlives this, instead of its own. What runs one after the other may share
  /// memory, as the layers of a model whose tapes are live together:
  ///   for (auto& tape : tapes) tape.scratch.borrow(memory);
  /// Parts that run inside each other must not, as both may use the same T: so a lender is not lent to a layer and to
  /// the layers among its experts, nor to two threads, which the passes of layers refuse. Throws std::invalid_argument
  /// for a lender that borrows from this.
  void borrow(Scratch& lender) {
    if (&lender.owner() == this)
      fail("moe::Scratch::borrow: the lender works in this scratch, expected one of its own");
    lender_ = &lender.owner();
  }

  template <class T>
  T& get() {
    return owner().template own<T>();
  }

  /// Makes part(0) ... part(count - 1) available; to be called before the loop, by one thread.
  void reserve_parts(Index count) {
    auto& parts = owner().parts_;
    while (static_cast<Index>(parts.size()) < count) parts.push_back(std::make_unique<Scratch>());
  }
  /// For passes that have the memory for themselves.
  detail::Exclusive& use() { return owner().use_; }
  Scratch& part(Index i) { return *owner().parts_[static_cast<std::size_t>(i)]; }

 private:
  Scratch& owner() { return lender_ != nullptr ? *lender_ : *this; }

  template <class T>
  T& own() {
    for (const Slot& slot : slots_)
      if (slot.type == &kKey<T>) return *static_cast<T*>(slot.object.get());
    slots_.push_back({&kKey<T>, {new T(), [](void* object) { delete static_cast<T*>(object); }}});
    return *static_cast<T*>(slots_.back().object.get());
  }

  /// A place in memory for every type, which nobody writes: a constant could share its place with others. Two libraries
  /// of one program may have two for one type, which costs an object more; comparing type_info compares long names.
  template <class T>
  inline static char kKey = 0;

  struct Slot {
    const char* type;  // the address of its kKey
    std::unique_ptr<void, void (*)(void*)> object;
  };
  Scratch* lender_ = nullptr;
  detail::Exclusive use_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Scratch>> parts_;
};

}  // namespace moe::inline MOE_ABI
