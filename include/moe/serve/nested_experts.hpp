// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/expert/pool.hpp"
#include "moe/io/file/parameters.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Throws std::invalid_argument unless bits of levels rise from 1 to at most 8.
inline void require_levels(const char* function, std::span<const int> bits) {
  if (bits.empty()) fail(function, ": 0 levels, expected at least 1");
  for (std::size_t l = 0; l < bits.size(); ++l)
    if (bits[l] < 1 || bits[l] > 8 || (l > 0 && bits[l] <= bits[l - 1]))
      fail(function, ": level ", l, " has ", bits[l], " bits, expected rising numbers from 1 to 8");
}
/// Throws std::invalid_argument for a matrix without so many planes.
inline void require_nested(const char* function, Index expert, const std::string& name,
                           const PanelMatrix<Quantised>& weights, int bits) {
  if (weights.format().code != WeightCode::Planes || weights.format().bits != bits)
    fail(function, ": '", name, "' of expert ", expert, " is ", weights.format().name(), ", expected ", bits,
         " planes, those of the highest level");
}

}  // namespace detail

/// The virtual experts of weights whose bits are nested: expert e * levels + l is expert e with its first bits[l]
/// planes, of which the last level has all. A routing names them as any others, so that each choice of a token may have
/// a precision of its own; plan, combine and losses stay as they are. In memory each level is a copy; the planes
/// themselves lie once in the file of save_nested_experts().
///   const auto pool = moe::quantise(layer.experts(), moe::WeightFormat::planes(4));
///   const auto levels = moe::nested_experts(pool, std::array{2, 3, 4});
/// Throws std::invalid_argument unless bits rise and all matrices have planes, as many as the last level.
template <class E>
ExpertPool<E> nested_experts(const ExpertPool<E>& pool, std::span<const int> bits) {
  constexpr const char* kFunction = "moe::nested_experts";
  detail::require_levels(kFunction, bits);
  std::vector<E> experts;
  for (Index e = 0; e < pool.size(); ++e)
    for (const int level : bits) {
      E expert = pool[e];
      visit_all(
          [&](const std::string& name, auto& leaf) {
            if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
              detail::require_nested(kFunction, e, name, leaf, bits.back());
              leaf = leaf.first_planes(level);
            }
          },
          expert);
      experts.push_back(std::move(expert));
    }
  return ExpertPool<E>(std::move(experts));
}

/// Sends every choice of a routing to one level of its expert. Throws std::invalid_argument for a level that is not
/// there.
template <class S>
void route_to_level(Routing<S>& routing, Index levels, Index level) {
  if (level < 0 || level >= levels) fail("moe::route_to_level: level ", level, ", expected one in [0, ", levels, ")");
  for (Index& e : routing.experts()) e = e * levels + level;
}

/// Writes a pool for NestedExpertFile (nested_expert_file.hpp): scales and the planes of the lowest level of each
/// expert, then, level by level, the planes that the next one adds. Other parameters are those of the lowest level.
/// Throws std::invalid_argument as nested_experts(), std::runtime_error if the file cannot be written.
//   E.NAME.format, .scales, .zeros  of matrix NAME of expert E, as in quantised_parameters.hpp, with all planes; but
//                                   scales are those of the lowest level
//   E.NAME.planesL                  U32 [planes, steps of 32 inputs, outputs], those that level L adds
//   E.NAME                          what is no matrix in few bits
//   levels                          I64 [levels], their bits
template <class E>
void save_nested_experts(const std::filesystem::path& path, const ExpertPool<E>& pool, std::span<const int> bits) {
  constexpr const char* kFunction = "moe::save_nested_experts";
  detail::require_levels(kFunction, bits);
  SafetensorsHeader header;
  const auto levels = static_cast<Index>(bits.size());
  header.tensors.emplace("levels", TensorInfo{.dtype = Dtype::I64, .shape = {levels}});
  const auto for_each_leaf = [&](const auto& f) {
    for (Index e = 0; e < pool.size(); ++e)
      visit_all([&](const std::string& name, const auto& leaf) { f(e, std::to_string(e) + "." + name, leaf); },
                pool[e]);
  };
  const auto added = [&](Index level) {
    return bits[static_cast<std::size_t>(level)] - (level > 0 ? bits[static_cast<std::size_t>(level - 1)] : 0);
  };
  for_each_leaf([&](Index e, const std::string& name, const auto& leaf) {
    if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
      detail::require_nested(kFunction, e, name, leaf, bits.back());
      for (const auto& [part, info] : detail::tensors_of(name, leaf.outputs(), leaf.inputs(), leaf.format()))
        if (part != name + ".codes") header.tensors.emplace(part, info);
      for (Index l = 0; l < levels; ++l)
        header.tensors.emplace(
            name + ".planes" + std::to_string(l),
            TensorInfo{.dtype = Dtype::U32, .shape = {added(l), (leaf.inputs() + 31) / 32, leaf.outputs()}});
    } else {
      header.tensors.emplace(
          name, TensorInfo{.dtype = dtype_of<ParameterScalar<decltype(leaf)>>(), .shape = parameter_shape(leaf)});
    }
  });
  SafetensorsWriter writer(path, std::move(header));
  const std::vector<std::int64_t> numbers(bits.begin(), bits.end());
  writer.write("levels", std::span<const std::int64_t>(numbers));
  for_each_leaf([&](Index, const std::string& name, const auto& leaf) {
    if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
      const WeightFormat format = leaf.format();
      const std::array<std::int64_t, 7> of{leaf.outputs(),
                                           leaf.inputs(),
                                           static_cast<std::int64_t>(format.code),
                                           static_cast<std::int64_t>(format.scale),
                                           format.group,
                                           format.bits,
                                           format.has_zero_points};
      writer.write(name + ".format", std::span<const std::int64_t>(of));
      const PanelMatrix<Quantised>::Rows rows = leaf.first_planes(bits.front()).rows();
      writer.write_bytes(name + ".scales", rows.scales);
      if (format.has_zero_points) writer.write_bytes(name + ".zeros", rows.zeros);
      for (Index l = 0, p = 0; l < levels; ++l) {
        std::vector<std::uint32_t> words;
        for (const Index end = p + added(l); p < end; ++p) {
          const std::vector<std::uint32_t> plane = leaf.plane(static_cast<int>(p));
          words.insert(words.end(), plane.begin(), plane.end());
        }
        writer.write_bytes(name + ".planes" + std::to_string(l), std::as_bytes(std::span(words)));
      }
    } else {
      using S = ParameterScalar<decltype(leaf)>;
      std::vector<S> values(static_cast<std::size_t>(parameter_size(leaf)));
      read_parameter(leaf, std::span<S>(values));
      writer.write(name, std::span<const S>(values));
    }
  });
  writer.commit();
}

}  // namespace moe::inline MOE_ABI
