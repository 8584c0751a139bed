// SPDX-License-Identifier: MIT
#include "loop.hpp"

#ifdef MOE_BENCH_ONEDNN
#ifdef _OPENMP
#include <omp.h>
#endif

#include <bit>
#include <cmath>
#include <cstdint>
#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>

namespace bench {

namespace {

using Description = dnnl::memory::desc;
using Type = dnnl::memory::data_type;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

Description plain(Index rows, Index cols, Type type = Type::f32) {
  return {{rows, cols}, type, dnnl::memory::format_tag::ab};
}

/// The layout that its matmul likes best for weights [k, n] and rows of a type; it is the same for any number of rows.
Description best_layout(Index k, Index n, Type type = Type::f32) {
  const Description any({k, n}, type, dnnl::memory::format_tag::any);
  return dnnl::matmul::primitive_desc({plain(64, k, type), any, plain(64, n)}, cpu()).weights_desc();
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
const MatMul& matmul(Index m, Index n, Index k, const Description& weights, Type type) {
  static std::map<std::tuple<Index, Index, Index, Type, int>, MatMul> made;
  static std::mutex mutex;
  const ThreadsOfCaller threads;
  const std::lock_guard lock(mutex);
  const std::tuple key(m, n, k, type, threads.count());
  if (const auto found = made.find(key); found != made.end()) return found->second;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::primitive_desc description({plain(m, k, type), weights, plain(m, n)}, attributes, cpu());
  return made.emplace(key, MatMul{description, dnnl::matmul(description)}).first->second;
}

/// c [rows, n] = a [rows, k] weights; a is of `type`.
void multiply(Index rows, const void* a, const dnnl::memory& weights, float* c, Type type) {
  const Description layout = weights.get_desc();
  const Index k = layout.dims()[0], n = layout.dims()[1];
  const MatMul& product = matmul(rows, n, k, layout, type);
  thread_local moe::AlignedBuffer<char> scratch;
  const Description scratchpad = product.description.scratchpad_desc();
  const auto bytes = static_cast<Index>(scratchpad.get_size());
  if (bytes > scratch.size()) scratch = moe::AlignedBuffer<char>(bytes);
  thread_local dnnl::stream stream(cpu());
  product.primitive.execute(stream, {{DNNL_ARG_SRC, {plain(rows, k, type), cpu(), const_cast<void*>(a)}},
                                     {DNNL_ARG_WEIGHTS, weights},
                                     {DNNL_ARG_DST, {plain(rows, n), cpu(), c}},
                                     {DNNL_ARG_SCRATCHPAD, {scratchpad, cpu(), scratch.data()}}});
  stream.wait();
}

dnnl::memory reordered(const Description& from, const void* values, const Description& to) {
  dnnl::memory plain_weights(from, cpu(), const_cast<void*>(values)), result(to, cpu());
  dnnl::stream stream(cpu());
  dnnl::reorder(plain_weights, result).execute(stream, plain_weights, result);
  stream.wait();
  return result;
}

/// Weights in the layout of choice, reordered once. With AVX-512 that is blocked; measured against dnnl::sgemm on plain
/// weights, ms for [rows, 2048] x [2048, 2048] from memory, one thread of Zen 5, 2.6.3, with 1, 2, 8 and 64 rows:
///   AVX-512  sgemm 0.67 0.88 0.81 2.78   matmul, blocked 0.47 0.56 0.71 2.75   matmul, plain 1.64 1.77 1.85 3.87
///   AVX2     sgemm 0.89 1.20 1.82 10.3   matmul chooses plain weights, and the kernel of sgemm (gemm:jit)
class OneDnnWeight {
 public:
  OneDnnWeight(Index inputs, Index outputs, const float* values)
      : inputs_(inputs), outputs_(outputs), values_(values), layout_(best_layout(inputs, outputs)) {
    if (layout_ != plain(inputs, outputs)) blocked_ = reordered(plain(inputs, outputs), values, layout_);
  }

  bool is_blocked() const { return static_cast<bool>(blocked_); }

  void product(Index rows, const float* a, float* c) const {
    if (is_blocked())
      multiply(rows, a, blocked_, c, Type::f32);
    else
      dnnl::sgemm('N', 'N', rows, outputs_, inputs_, 1, a, inputs_, values_, outputs_, 0, c, outputs_);
  }

 private:
  Index inputs_, outputs_;
  const float* values_;
  Description layout_;
  dnnl::memory blocked_ = {};
};

/// To the nearest, ties to even; of finite values.
std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
/// The same of |value| <= 127: the sum has its last bit at 1.
std::int8_t to_int8(float value) {
  return static_cast<std::int8_t>(std::bit_cast<std::uint32_t>(value + 0x1.8p23f) & 0xFFu);
}

/// Weights in BF16, or in integers with a scale for each output; rows are rounded to the same on their way.
template <Type kType>
class OneDnnCodedWeight {
  static constexpr bool kIsInteger = kType == Type::s8;
  using Code = std::conditional_t<kIsInteger, std::int8_t, std::uint16_t>;

 public:
  static constexpr const char* kName = kIsInteger ? "s8" : "bf16";
  static constexpr double kBits = 8 * sizeof(Code);
  // Twice and more what rounding both sides gives: 4e-3, and, with a scale for a whole row, 1e-2.
  static constexpr double kTolerance = kIsInteger ? 5e-2 : 1e-2;

  /// Throws dnnl::error where the processor has no kernels for it but the reference.
  OneDnnCodedWeight(Index inputs, Index outputs, const float* values) : inputs_(inputs), outputs_(outputs) {
    const Description layout = best_layout(inputs, outputs, kType);
    if (is_reference(kFewRows, layout)) throw dnnl::error(dnnl_unimplemented, "oneDNN has its reference alone");
    if (is_reference(1, layout)) least_rows_ = kFewRows;
    moe::AlignedBuffer<Code> codes(inputs * outputs);
    if constexpr (kIsInteger) {
      const Eigen::Map<const Matrix<float>> weights(values, inputs, outputs);
      scales_ = weights.cwiseAbs().colwise().maxCoeff() / 127;
      const Eigen::RowVectorXf inverse = (scales_.array() > 0).select(1 / scales_.array(), 0);
      for (Index i = 0; i < inputs; ++i)
        for (Index o = 0; o < outputs; ++o) codes.data()[i * outputs + o] = to_int8(weights(i, o) * inverse(o));
    } else {
      for (Index i = 0; i < inputs * outputs; ++i) codes.data()[i] = to_bf16(values[i]);
    }
    weights_ = reordered(plain(inputs, outputs, kType), codes.data(), layout);
  }

  void product(Index rows, const float* a, float* c) const {
    thread_local moe::AlignedBuffer<Code> codes;
    thread_local moe::AlignedBuffer<float> padded;
    const Index all_rows = std::max(rows, least_rows_);  // those behind are whatever was there
    if (all_rows * inputs_ > codes.size()) codes = moe::AlignedBuffer<Code>(all_rows * inputs_);
    if (all_rows > rows && all_rows * outputs_ > padded.size()) padded = moe::AlignedBuffer<float>(all_rows * outputs_);
    float* const sums = all_rows > rows ? padded.data() : c;
    if constexpr (!kIsInteger) {
      for (Index i = 0; i < rows * inputs_; ++i) codes.data()[i] = to_bf16(a[i]);
      multiply(all_rows, codes.data(), weights_, sums, kType);
      if (sums != c) std::copy_n(sums, rows * outputs_, c);
    } else {
      thread_local std::vector<float> row_scales;
      row_scales.assign(static_cast<std::size_t>(rows), 0.0f);
      for (Index r = 0; r < rows; ++r)
        row_scales[static_cast<std::size_t>(r)] = round_row(a + r * inputs_, codes.data() + r * inputs_);
      multiply(all_rows, codes.data(), weights_, sums, kType);
      for (Index r = 0; r < rows; ++r)
        for (Index o = 0; o < outputs_; ++o)
          c[r * outputs_ + o] = sums[r * outputs_ + o] * (row_scales[static_cast<std::size_t>(r)] * scales_(o));
    }
  }

 private:
  static constexpr Index kFewRows = 4;

  /// Whether it has no kernel for so many rows: for integers and AMX it has none below three where inputs are few.
  bool is_reference(Index rows, const Description& layout) const {
    const dnnl::matmul::primitive_desc description({plain(rows, inputs_, kType), layout, plain(rows, outputs_)}, cpu());
    return std::string(description.impl_info_str()).starts_with("ref");
  }

  /// Returns the scale.
  float round_row(const float* row, Code* codes) const {
    const float largest = Eigen::Map<const Eigen::ArrayXf>(row, inputs_).abs().maxCoeff();
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (Index i = 0; i < inputs_; ++i) codes[i] = to_int8(row[i] * inverse);
    return largest / 127;
  }

  Index inputs_, outputs_;
  Index least_rows_ = 1;
  Eigen::RowVectorXf scales_ = {};  // of the outputs
  dnnl::memory weights_ = {};
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

struct OneDnnBf16 : OneDnnGemm {
  static constexpr const char* kName = "oneDNN bf16";
  using Weight = OneDnnCodedWeight<Type::bf16>;
};
struct OneDnnS8 : OneDnnGemm {
  static constexpr const char* kName = "oneDNN s8";
  using Weight = OneDnnCodedWeight<Type::s8>;
};

}  // namespace

std::vector<std::unique_ptr<Peer>> make_few_bit_peers(const Shape& shape, const PlainWeights& weights) {
  std::vector<std::unique_ptr<Peer>> peers;
  const auto make = [&]<class Gemm>(std::type_identity<Gemm>) {
    try {
      peers.push_back(std::make_unique<LoopPeer<Gemm>>(shape, weights));
    } catch (const dnnl::error&) {  // not on this processor
    }
  };
  make(std::type_identity<OneDnnBf16>{});
  make(std::type_identity<OneDnnS8>{});
  return peers;
}

double few_bit_peers_bytes(const Shape& shape) { return 0.75 * static_cast<double>(shape.weight_bytes()); }

std::unique_ptr<Peer> make_onednn_peer(const Shape& shape, const PlainWeights& weights) {
  return std::make_unique<LoopPeer<OneDnnGemm>>(shape, weights);
}

bool onednn_copies_weights() { return best_layout(2048, 2048) != plain(2048, 2048); }

}  // namespace bench

#else

bool bench::onednn_copies_weights() { return false; }

std::vector<std::unique_ptr<bench::Peer>> bench::make_few_bit_peers(const Shape&, const PlainWeights&) { return {}; }

double bench::few_bit_peers_bytes(const Shape&) { return 0; }

std::unique_ptr<bench::Peer> bench::make_onednn_peer(const Shape&, const PlainWeights&) { return nullptr; }

#endif
