// SPDX-License-Identifier: MIT
// The layer that most pages are about: linear router, top-K gate, ReLU experts. How it is trained and run, alone,
// beside a shared expert and below a head, is compiled once, in relu_layer.cpp: a page that uses these types compiles
// in half the time.
#pragma once

#include <moe/expert/mlp.hpp>
#include <moe/expert/pool.hpp>
#include <moe/expert/scaled_identity.hpp>
#include <moe/gate/top_k.hpp>
#include <moe/layer/branches.hpp>
#include <moe/layer/moe_layer.hpp>
#include <moe/router/linear.hpp>

#include "labelled.hpp"
#include "regression.hpp"
#include "train.hpp"
#include "with_head.hpp"

namespace systems {

using ReluMlp = moe::BasicMlp<moe::F32, moe::Relu>;
using ReluLayer = moe::MoeLayer<moe::LinearRouter, moe::TopKGate, moe::ExpertPool<ReluMlp>>;
using WithShared = moe::WithBranches<ReluLayer, ReluMlp>;
using WithResidual = moe::WithBranches<ReluLayer, moe::ScaledIdentity>;

extern template void train_on(ReluLayer&, const Training&, std::uint64_t,
                              const std::function<Regression(std::uint64_t)>&, const Report&);
extern template void train_on(ReluLayer&, const Training&, std::uint64_t, const std::function<Labelled(std::uint64_t)>&,
                              const Report&);
extern template void train_on(WithShared&, const Training&, std::uint64_t,
                              const std::function<Regression(std::uint64_t)>&, const Report&);
extern template void train_on(WithResidual&, const Training&, std::uint64_t,
                              const std::function<Regression(std::uint64_t)>&, const Report&);
extern template void train_on(WithHead<ReluLayer>&, const Training&, std::uint64_t,
                              const std::function<Labelled(std::uint64_t)>&, const Report&);
extern template void train_on(WithHead<WithResidual>&, const Training&, std::uint64_t,
                              const std::function<Labelled(std::uint64_t)>&, const Report&);
extern template moe::Matrix<float> outputs(const ReluLayer&, const moe::Matrix<float>&);
extern template moe::Matrix<float> outputs(const WithShared&, const moe::Matrix<float>&);
extern template moe::Matrix<float> outputs(const WithResidual&, const moe::Matrix<float>&);
extern template moe::Matrix<float> outputs(const WithHead<ReluLayer>&, const moe::Matrix<float>&);
extern template moe::Matrix<float> outputs(const WithHead<WithResidual>&, const moe::Matrix<float>&);

}  // namespace systems
