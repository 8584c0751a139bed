// SPDX-License-Identifier: MIT
#pragma once

#include "moe/core/scratch.hpp"
#include "moe/routing/step.hpp"

namespace moe::inline MOE_ABI {

/// The companion of every call of a Router, Gate, Mixture, ExpertSet and Expert: what varies from call to call, and
/// working memory that survives it. Parts own no buffers; what they take from `scratch` is warm in the next call:
///   moe::Scratch scratch;  // one per thread
///   gate.route(logits, {step, scratch}, routing);
/// A step alone will do where a call need not be fast the second time: gate.route(logits, moe::Step{}, routing).
/// `step` speaks of the rows of the call: step.id(r) is the id of the token in row r. Its spans and the scratch must
/// outlive the call.
class Context {
 public:
  Context(const Step& step_of_call, Scratch& working_memory) : step(step_of_call), scratch(working_memory) {}
  Context(const Step& step_of_call) : step(step_of_call), scratch(own_) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const Step step;  ///< a copy, whose spans are those of the original
  Scratch& scratch;

 private:
  Scratch own_;
};

}  // namespace moe::inline MOE_ABI
