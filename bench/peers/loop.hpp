// SPDX-License-Identifier: MIT
// The loop over experts that all peers share; only the GEMM differs.
#pragma once

#include "naive_routing.hpp"
#include "peer.hpp"

namespace bench {

/// The weights of an expert as they are given, for a Gemm that stores no copy.
template <class Gemm>
struct PlainWeight {
  Index inputs, outputs;
  const float* values;
  void product(Index rows, const float* a, float* c) const { Gemm::product(rows, outputs, inputs, a, values, c); }
};

/// Gemm, all matrices row-major and contiguous:
///   kName, set_threads(n)           name, and threads that one product may use when called outside parallel loops
///   Weight{k, n, b}.product(m, a, c)  c = a b      for the weights of experts: PlainWeight, or a layout of its own
///   product(m, n, k, a, b, c)       c = a b        a [m, k], b [k, n]
///   product_bt(m, n, k, a, b, c)    c = a b^T      a [m, k], b [n, k]
///   add_at_product(m, n, k, a, b, c)  c += a^T b   a [k, m], b [k, n]
/// Weights of other types than float have kName, kBits and kTolerance: see Peer.
template <class Gemm>
class LoopPeer final : public Peer {
 public:
  LoopPeer(const Shape& shape, const PlainWeights& weights) : shape_(shape), weights_(weights) {
    for (const auto& values : weights.gate_up)
      gate_up_.push_back(Weight{shape.model_dim, 2 * shape.hidden_dim, values.data()});
    for (const auto& values : weights.down) down_.push_back(Weight{shape.hidden_dim, shape.model_dim, values.data()});
  }

  std::string name() const override { return Gemm::kName; }
  std::string weights() const override {
    if constexpr (requires { Weight::kName; }) return Weight::kName;
    return Peer::weights();
  }
  double bits_per_weight() const override {
    if constexpr (requires { Weight::kBits; }) return Weight::kBits;
    return Peer::bits_per_weight();
  }
  double tolerance() const override {
    if constexpr (requires { Weight::kTolerance; }) return Weight::kTolerance;
    return Peer::tolerance();
  }

  void forward(const Matrix<float>& tokens, Matrix<float>& out) override {
    route(tokens);
    const auto workers = static_cast<std::size_t>(moe::num_workers());
    if (worker_.size() < workers) worker_.resize(workers);
    for_each_expert([&](Index e, Index worker) {
      Rows& rows = worker_[static_cast<std::size_t>(worker)];
      rows.resize(rows_of(e), shape_);
      run_expert(e, tokens, rows.x.row(0), rows.gate_up.row(0), rows.hidden.row(0));
    });
    combine(out);
  }

  void forward_with_tape(const Matrix<float>& tokens, Matrix<float>& out) override {
    route(tokens);
    tape_.resize(tokens.rows() * shape_.k, shape_);
    for_each_expert([&](Index e, Index) {
      const Index first = first_row(e);
      run_expert(e, tokens, x(first), gate_up(first), hidden(first));
    });
    combine(out);
  }

  void backward(const Matrix<float>& tokens, const Matrix<float>& dout, PlainWeights& gradient,
                Matrix<float>& dtokens) override {
    const Index rows = tokens.rows() * shape_.k;
    dy_.resize(rows, shape_.model_dim);
    dtape_.resize(rows, shape_);
    dweight_.resize(static_cast<std::size_t>(rows));
    for_each_expert([&](Index e, Index) { run_expert_backward(e, dout, gradient); });
    route_backward(tokens, gradient, dtokens);
  }

 private:
  using Map = Eigen::Map<Matrix<float>>;
  using Weight = typename Gemm::Weight;

  /// Rows of one expert or of all, contiguous; grows and never shrinks.
  struct GrowingRows {
    moe::AlignedBuffer<float> buffer;
    Index cols = 0;
    void resize(Index rows, Index columns) {
      cols = columns;
      if (rows * cols > buffer.size()) buffer = moe::AlignedBuffer<float>::uninitialised(rows * cols);
    }
    float* row(Index r) { return buffer.data() + r * cols; }
  };
  struct Rows {
    GrowingRows x, gate_up, hidden;
    void resize(Index rows, const Shape& shape) {
      x.resize(rows, shape.model_dim);
      gate_up.resize(rows, 2 * shape.hidden_dim);
      hidden.resize(rows, shape.hidden_dim);
    }
  };

  float* x(Index row) { return tape_.x.row(row); }
  float* gate_up(Index row) { return tape_.gate_up.row(row); }
  float* hidden(Index row) { return tape_.hidden.row(row); }
  Index first_row(Index e) const { return routing_.offset[static_cast<std::size_t>(e)]; }
  Index rows_of(Index e) const { return first_row(e + 1) - first_row(e); }
  Index token_of(Index row) const { return routing_.token[static_cast<std::size_t>(row)]; }

  template <class Body>
  void for_each_expert(const Body& body) {
    Index busy = 0;
    for (Index e = 0; e < shape_.num_experts; ++e) busy += rows_of(e) > 0;
    if (busy >= moe::num_workers()) return moe::parallel_for(shape_.num_experts, body);
    Gemm::set_threads(static_cast<int>(moe::num_workers()));
    for (Index e = 0; e < shape_.num_experts; ++e) body(e, Index{0});
    Gemm::set_threads(1);
  }

  void route(const Matrix<float>& tokens) {
    logits_.resize(tokens.rows(), shape_.num_experts);
    moe::parallel_ranges(tokens.rows(), 64, [&](Index begin, Index end, Index) {
      Gemm::product(end - begin, shape_.num_experts, shape_.model_dim, tokens.row(begin).data(), weights_.router.data(),
                    logits_.row(begin).data());
    });
    routing_.build(logits_, shape_.k);
    y_.resize(tokens.rows() * shape_.k, shape_.model_dim);
  }

  void run_expert(Index e, const Matrix<float>& tokens, float* rows, float* both, float* inner) {
    const Index count = rows_of(e), first = first_row(e), width = shape_.hidden_dim;
    if (count == 0) return;
    const auto expert = static_cast<std::size_t>(e);
    for (Index r = 0; r < count; ++r)
      std::copy_n(tokens.row(token_of(first + r)).data(), shape_.model_dim, rows + r * shape_.model_dim);
    gate_up_[expert].product(count, rows, both);
    const Map pair(both, count, 2 * width);
    const auto gate = pair.leftCols(width).array(), up = pair.rightCols(width).array();
    Map(inner, count, width).array() = gate / (1 + (-gate).exp()) * up;
    down_[expert].product(count, inner, y_.row(first));
  }

  /// Token by token: no two threads write one row, and each row is written once.
  void combine(Matrix<float>& out) {
    moe::parallel_ranges(out.rows(), 64, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        auto sum = out.row(t);
        sum.setZero();
        for (Index a = t * shape_.k; a < (t + 1) * shape_.k; ++a)
          sum += routing_.weight[static_cast<std::size_t>(a)] * Map(y_.row(row_of(a)), 1, shape_.model_dim);
      }
    });
  }
  Index row_of(Index a) const { return routing_.row[static_cast<std::size_t>(a)]; }

  void run_expert_backward(Index e, const Matrix<float>& dout, PlainWeights& gradient) {
    const Index count = rows_of(e), first = first_row(e), width = shape_.hidden_dim, dim = shape_.model_dim;
    if (count == 0) return;
    const auto expert = static_cast<std::size_t>(e);
    for (Index r = first; r < first + count; ++r) {
      const auto a = static_cast<std::size_t>(routing_.assignment[static_cast<std::size_t>(r)]);
      const auto from = dout.row(token_of(r));
      dweight_[a] = from.dot(Eigen::Map<Eigen::RowVectorXf>(y_.row(r), dim));
      Map(dy_.row(r), 1, dim) = routing_.weight[a] * from;
    }
    Gemm::add_at_product(width, dim, count, hidden(first), dy_.row(first), gradient.down[expert].data());
    Gemm::product_bt(count, width, dim, dy_.row(first), weights_.down[expert].data(), dtape_.hidden.row(first));
    const Map pair(gate_up(first), count, 2 * width), dinner(dtape_.hidden.row(first), count, width);
    Map dpair(dtape_.gate_up.row(first), count, 2 * width);
    for (Index r = 0; r < count; ++r) {
      const auto gate = pair.row(r).head(width).array(), up = pair.row(r).tail(width).array();
      const auto dh = dinner.row(r).array();
      const Eigen::Array<float, 1, Eigen::Dynamic> sigmoid = 1 / (1 + (-gate).exp());
      dpair.row(r).tail(width).array() = dh * gate * sigmoid;
      dpair.row(r).head(width).array() = dh * up * sigmoid * (1 + gate * (1 - sigmoid));
    }
    Gemm::add_at_product(dim, 2 * width, count, x(first), dpair.data(), gradient.gate_up[expert].data());
    Gemm::product_bt(count, dim, 2 * width, dpair.data(), weights_.gate_up[expert].data(), dtape_.x.row(first));
  }

  /// Softmax over the chosen, router, and the sum of each token's rows.
  void route_backward(const Matrix<float>& tokens, PlainWeights& gradient, Matrix<float>& dtokens) {
    dlogits_ = Matrix<float>::Zero(tokens.rows(), shape_.num_experts);
    moe::parallel_ranges(tokens.rows(), 64, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        float mean = 0;
        for (Index a = t * shape_.k; a < (t + 1) * shape_.k; ++a) mean += weight_of(a) * dweight_of(a);
        for (Index a = t * shape_.k; a < (t + 1) * shape_.k; ++a)
          dlogits_(t, routing_.expert[static_cast<std::size_t>(a)]) = weight_of(a) * (dweight_of(a) - mean);
      }
      Gemm::product_bt(end - begin, shape_.model_dim, shape_.num_experts, dlogits_.row(begin).data(),
                       weights_.router.data(), dtokens.row(begin).data());
      for (Index t = begin; t < end; ++t)
        for (Index a = t * shape_.k; a < (t + 1) * shape_.k; ++a)
          dtokens.row(t) += Map(dtape_.x.row(row_of(a)), 1, shape_.model_dim);
    });
    Gemm::add_at_product(shape_.model_dim, shape_.num_experts, tokens.rows(), tokens.data(), dlogits_.data(),
                         gradient.router.data());
  }
  float weight_of(Index a) const { return routing_.weight[static_cast<std::size_t>(a)]; }
  float dweight_of(Index a) const { return dweight_[static_cast<std::size_t>(a)]; }

  Shape shape_;
  const PlainWeights& weights_;
  std::vector<Weight> gate_up_, down_;  // per expert
  NaiveRouting routing_;
  Matrix<float> logits_, dlogits_;
  std::vector<Rows> worker_;  // of forward: per thread, rows of one expert
  Rows tape_, dtape_;         // of training: rows of all experts
  GrowingRows y_, dy_;        // [tokens * k, model_dim]
  std::vector<float> dweight_;
};

}  // namespace bench
