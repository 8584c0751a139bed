// SPDX-License-Identifier: MIT
// What we compare with: the same layer as a loop over experts around a GEMM library.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "problem.hpp"

namespace bench {

/// A whole SwiGLU layer: logits, softmax over the best K, gather, GEMM, activation, GEMM, weighted sum. Each
/// OpenMP thread takes expert after expert and runs single-threaded GEMMs, which beats the libraries' own threads; with
/// fewer experts than threads, those are used.
class Peer {
 public:
  virtual ~Peer() = default;
  virtual std::string name() const = 0;

  virtual std::string weights() const { return "f32"; }  ///< how they are stored
  virtual double bits_per_weight() const { return 32; }
  /// How much its outputs may differ from ours with float weights, relative to these: by default what float sums of
  /// some thousand terms in another order do, with a wide margin.
  virtual double tolerance() const { return 1e-4; }

  /// Inference: working memory of one expert per thread.
  virtual void forward(const Matrix<float>& tokens, Matrix<float>& out) = 0;
  /// The same, keeping what backward needs.
  virtual void forward_with_tape(const Matrix<float>& tokens, Matrix<float>& out) = 0;
  /// Of the last forward_with_tape; accumulates into gradient, overwrites dtokens.
  virtual void backward(const Matrix<float>& tokens, const Matrix<float>& dout, PlainWeights& gradient,
                        Matrix<float>& dtokens) = 0;
};

/// nullptr where the program is built without the library. `weights` must outlive the peer.
std::unique_ptr<Peer> make_eigen_peer(const Shape& shape, const PlainWeights& weights);
std::unique_ptr<Peer> make_openblas_peer(const Shape& shape, const PlainWeights& weights);
std::unique_ptr<Peer> make_onednn_peer(const Shape& shape, const PlainWeights& weights);

/// oneDNN with weights and rows in BF16, and in integers of 8 bits with a scale for each output and each row; none
/// without oneDNN. They keep the experts in their own layout and read of `weights` the router alone. Forward only.
std::vector<std::unique_ptr<Peer>> make_few_bit_peers(const Shape& shape, const PlainWeights& weights);
double few_bit_peers_bytes(const Shape& shape);

/// Whether oneDNN keeps the experts' weights in a layout of its own, beside the plain matrices.
bool onednn_copies_weights();

/// All there are, Eigen first. A library of your own is one more file like eigen.cpp and one more line here.
inline std::vector<std::unique_ptr<Peer>> make_peers(const Shape& shape, const PlainWeights& weights) {
  std::vector<std::unique_ptr<Peer>> peers;
  for (const auto make : {make_eigen_peer, make_openblas_peer, make_onednn_peer})
    if (auto peer = make(shape, weights)) peers.push_back(std::move(peer));
  return peers;
}

}  // namespace bench
