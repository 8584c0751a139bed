// SPDX-License-Identifier: MIT
// Any gate that has nothing to learn, behind one type: a page that compares many gates compiles one layer.
#pragma once

#include <memory>
#include <span>
#include <utility>

#include <moe/gate/concept.hpp>

namespace systems {

class AnyGate {
 public:
  static constexpr bool kPerToken = false;  // some are

  template <class G>
  AnyGate(G gate) : gate_(std::make_shared<Of<G>>(std::move(gate))) {}

  moe::Index num_logits(moe::Index num_experts) const { return gate_->num_logits(num_experts); }
  void route(const moe::Logits<float>& logits, const moe::Context& context, moe::Routing<float>& routing) const {
    gate_->route(logits, context, routing);
  }
  void probabilities(const moe::Logits<float>& logits, const moe::Context& context, moe::Matrix<float>& p) const {
    gate_->probabilities(logits, context, p);
  }
  void replay(const moe::Logits<float>& logits, const moe::Context& context, moe::Routing<float>& routing) const {
    gate_->replay(logits, context, routing);
  }
  void backward(const moe::Logits<float>& logits, const moe::Context& context, const moe::Routing<float>& routing,
                std::span<const float> dweight, const moe::MatrixView<float>& dprobability, moe::Matrix<float>& dlogits,
                AnyGate&) const {
    gate_->backward(logits, context, routing, dweight, dprobability, dlogits);
  }
  template <class F, class... Self>
  static void visit(F&&, Self&...) {}

 private:
  struct Base {
    virtual ~Base() = default;
    virtual moe::Index num_logits(moe::Index num_experts) const = 0;
    virtual void route(const moe::Logits<float>&, const moe::Context&, moe::Routing<float>&) const = 0;
    virtual void probabilities(const moe::Logits<float>&, const moe::Context&, moe::Matrix<float>&) const = 0;
    virtual void replay(const moe::Logits<float>&, const moe::Context&, moe::Routing<float>&) const = 0;
    virtual void backward(const moe::Logits<float>&, const moe::Context&, const moe::Routing<float>&,
                          std::span<const float>, const moe::MatrixView<float>&, moe::Matrix<float>&) const = 0;
  };
  template <class G>
  struct Of final : Base {
    explicit Of(G gate) : gate_(std::move(gate)) {}
    moe::Index num_logits(moe::Index num_experts) const override {
      if constexpr (requires { gate_.num_logits(num_experts); }) return gate_.num_logits(num_experts);
      return num_experts;
    }
    void route(const moe::Logits<float>& logits, const moe::Context& context,
               moe::Routing<float>& routing) const override {
      gate_.route(logits, context, routing);
    }
    void probabilities(const moe::Logits<float>& logits, const moe::Context& context,
                       moe::Matrix<float>& p) const override {
      gate_.probabilities(logits, context, p);
    }
    void replay(const moe::Logits<float>& logits, const moe::Context& context,
                moe::Routing<float>& routing) const override {
      gate_.replay(logits, context, routing);
    }
    void backward(const moe::Logits<float>& logits, const moe::Context& context, const moe::Routing<float>& routing,
                  std::span<const float> dweight, const moe::MatrixView<float>& dprobability,
                  moe::Matrix<float>& dlogits) const override {
      G none = gate_;
      gate_.backward(logits, context, routing, dweight, dprobability, dlogits, none);
    }
    G gate_;
  };

  std::shared_ptr<const Base> gate_;
};

}  // namespace systems
