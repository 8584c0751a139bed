// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "moe/core/tape.hpp"
#include "moe/core/visit.hpp"

namespace moe::inline MOE_ABI {

/// An object that does not learn, shared by all copies of this one:
///   const moe::Frozen experts(moe::ExpertPool<moe::Glu>::random(8, 64, 256, /*seed=*/1));
///   moe::MoeLayer first(router, gate, experts), second(other_router, gate, experts);   // the same experts, once
/// Stands where the object stands: an expert, an expert set or a router (moe/expert/frozen.hpp, moe/router/frozen.hpp).
/// Forward and the gradients of its inputs have the bits of the object; a gradient of its own is not computed, and
/// takes no memory in gradients and moments, which share the object. Its parameters are state, under the names that
/// they have in the object, so files are those of the object, frozen or not. An object that is not const and walked by
/// visit_all() or visit_state(), as load_parameters() walks one, gets a copy of its own first where others share it;
/// gradients and moments that were made before keep what they shared. Share freely.
template <class T>
class Frozen {
  static_assert(sizeof(T) == 0,
                "moe::Frozen: what does not learn is an Expert or an ExpertSet (include moe/expert/frozen.hpp) or a "
                "Router (moe/router/frozen.hpp)");
};

template <class T>
Frozen(T) -> Frozen<T>;

namespace detail {

/// What Frozen is whatever it holds.
template <class T>
class FrozenObject {
 public:
  explicit FrozenObject(T object) : object_(std::make_shared<T>(std::move(object))) {}
  FrozenObject(const FrozenObject&) = default;  // moved from it is as before, too
  FrozenObject& operator=(const FrozenObject&) = default;

  const T& operator*() const { return *object_; }
  const T* operator->() const { return object_.get(); }

  template <class F, class... Self>
  static void visit(F&&, Self&...) {}
  template <class F, class... Self>
  static void state(F&& f, Self&... self) {
    moe::visit(f, self.walked()...);
  }

 private:
  const T& walked() const { return *object_; }
  T& walked() {
    if (object_.use_count() > 1) object_ = std::make_shared<T>(*object_);
    std::atomic_thread_fence(std::memory_order_acquire);  // whoever shared it has read before he let go
    return *object_;
  }

  std::shared_ptr<T> object_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
