// SPDX-License-Identifier: MIT
#include "moe/gate/dense_to_sparse.hpp"

struct Temperature {
  double value = 1;
  double operator()(std::uint64_t) const { return value; }
  void backward(double dvalue, Temperature& gradient) const { gradient.value += dvalue; }
};

moe::DenseToSparseGate<Temperature> gate;
