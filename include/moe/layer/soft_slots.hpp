// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "moe/kernel/row_panels.hpp"
#include "moe/layer/grouped_rows.hpp"
#include "moe/numeric/softmax.hpp"
#include "moe/numeric/top_k.hpp"
#include "moe/routing/plan.hpp"

namespace moe::inline MOE_ABI::detail {

/// to[c][r] = from[r][c] for rows [begin, end) of a buffer, with c from 0 on in rows `first` on of the other.
template <class S>
void transpose_rows(const RowBuffer<S>& from, Index begin, Index end, Index first, RowBuffer<S>& to) {
  constexpr Index kRowsPerTask = 32;
  parallel_ranges(from.cols(), kRowsPerTask, [&](Index c_begin, Index c_end, Index) {
    for (Index r = begin; r < end; ++r)
      for (Index c = c_begin; c < c_end; ++c) to.row(first + c)[r - begin] = from.row(r)[c];
  });
}

/// The slots of a soft mixture and the two weights between them and tokens, group by group. Working memory of both
/// passes; one per thread. Slot i of group g is row g * num_slots + i here, and row row_of_slot() of the plan, in which
/// the rows of an expert follow each other.
template <class S>
struct SoftSlots {
  GroupedRows<S> of;
  Index num_slots = 0, slots_per_expert = 1;  ///< of a group
  RowBuffer<S> tokens;                        ///< in the order of groups, [valid tokens, input_dim]
  RowBuffer<S> dispatch;                      ///< D, [slots of all groups, tokens of the largest group]
  RowBuffer<S> combine;                       ///< C, [valid tokens, num_slots]
  DispatchPlan plan;
  RowBuffer<S> inputs, outputs;  ///< of the experts, in plan order
  RowBuffer<S> out;              ///< [valid tokens, output_dim]
  kernel::RowPanels<S> panels;
  kernel::TaskList tasks;
  std::vector<Index> slot_begin;                  ///< of the groups, [num_groups + 1]
  std::vector<std::int64_t> slot_id, slot_group;  ///< in plan order

  Index num_groups() const { return of.groups.count(); }
  Index all_slots() const { return num_groups() * num_slots; }
  Index row_of_slot(Index slot_of_all) const {
    const Index g = slot_of_all / num_slots, slot = slot_of_all % num_slots;
    return (slot / slots_per_expert * num_groups() + g) * slots_per_expert + slot % slots_per_expert;
  }
  kernel::RowGroups token_groups() const { return {of.groups.begin.data(), num_groups()}; }
  kernel::RowGroups slot_groups() const { return {slot_begin.data(), num_groups()}; }

  /// From logits [num_tokens, num_slots] to the plan and the weights. Throws std::invalid_argument for a NaN or
  /// +infinity of a valid token.
  void build(const char* function, const ConstMatrixRef<S>& logits, const Step& step, Index num_experts) {
    of.build(logits.rows(), step);
    for (const Index t : of.groups.token) {
      const S* const row = logits.data() + t * logits.outerStride();
      const Index slot = first_not_below_infinity(row, logits.cols());
      if (slot < logits.cols())
        fail(function, ": logit of token ", t, " for slot ", slot, " is ", row[slot],
             ", expected a finite number, or -infinity to keep it out");
    }
    num_slots = logits.cols();
    slots_per_expert = num_slots / num_experts;
    plan.build_from_counts(num_experts, [&](Index) { return num_groups() * slots_per_expert; });
    slot_begin.clear();
    for (Index g = 0; g <= num_groups(); ++g) slot_begin.push_back(g * num_slots);
    build_keys();
    of.gather(logits, combine);
    dispatch.resize(all_slots(), of.groups.largest());
    for (Index g = 0; g < num_groups(); ++g)
      transpose_rows(combine, token_groups().begin(g), token_groups().end(g), slot_begin[std::size_t(g)], dispatch);
    constexpr Index kRowsPerTask = 16;
    parallel_ranges(all_slots(), kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r) softmax(dispatch.row(r), of.groups.size(r / num_slots), dispatch.row(r));
    });
    parallel_ranges(combine.rows(), kRowsPerTask, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r) softmax(combine.row(r), num_slots, combine.row(r));
    });
  }

  /// The step of the slots: draws of a slot are keyed by its group and its number there.
  Step step(const Step& of_tokens) const {
    Step own = of_tokens;
    own.valid = {};
    own.key = {};  // a slot is of many tokens
    own.token_id = slot_id;
    own.group_id = slot_group;
    return own;
  }

  /// inputs = D^T tokens.
  void dispatch_tokens(const ConstMatrixRef<S>& all_tokens) {
    of.gather(all_tokens, tokens);
    inputs.resize(all_slots(), tokens.cols());
    panels.pack(token_groups(), tokens.cols(), [&](Index r) { return tokens.row(r); });
    kernel::multiply_by_rows<S>(slot_groups(), kernel::RowSource<S>::from(dispatch), panels, tokens.cols(), tasks,
                                [&](Index slot) { return inputs.row(row_of_slot(slot)); });
  }

  /// out = C outputs, of which the first `cols` columns count.
  void combine_outputs(Index cols) {
    out.resize(combine.rows(), cols);
    panels.pack(slot_groups(), cols, [&](Index slot) { return outputs.row(row_of_slot(slot)); });
    kernel::multiply_by_rows<S>(token_groups(), kernel::RowSource<S>::from(combine), panels, cols, tasks,
                                [&](Index r) { return out.row(r); });
  }

 private:
  void build_keys() {
    slot_id.resize(static_cast<std::size_t>(all_slots()));
    slot_group.resize(slot_id.size());
    for (Index slot = 0; slot < all_slots(); ++slot) {
      const auto row = static_cast<std::size_t>(row_of_slot(slot));
      slot_group[row] = of.group_id[static_cast<std::size_t>(of.groups.begin[std::size_t(slot / num_slots)])];
      slot_id[row] =
          static_cast<std::int64_t>(RandomField(Purpose::Draw, std::uint64_t(slot_group[row])).bits(slot % num_slots));
    }
  }
};

/// The gradients of SoftSlots, and their working memory. One per thread.
template <class S>
struct SoftSlotsGradient {
  RowBuffer<S> dout, dtokens;        ///< in the order of groups
  RowBuffer<S> dinputs, doutputs;    ///< of the experts, in plan order
  RowBuffer<S> dcombine, ddispatch;  ///< [valid tokens, num_slots]
  RowBuffer<S> transposed;           ///< C as [slots of all groups, tokens], then D as [valid tokens, num_slots]
  RowBuffer<double> mean;            ///< sum of D dD over the tokens of a group, [num_groups, num_slots]

  /// doutputs = C^T dout, zero from its columns to `width`; dC = dout outputs^T.
  void backward_combine(const ConstMatrixRef<S>& dout_of_tokens, Index width, SoftSlots<S>& soft) {
    soft.of.gather(dout_of_tokens, dout);
    const Index cols = dout.cols();
    transposed.resize(soft.all_slots(), soft.of.groups.largest());
    for (Index g = 0; g < soft.num_groups(); ++g)
      transpose_rows(soft.combine, soft.token_groups().begin(g), soft.token_groups().end(g), g * soft.num_slots,
                     transposed);
    doutputs.resize(soft.all_slots(), width);
    for (Index r = 0; r < doutputs.rows(); ++r) std::fill(doutputs.row(r) + cols, doutputs.row(r) + width, S{0});
    soft.panels.pack(soft.token_groups(), cols, [&](Index r) { return dout.row(r); });
    multiply(soft.slot_groups(), transposed, soft, cols,
             [&](Index slot) { return doutputs.row(soft.row_of_slot(slot)); });
    soft.panels.pack_transposed(soft.slot_groups(), cols,
                                [&](Index slot) { return soft.outputs.row(soft.row_of_slot(slot)); });
    dcombine.resize(dout.rows(), soft.num_slots);
    multiply(soft.token_groups(), dout, soft, soft.num_slots, [&](Index r) { return dcombine.row(r); });
  }

  /// dD = tokens dinputs^T, with D in `transposed` from here on.
  void backward_dispatch(SoftSlots<S>& soft) {
    soft.panels.pack_transposed(soft.slot_groups(), dinputs.cols(),
                                [&](Index slot) { return dinputs.row(soft.row_of_slot(slot)); });
    ddispatch.resize(soft.tokens.rows(), soft.num_slots);
    multiply(soft.token_groups(), soft.tokens, soft, soft.num_slots, [&](Index r) { return ddispatch.row(r); });
    transposed.resize(soft.tokens.rows(), soft.num_slots);
    constexpr Index kSlotsPerTask = 32;
    parallel_ranges(soft.num_slots, kSlotsPerTask, [&](Index begin, Index end, Index) {
      for (Index g = 0; g < soft.num_groups(); ++g)
        for (Index slot = begin; slot < end; ++slot) {
          const S* const from = soft.dispatch.row(g * soft.num_slots + slot);
          const Index first = soft.token_groups().begin(g), count = soft.token_groups().size(g);
          for (Index i = 0; i < count; ++i) transposed.row(first + i)[slot] = from[i];
        }
    });
  }

  /// dtokens = D dinputs, after backward_dispatch().
  void backward_tokens(SoftSlots<S>& soft) {
    soft.panels.pack(soft.slot_groups(), dinputs.cols(),
                     [&](Index slot) { return dinputs.row(soft.row_of_slot(slot)); });
    dtokens.resize(transposed.rows(), dinputs.cols());
    multiply(soft.token_groups(), transposed, soft, dinputs.cols(), [&](Index r) { return dtokens.row(r); });
  }

  /// dlogits = C (dC - sum over slots of C dC) + D (dD - sum over tokens of D dD), 0 for padding.
  void backward_logits(const SoftSlots<S>& soft, Matrix<S>& dlogits) {
    mean.resize(soft.num_groups(), soft.num_slots);
    parallel_for(soft.num_groups(), [&](Index g, Index) {
      double* const sum = mean.row(g);
      std::fill_n(sum, soft.num_slots, 0.0);
      for (Index r = soft.token_groups().begin(g); r < soft.token_groups().end(g); ++r)
        for (Index i = 0; i < soft.num_slots; ++i)
          sum[i] += static_cast<double>(transposed.row(r)[i]) * static_cast<double>(ddispatch.row(r)[i]);
    });
    if (soft.tokens.rows() != dlogits.rows()) dlogits.setZero();
    for (Index g = 0; g < soft.num_groups(); ++g) {
      const Index first = soft.token_groups().begin(g);
      constexpr Index kRowsPerTask = 32;
      parallel_ranges(soft.token_groups().size(g), kRowsPerTask, [&](Index begin, Index end, Index) {
        for (Index r = first + begin; r < first + end; ++r) {
          S* const d = dlogits.row(soft.of.groups.token[static_cast<std::size_t>(r)]).data();
          softmax_backward(soft.combine.row(r), dcombine.row(r), soft.num_slots, d);
          for (Index i = 0; i < soft.num_slots; ++i)
            d[i] += transposed.row(r)[i] * (ddispatch.row(r)[i] - static_cast<S>(mean.row(g)[i]));
        }
      });
    }
  }

 private:
  template <class To>
  static void multiply(const kernel::RowGroups& groups, const RowBuffer<S>& a, SoftSlots<S>& soft, Index cols,
                       const To& to) {
    kernel::multiply_by_rows<S>(groups, kernel::RowSource<S>::from(a), soft.panels, cols, soft.tasks, to);
  }
};

}  // namespace moe::inline MOE_ABI::detail
