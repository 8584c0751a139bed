// SPDX-License-Identifier: MIT
// The promise that a thread with 128 KiB of stack can run layers, forward and backward, in float and double, for any
// number of experts (moe::Executor says so). It ends by a signal if it does not hold.
#include <pthread.h>

#include <cstdio>
#include <moe/compress/quantise.hpp>
#include <moe/moe.hpp>

namespace {

using moe::Index;

#ifdef __OPTIMIZE__
constexpr std::size_t kStack = 128 * 1024;
#else
constexpr std::size_t kStack = 512 * 1024;  // nothing is kept in registers
#endif

template <class Codec, class Gate>
void train(const Gate& gate) {
  using S = typename Codec::Scalar;
  constexpr Index kTokens = 100, kDim = 64;
  for (const Index num_experts : {40, 200, 1200}) {  // some hundred have their scratch on the stack
    const moe::MoeLayer layer(moe::BasicLinearRouter<Codec>::random(num_experts, kDim, 1), gate,
                              moe::ExpertPool<moe::BasicGlu<Codec>>::random(num_experts, kDim, kDim, 1));
    const moe::Matrix<S> tokens = moe::Matrix<S>::Random(kTokens, kDim);
    moe::Matrix<S> out(kTokens, kDim), dtokens(kTokens, kDim);
    moe::BasicWorkspace<S> ws;
    typename std::remove_const_t<decltype(layer)>::Tape tape;
    auto gradient = moe::zeros_like(layer);
    layer.forward(tokens, out, ws);
    layer.forward(tokens, moe::Step::train(1), out, tape);
    layer.backward(tokens, tape, out, gradient, dtokens);
  }
}

/// Weights in few bits: blocks that are decoded, and rows that are rounded, lie on the stack.
void train_few_bits() {
  constexpr Index kTokens = 100, kDim = 300, kExperts = 3;
  const moe::MoeLayer layer(moe::LinearRouter::random(kExperts, kDim, 1), moe::TopKGate{.k = 2},
                            moe::ExpertPool<moe::Glu>::random(kExperts, kDim, kDim, 1));
  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(kTokens, kDim);
  moe::Matrix<float> out(kTokens, kDim), dtokens(kTokens, kDim);
  for (const char* format : {"bf16", "fp8", "int8", "int4", "mxfp4", "3bit"})
    for (const moe::Dot dot : {moe::Dot::Exact, moe::Dot::Int8, moe::Dot::Bf16}) {
      if (!moe::kernel::can_dot(moe::WeightFormat::named(format), kDim, dot)) continue;
      const auto small = moe::with_dot(moe::quantise(layer, moe::WeightFormat::named(format)), dot);
      moe::Workspace ws;
      typename std::remove_const_t<decltype(small)>::Tape tape;
      auto gradient = moe::zeros_like(small);
      small.forward(tokens.topRows(1), moe::Step{}, out.topRows(1), ws);
      small.forward(tokens, moe::Step{}, out, ws);
      small.forward(tokens, moe::Step::train(1), out, tape);
      small.backward(tokens, tape, out, gradient, dtokens);
    }
}

void* run(void*) {
  moe::SerialExecutor serial;  // all on this thread
  const moe::UseExecutor use(serial);
  train<moe::F32>(moe::TopKGate{});
  train<moe::F64>(moe::TopKGate{});
  train<moe::F32>(moe::TopKGate{.k = 40});  // a sorting network
  train<moe::F64>(moe::TopKGate{.k = 40});
  train<moe::F64>(moe::NoisyTopKGate{});
  train_few_bits();
  return nullptr;
}

}  // namespace

int main() {
  pthread_attr_t attributes;
  pthread_t thread;
  if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstacksize(&attributes, kStack) != 0 ||
      pthread_create(&thread, &attributes, run, nullptr) != 0 || pthread_join(thread, nullptr) != 0) {
    std::puts("cannot start a thread with a small stack");
    return 1;
  }
  std::printf("layers run in %zu KiB of stack\n", kStack / 1024);
}
