// SPDX-License-Identifier: MIT
#include "relu_layer.hpp"

namespace systems {

template void train_on(ReluLayer&, const Training&, std::uint64_t, const std::function<Regression(std::uint64_t)>&,
                       const Report&);
template void train_on(ReluLayer&, const Training&, std::uint64_t, const std::function<Labelled(std::uint64_t)>&,
                       const Report&);
template void train_on(WithShared&, const Training&, std::uint64_t, const std::function<Regression(std::uint64_t)>&,
                       const Report&);
template void train_on(WithResidual&, const Training&, std::uint64_t, const std::function<Regression(std::uint64_t)>&,
                       const Report&);
template void train_on(WithHead<ReluLayer>&, const Training&, std::uint64_t,
                       const std::function<Labelled(std::uint64_t)>&, const Report&);
template void train_on(WithHead<WithResidual>&, const Training&, std::uint64_t,
                       const std::function<Labelled(std::uint64_t)>&, const Report&);
template moe::Matrix<float> outputs(const ReluLayer&, const moe::Matrix<float>&);
template moe::Matrix<float> outputs(const WithShared&, const moe::Matrix<float>&);
template moe::Matrix<float> outputs(const WithResidual&, const moe::Matrix<float>&);
template moe::Matrix<float> outputs(const WithHead<ReluLayer>&, const moe::Matrix<float>&);
template moe::Matrix<float> outputs(const WithHead<WithResidual>&, const moe::Matrix<float>&);

}  // namespace systems
