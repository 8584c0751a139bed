// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <map>
#include <string>
#include <type_traits>

#include "moe/io/file/safetensors.hpp"
#include "moe/kernel/quantised_matrix.hpp"

// How weights in few bits lie in a file of parameters. A matrix NAME is
//   NAME.format   I64 [7]: outputs, inputs, WeightCode, ScaleType, group, bits, whether there are zero points
//   NAME.codes    U8 [outputs, bytes of a row]: bits from the lowest of the first byte on
//   NAME.scales   [outputs, groups] in their own type, E8M0 as U8
//   NAME.zeros    [outputs, groups]: I8, of planes in the type of the scales
//   NAME.scale    F32 []: of the matrix, with scales E4M3
// and what its format has none of is not there. The numbers of WeightCode and ScaleType are part of the format.
namespace moe::inline MOE_ABI::detail {

template <class Leaf>
inline constexpr bool kIsQuantised = std::is_same_v<std::remove_const_t<Leaf>, PanelMatrix<Quantised>>;

inline Dtype dtype_of_scale(ScaleType type) {
  switch (type) {
    case ScaleType::F32:
      return Dtype::F32;
    case ScaleType::F16:
      return Dtype::F16;
    case ScaleType::Bf16:
      return Dtype::BF16;
    case ScaleType::E4M3:
      return Dtype::F8_E4M3;
    case ScaleType::E8M0:
    case ScaleType::Unscaled:
      break;
  }
  return Dtype::U8;
}

/// The tensors of a matrix, by name.
inline std::map<std::string, TensorInfo> tensors_of(const std::string& name, Index outputs, Index inputs,
                                                    const WeightFormat& format) {
  std::map<std::string, TensorInfo> result;
  const auto add = [&](const char* part, Dtype dtype, std::vector<Index> shape) {
    result.emplace(name + part, TensorInfo{.dtype = dtype, .shape = std::move(shape)});
  };
  add(".format", Dtype::I64, {7});
  if (format.code == WeightCode::Zeros) return result;
  add(".codes", Dtype::U8, {outputs, (inputs * format.code_bits() + 7) / 8});
  if (format.scale == ScaleType::Unscaled) return result;
  const std::vector<Index> groups{outputs, format.num_groups(inputs)};
  add(".scales", dtype_of_scale(format.scale), groups);
  if (format.has_zero_points)
    add(".zeros", format.code == WeightCode::Planes ? dtype_of_scale(format.scale) : Dtype::I8, groups);
  if (format.scale == ScaleType::E4M3) add(".scale", Dtype::F32, {});
  return result;
}

template <class Writer>
void write_quantised(Writer& writer, const std::string& name, const PanelMatrix<Quantised>& weights) {
  const WeightFormat format = weights.format();
  const std::array<std::int64_t, 7> numbers{weights.outputs(),
                                            weights.inputs(),
                                            static_cast<std::int64_t>(format.code),
                                            static_cast<std::int64_t>(format.scale),
                                            format.group,
                                            format.bits,
                                            format.has_zero_points};
  writer.write(name + ".format", std::span<const std::int64_t>(numbers));
  if (format.code == WeightCode::Zeros) return;
  const PanelMatrix<Quantised>::Rows rows = weights.rows();
  writer.write_bytes(name + ".codes", rows.codes);
  if (format.scale == ScaleType::Unscaled) return;
  writer.write_bytes(name + ".scales", rows.scales);
  if (format.has_zero_points) writer.write_bytes(name + ".zeros", rows.zeros);
  const float scale = weights.matrix_scale();
  if (format.scale == ScaleType::E4M3) writer.write(name + ".scale", std::span(&scale, 1));
}

/// Whether a matrix lies in a file as codes.
inline bool has_codes(const SafetensorsReader& file, const std::string& name) {
  return file.tensors().contains(name + ".format");
}

/// The format of a matrix in a file. Throws std::runtime_error for numbers that are none, and for other sizes than
/// those of `weights`.
inline WeightFormat read_format(const std::string& label, const SafetensorsReader& file, const std::string& name,
                                const PanelMatrix<Quantised>& weights) {
  std::array<std::int64_t, 7> numbers;
  if (file.tensor(name + ".format").shape != std::vector<Index>{7})
    fail_environment(label, ": tensor '", name, ".format' has shape [", join(file.tensor(name + ".format").shape, ", "),
                     "], expected [7]");
  file.read(name + ".format", std::span<std::int64_t>(numbers));
  const auto [outputs, inputs, code, scale, group, bits, zeros] = numbers;
  if (outputs != weights.outputs() || inputs != weights.inputs())
    fail_environment(label, ": '", name, "' is of [", outputs, ", ", inputs, "] weights, expected [", weights.outputs(),
                     ", ", weights.inputs(), "]");
  if (code < 0 || code > static_cast<int>(WeightCode::Planes) || scale < 0 ||
      scale > static_cast<int>(ScaleType::E4M3) || bits < 0 || bits > 8 || zeros < 0 || zeros > 1)
    fail_environment(label, ": '", name, ".format' is [", code, ", ", scale, ", ", group, ", ", bits, ", ", zeros,
                     "], expected numbers of a WeightFormat");
  const WeightFormat format{.code = static_cast<WeightCode>(code),
                            .scale = static_cast<ScaleType>(scale),
                            .group = group,
                            .bits = static_cast<int>(bits),
                            .has_zero_points = zeros == 1};
  try {
    format.validate();
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": '", name, ".format': ", error.what());
  }
  return format;
}

/// Floats of a file, rounded to the format of `weights`.
inline void round_from_file(const std::string& label, const SafetensorsReader& file, const std::string& name,
                            PanelMatrix<Quantised>& weights, Narrowing narrowing) {
  if (weights.format().code == WeightCode::Zeros)
    fail(label, ": '", name, "' are floats, and the layer has no format for them, expected one to round them to");
  std::vector<float> values(static_cast<std::size_t>(weights.outputs() * weights.inputs()));
  file.read(name, std::span<float>(values), narrowing);
  try {
    weights.write(std::span<const float>(values));
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": '", name, "': ", error.what());
  }
}

/// A matrix of a file: codes in its format, whatever the one of `weights` was, or floats, rounded to that.
inline void read_quantised(const std::string& label, const SafetensorsReader& file, const std::string& name,
                           PanelMatrix<Quantised>& weights, Narrowing narrowing) {
  if (!has_codes(file, name)) return round_from_file(label, file, name, weights, narrowing);
  const WeightFormat format = read_format(label, file, name, weights);
  PanelMatrix<Quantised> result(weights.outputs(), weights.inputs(), weights.order(), format);
  const auto bytes = [&](const char* part) { return std::span<const std::byte>(file.view(name + part).bytes); };
  PanelMatrix<Quantised>::RowViews rows;
  if (format.code != WeightCode::Zeros) rows.codes = bytes(".codes");
  if (format.scale != ScaleType::Unscaled) rows.scales = bytes(".scales");
  if (format.has_zero_points) rows.zeros = bytes(".zeros");
  try {
    if (format.scale == ScaleType::E4M3) {
      float scale = 1;
      file.read(name + ".scale", std::span(&scale, 1));
      result.set_matrix_scale(scale);
    }
    result.set_rows(rows);
    result.set_dot(weights.dot());
  } catch (const std::invalid_argument& error) {
    fail_environment(label, ": '", name, "': ", error.what());
  }
  weights = std::move(result);
}

}  // namespace moe::inline MOE_ABI::detail
