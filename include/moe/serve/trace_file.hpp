// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/io/file/safetensors.hpp"
#include "moe/serve/routing_trace.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

template <class Id>
void write_trace_ids(SafetensorsWriter& writer, const RoutingTrace& trace) {
  std::vector<Id> ids;
  ids.reserve(static_cast<std::size_t>(trace.num_choices()));
  for (Index t = 0; t < trace.num_tokens(); ++t)
    for (const std::uint32_t e : trace.experts(t)) ids.push_back(static_cast<Id>(e));
  writer.write("experts", std::span<const Id>(ids));
}

inline std::vector<std::int64_t> trace_numbers(const SafetensorsReader& file, std::string_view name) {
  const TensorView tensor = file.view(name);
  if (tensor.shape.size() != 1)
    fail_environment(tensor.label, ": tensor '", tensor.name, "' has shape [", join(tensor.shape, ", "),
                     "], expected a list");
  return read_all<std::int64_t>(tensor);
}

}  // namespace detail

/// Saves a trace as safetensors:
///   experts    [num_choices], U8, U16 or U32, whichever holds all of them
///   choices    [num_tokens], U32: how many of the experts belong to a token
///   sequences  [num_sequences], I64: first token of each; num_tokens last where begin_sequence() came after all tokens
///   num_experts [1], I64;  scores [num_tokens, num_experts], F32, where the trace has them
/// Equal traces give equal bytes; the file appears whole or not at all. Throws std::runtime_error if it cannot be
/// written.
inline void save_trace(const std::filesystem::path& path, const RoutingTrace& trace) {
  const Index experts = trace.num_experts(), tokens = trace.num_tokens();
  const bool is_pending = tokens > 0 && trace.begins_sequence();  // without tokens it always is
  const Dtype id = experts <= 1 << 8 ? Dtype::U8 : experts <= 1 << 16 ? Dtype::U16 : Dtype::U32;
  SafetensorsHeader header;
  header.tensors["experts"] = {.dtype = id, .shape = {trace.num_choices()}};
  header.tensors["choices"] = {.dtype = Dtype::U32, .shape = {tokens}};
  header.tensors["sequences"] = {.dtype = Dtype::I64, .shape = {trace.num_sequences() + (is_pending ? 1 : 0)}};
  header.tensors["num_experts"] = {.dtype = Dtype::I64, .shape = {1}};
  if (trace.has_scores()) header.tensors["scores"] = {.dtype = Dtype::F32, .shape = {tokens, experts}};
  SafetensorsWriter writer(path, std::move(header));
  if (id == Dtype::U8)
    detail::write_trace_ids<std::uint8_t>(writer, trace);
  else if (id == Dtype::U16)
    detail::write_trace_ids<std::uint16_t>(writer, trace);
  else
    detail::write_trace_ids<std::uint32_t>(writer, trace);
  std::vector<std::uint32_t> choices;
  std::vector<std::int64_t> sequences;
  for (Index t = 0; t < tokens; ++t) choices.push_back(static_cast<std::uint32_t>(trace.experts(t).size()));
  for (Index i = 0; i < trace.num_sequences(); ++i) sequences.push_back(trace.sequence_begin(i));
  if (is_pending) sequences.push_back(tokens);
  writer.write("choices", std::span<const std::uint32_t>(choices));
  writer.write("sequences", std::span<const std::int64_t>(sequences));
  const std::int64_t number = experts;
  writer.write("num_experts", std::span(&number, 1));
  if (trace.has_scores()) {
    std::vector<float> scores;
    for (Index t = 0; t < tokens; ++t) scores.insert(scores.end(), trace.scores(t).begin(), trace.scores(t).end());
    writer.write("scores", std::span<const float>(scores));
  }
  writer.commit();
}

/// Reads a file of save_trace(). Throws std::runtime_error that names file and tensor for one that is none: experts out
/// of range or twice in a token, numbers that do not add up.
inline RoutingTrace load_trace(const std::filesystem::path& path) {
  const SafetensorsReader file(path, FileAccess::Read);
  const std::string label = "moe::load_trace: '" + path.string() + "'";
  const auto number = detail::trace_numbers(file, "num_experts"), experts = detail::trace_numbers(file, "experts"),
             choices = detail::trace_numbers(file, "choices"), sequences = detail::trace_numbers(file, "sequences");
  if (number.size() != 1 || number[0] < 1 || number[0] > std::numeric_limits<std::uint32_t>::max())
    fail_environment(label, ": 'num_experts' is no number of experts");
  RoutingTrace trace(static_cast<Index>(number[0]));
  const auto tokens = std::ssize(choices);
  const bool has_scores = file.tensors().contains("scores") && tokens > 0;
  if (has_scores && file.tensor("scores").shape != std::vector<Index>{tokens, trace.num_experts()})
    fail_environment(label, ": 'scores' has shape [", detail::join(file.tensor("scores").shape, ", "), "], expected [",
                     tokens, ", ", trace.num_experts(), "]");
  const std::vector<float> scores = has_scores ? read_all<float>(file.view("scores")) : std::vector<float>();
  std::size_t at = 0, sequence = 0;
  Matrix<float> own(has_scores ? 1 : 0, trace.num_experts());
  for (Index t = 0; t < tokens; ++t) {
    const std::int64_t count = choices[static_cast<std::size_t>(t)];
    if (count < 0 || count > std::ssize(experts) - static_cast<std::int64_t>(at))
      fail_environment(label, ": token ", t, " has ", count, " of ", experts.size(), " experts, ", at,
                       " of which are those of tokens before it");
    if (sequence < sequences.size() && sequences[sequence] == t) trace.begin_sequence(), ++sequence;
    const std::vector<Index> ids(experts.begin() + static_cast<std::ptrdiff_t>(at),
                                 experts.begin() + static_cast<std::ptrdiff_t>(at) + count);
    at += static_cast<std::size_t>(count);
    try {
      if (!has_scores) {
        trace.add(ids);
        continue;
      }
      RoutingTrace checked(trace.num_experts());  // each expert once
      checked.add(ids);
      std::copy_n(scores.begin() + t * trace.num_experts(), trace.num_experts(), own.data());
      trace.add<float>(Routing<float>::from(1, ids, {}, trace.num_experts()), own);
    } catch (const std::invalid_argument& error) {
      fail_environment(label, ": token ", t, ": ", error.what());
    }
  }
  if (tokens > 0 && sequence < sequences.size() && sequences[sequence] == tokens) trace.begin_sequence(), ++sequence;
  if (at != experts.size() || sequence != sequences.size() || (tokens > 0 && (sequences.empty() || sequences[0] != 0)))
    fail_environment(label, ": ", experts.size(), " experts and ", sequences.size(), " sequences, expected the ", at,
                     " of all tokens, and sequences that begin at ascending tokens, the first at 0");
  return trace;
}

}  // namespace moe::inline MOE_ABI
