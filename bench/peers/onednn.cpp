// SPDX-License-Identifier: MIT
#include "loop.hpp"

#ifdef MOE_BENCH_ONEDNN
#ifdef _OPENMP
#include <omp.h>
#endif

#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <tuple>

namespace bench {

namespace {

using Description = dnnl::memory::desc;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

Description plain(Index rows, Index cols) {
  return {{rows, cols}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab};
}

/// The layout that its matmul likes best for weights [k, n]; it is the same for any number of rows.
Description best_layout(Index k, Index n) {
  const Description any({k, n}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::any);
  return dnnl::matmul::primitive_desc({plain(64, k), any, plain(64, n)}, cpu()).weights_desc();
}

/// A product for one number of rows, which threads share: each brings its own scratchpad.
struct MatMul {
  dnnl::matmul::primitive_desc description;
  dnnl::matmul primitive;
};

/// While it lives, primitives are made for as many threads as will run them: one inside of a parallel loop.
class ThreadsOfCaller {
 public:
#ifdef _OPENMP
  ThreadsOfCaller() : before_(omp_get_max_threads()), count_(omp_in_parallel() ? 1 : before_) {
    omp_set_num_threads(count_);
  }
  ~ThreadsOfCaller() { omp_set_num_threads(before_); }
#endif
  int count() const { return count_; }

 private:
  int before_ = 1, count_ = 1;
};

/// Making one takes a millisecond, so they are kept.
const MatMul& matmul(Index m, Index n, Index k, const Description& weights) {
  static std::map<std::tuple<Index, Index, Index, int>, MatMul> made;
  static std::mutex mutex;
  const ThreadsOfCaller threads;
  const std::lock_guard lock(mutex);
  const std::tuple key(m, n, k, threads.count());
  if (const auto found = made.find(key); found != made.end()) return found->second;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::primitive_desc description({plain(m, k), weights, plain(m, n)}, attributes, cpu());
  return made.emplace(key, MatMul{description, dnnl::matmul(description)}).first->second;
}

/// Weights in the layout of choice, reordered once. With AVX-512 that is blocked; measured against dnnl::sgemm on plain
/// weights, ms for [rows, 2048] x [2048, 2048] from memory, one thread of Zen 5, 2.6.3, with 1, 2, 8 and 64 rows:
///   AVX-512  sgemm 0.67 0.88 0.81 2.78   matmul, blocked 0.47 0.56 0.71 2.75   matmul, plain 1.64 1.77 1.85 3.87
///   AVX2     sgemm 0.89 1.20 1.82 10.3   matmul chooses plain weights, and the kernel of sgemm (gemm:jit)
class OneDnnWeight {
 public:
  OneDnnWeight(Index inputs, Index outputs, const float* values)
      : inputs_(inputs), outputs_(outputs), values_(values), layout_(best_layout(inputs, outputs)) {
    if (layout_ == plain(inputs, outputs)) return;
    dnnl::memory from(plain(inputs, outputs), cpu(), const_cast<float*>(values));
    blocked_ = dnnl::memory(layout_, cpu());
    dnnl::stream stream(cpu());
    dnnl::reorder(from, blocked_).execute(stream, from, blocked_);
    stream.wait();
  }

  bool is_blocked() const { return static_cast<bool>(blocked_); }

  void product(Index rows, const float* a, float* c) const {
    if (!is_blocked()) {
      dnnl::sgemm('N', 'N', rows, outputs_, inputs_, 1, a, inputs_, values_, outputs_, 0, c, outputs_);
      return;
    }
    const MatMul& product = matmul(rows, outputs_, inputs_, layout_);
    thread_local moe::AlignedBuffer<char> scratch;
    const Description scratchpad = product.description.scratchpad_desc();
    const auto bytes = static_cast<Index>(scratchpad.get_size());
    if (bytes > scratch.size()) scratch = moe::AlignedBuffer<char>(bytes);
    thread_local dnnl::stream stream(cpu());
    product.primitive.execute(stream, {{DNNL_ARG_SRC, {plain(rows, inputs_), cpu(), const_cast<float*>(a)}},
                                       {DNNL_ARG_WEIGHTS, blocked_},
                                       {DNNL_ARG_DST, {plain(rows, outputs_), cpu(), c}},
                                       {DNNL_ARG_SCRATCHPAD, {scratchpad, cpu(), scratch.data()}}});
    stream.wait();
  }

 private:
  Index inputs_, outputs_;
  const float* values_;
  Description layout_;
  dnnl::memory blocked_ = {};
};

/// The plain GEMM entry, for all but the experts' forward products. Inside a parallel loop of OpenMP it uses one
/// thread.
struct OneDnnGemm {
  static constexpr const char* kName = "oneDNN";
  using Weight = OneDnnWeight;
  static void set_threads(int) {}  // those of OpenMP, by itself

  static void product(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    dnnl::sgemm('N', 'N', m, n, k, 1, a, k, b, n, 0, c, n);
  }
  static void product_bt(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    dnnl::sgemm('N', 'T', m, n, k, 1, a, k, b, k, 0, c, n);
  }
  static void add_at_product(Index m, Index n, Index k, const float* a, const float* b, float* c) {
    dnnl::sgemm('T', 'N', m, n, k, 1, a, m, b, n, 1, c, n);
  }
};

}  // namespace

std::unique_ptr<Peer> make_onednn_peer(const Shape& shape, const PlainWeights& weights) {
  return std::make_unique<LoopPeer<OneDnnGemm>>(shape, weights);
}

bool onednn_copies_weights() { return best_layout(2048, 2048) != plain(2048, 2048); }

}  // namespace bench

#else

bool bench::onednn_copies_weights() { return false; }

std::unique_ptr<bench::Peer> bench::make_onednn_peer(const Shape&, const PlainWeights&) { return nullptr; }

#endif
