// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <utility>

#include "moe/core/visit.hpp"

namespace moe::inline MOE_ABI {

/// An object that does not learn, shared by all copies of this one:
///   const moe::Frozen experts(moe::ExpertPool<moe::Glu>::random(8, 64, 256, /*seed=*/1));
///   moe::MoeLayer first(router, gate, experts), second(other_router, gate, experts);   // the same experts, once
/// Stands where the object stands: an expert, an expert set or a router (moe/expert/frozen.hpp, moe/router/frozen.hpp).
/// Forward and the gradients of its inputs have the bits of the object; a gradient of its own is not computed, and
/// takes no memory in gradients and moments, which share the object. Its parameters are state, under the names that
/// they have in the object, so files are those of the object, frozen or not. Whoever writes to it through visit_all(),
/// as load_parameters() does, gets a copy of its own first where others share it. Share freely.
template <class T>
class Frozen;

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
    return *object_;
  }

  std::shared_ptr<T> object_;
};

}  // namespace detail

}  // namespace moe::inline MOE_ABI
