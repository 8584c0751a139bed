// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/parallel.hpp"
#include "moe/io/checkpoint/load_weight.hpp"
#include "moe/kernel/quantised_matrix.hpp"

namespace moe::inline MOE_ABI {

/// A Quantiser of any type: see compress/quantise.hpp. Called from several threads.
using MatrixRounding = std::function<PanelMatrix<Quantised>(const PanelMatrix<F32>&, const WeightFormat&)>;

namespace detail {

/// The format that holds what all slices of a matrix store, bit for bit.
inline WeightFormat kept_format_of(MatrixSlices slices) {
  constexpr const char* kFunction = "moe::CodeLoader::add";
  const WeightSource& first = slices.front().source;
  const std::optional<WeightFormat> kept = first.kept_format();
  if (!kept)
    fail(kFunction, ": weight ", in_quotes(first.name()), " is stored as ", first.format(),
         ", which no format of few bits holds as it is; expected a format to round it to");
  bool has_one_scale = true;
  WeightFormat format = *kept;
  for (const WeightSlice& slice : slices) {
    const WeightSource& other = slice.source;
    const std::optional<WeightFormat> another = other.kept_format();
    if (!another || another->without_zero_points() != kept->without_zero_points())
      fail(kFunction, ": weights ", in_quotes(first.name()), " and ", in_quotes(other.name()), " are stored as ",
           first.format(), " and ", other.format(), ", expected one format in a matrix, or one to round both to");
    has_one_scale = has_one_scale && other.matrix_scale() == first.matrix_scale();
    format.has_zero_points = format.has_zero_points || another->has_zero_points;  // 0 where a part has none
  }
  // NVFP4 whose gates and ups have a scale each: products of both scales, which are floats.
  if (format.scale == ScaleType::E4M3 && !has_one_scale) format.scale = ScaleType::F32;
  format.validate();
  return format;
}

/// Codes of inputs that lie apart, and whether all of them have the scale and zero point of the first.
inline bool read_apart(const WeightSource& source, Index first, Index stride, std::span<std::uint32_t> codes) {
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  const StoredWeight shared = source.stored(first);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const StoredWeight weight = source.stored(first + static_cast<Index>(i) * stride);
    if (bits(weight.scale) != bits(shared.scale) || bits(weight.zero) != bits(shared.zero)) return false;
    codes[i] = weight.code;
  }
  return true;
}

/// The same of codes without scales, which are whole bytes.
inline void read_plain(const std::byte* at, std::size_t bytes_each, std::size_t apart, std::span<std::uint32_t> codes) {
  if (bytes_each == 1) {
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = std::to_integer<std::uint32_t>(at[i * apart]);
    return;
  }
  for (std::size_t i = 0; i < codes.size(); ++i) {
    std::uint16_t code = 0;
    std::memcpy(&code, at + i * apart, sizeof code);
    codes[i] = code;
  }
}

/// A slice on its way into a matrix.
struct CodeCopy {
  const WeightSlice& slice;
  WeightFormat format;  ///< of the source
  float factor;         ///< of its scales
  PanelMatrix<Quantised>& to;

  /// Codes, scale and zero point of inputs [begin, begin + codes.size()) of an output: a group, or part of a row
  /// without groups. False where the inputs have more than one scale.
  bool copy(Index output, Index begin, std::span<std::uint32_t> codes) const {
    const WeightSource& source = slice.source;
    const Index first = slice.first + output * slice.output_stride + begin * slice.input_stride;
    const Index row = slice.first_output + output, columns = source.shape().empty() ? 1 : source.shape().back();
    const Index column = first % columns;
    if (format.scale == ScaleType::Unscaled) {
      const std::size_t bytes = dtype_size(source.codes());
      const std::byte* const plain = source.stored_as(source.codes()).data();
      read_plain(plain + static_cast<std::size_t>(first) * bytes, bytes,
                 static_cast<std::size_t>(slice.input_stride) * bytes, codes);
    } else if (const Index group = format.group_of(columns);
               slice.input_stride == 1 && column % group + std::ssize(codes) <= std::min(group, columns - column)) {
      source.stored_codes(first, codes);
    } else if (!read_apart(source, first, slice.input_stride, codes)) {
      return false;
    }
    to.set_codes(row, begin, codes);
    if (format.scale == ScaleType::Unscaled) return true;
    const StoredWeight shared = source.stored(first);
    to.set_scale(row, begin / to.format().group_of(to.inputs()), shared.scale * factor);
    if (to.format().has_zero_points) to.set_zero_point(row, begin / to.format().group_of(to.inputs()), shared.zero);
    return true;
  }
};

/// A slice as it is stored, some inputs of some outputs at a time: those of a panel where the inputs of an output lie
/// together, so that it stays in L1 and the file is read in its order; else of all outputs, so that a line of the file
/// is read once. False where inputs that share a scale in the format do not in the file.
inline bool copy_codes(const WeightSlice& slice, PanelMatrix<Quantised>& to, std::vector<std::uint32_t>& codes) {
  constexpr Index kInputsAtOnce = 256;
  const Index inputs = slice.inputs;
  if (inputs == 0) return true;
  const bool has_scales = to.format().scale != ScaleType::Unscaled;
  const Index group = std::min(has_scales ? to.format().group_of(inputs) : kInputsAtOnce, inputs);
  const Index inputs_at_once = std::max<Index>(1, kInputsAtOnce / group) * group;
  const Index outputs_at_once = slice.input_stride == 1 ? PanelMatrix<Quantised>::kWidth : slice.outputs;
  const WeightFormat format = *slice.source.kept_format();
  const float factor = format.scale != to.format().scale ? slice.source.matrix_scale() : 1;
  const CodeCopy slice_to_matrix{slice, format, factor, to};
  codes.resize(static_cast<std::size_t>(group));
  const auto copy_output = [&](Index output, Index begin, Index end) {
    for (Index i = begin; i < end; i += group) {
      const auto count = static_cast<std::size_t>(std::min(group, end - i));
      if (!slice_to_matrix.copy(output, i, std::span(codes).first(count))) return false;
    }
    return true;
  };
  for (Index first = 0; first < slice.outputs; first += outputs_at_once)
    for (Index begin = 0; begin < inputs; begin += inputs_at_once)
      for (Index o = first; o < std::min(first + outputs_at_once, slice.outputs); ++o)
        if (!copy_output(o, begin, std::min(begin + inputs_at_once, inputs))) return false;
  return true;
}

/// Memory of one worker.
struct CodeLoaderScratch {
  PanelScratch panels;
  std::vector<std::uint32_t> codes;
};

/// The matrix of the slices in `format`, rounded from floats that live as long as this call.
inline PanelMatrix<Quantised> round_slices(MatrixSlices slices, const WeightFormat& format,
                                           const MatrixRounding& rounding, PanelScratch& scratch) {
  const PanelMatrix<Quantised>& to = *slices.front().to_codes;
  PanelMatrix<F32> floats(to.outputs(), to.inputs(), to.order());
  std::vector<WeightSlice> parts;
  for (const WeightSlice& slice : slices) parts.push_back(slice.into(floats, slice.first_output));
  load_panels(parts, 0, extent_of(parts), scratch);
  if (rounding) return rounding(floats, format);
  PanelMatrix<Quantised> result(to.outputs(), to.inputs(), to.order(), format);
  result.round(floats);
  return result;
}

/// The matrix of the slices as they are stored; on return `misfit` is a slice whose scales do not fit, if there is one.
inline PanelMatrix<Quantised> keep_slices(MatrixSlices slices, const WeightFormat& format,
                                          std::vector<std::uint32_t>& codes, const WeightSlice*& misfit) {
  const PanelMatrix<Quantised>& to = *slices.front().to_codes;
  PanelMatrix<Quantised> result(to.outputs(), to.inputs(), to.order(), format);
  if (format.scale == ScaleType::E4M3) result.set_matrix_scale(slices.front().source.matrix_scale());
  for (const WeightSlice& slice : slices)
    if (!copy_codes(slice, result, codes)) misfit = &slice;
  return result;
}

}  // namespace detail

/// Fills matrices in few bits from the weights of a checkpoint, as WeightLoader fills those of floats: add() checks and
/// notes, run() loads a matrix per worker at a time.
/// Without a format a matrix keeps the codes and scales of the file, bit for bit, in the format that
/// WeightSource::kept_format() names. Scales of square blocks become one per output and group. Values that share a
/// scale along the inputs of the file's layout must share it along those of the slice.
/// With a format every weight is read as floats and rounded to it, as round_to_nearest() does it, or `rounding`. Beside
/// the codes, memory is that of one matrix of floats per worker.
///   moe::CodeLoader loader(moe::WeightFormat::int4());
///   loader.add({moe::weight_slice(source, moe::WeightLayout::OutIn).into(expert.down())});
///   loader.run();
/// Matrices give their sizes and order, and get a format; they must stay where they are until run() returns. One per
/// thread.
class CodeLoader {
 public:
  /// Throws std::invalid_argument for a format that is not valid or has no codes, and for a rounding without a format.
  explicit CodeLoader(std::optional<WeightFormat> format = {}, MatrixRounding rounding = {})
      : format_(format), rounding_(std::move(rounding)) {
    if (!format && rounding_) fail("moe::CodeLoader: a rounding without a format, expected one to round to");
    if (!format) return;
    format->validate();
    if (format->code == WeightCode::Zeros) fail("moe::CodeLoader: format is none, expected one with codes");
  }

  /// All slices of one matrix, in any order, with their places in it. Throws as WeightLoader::add(), and
  /// std::invalid_argument without a format where the file has none of few bits, or two for parts of one matrix.
  void add(std::vector<WeightSlice> slices) {
    slices = detail::slices_of_matrix("moe::CodeLoader::add", std::move(slices), &WeightSlice::to_codes);
    const WeightFormat format = format_ ? *format_ : detail::kept_format_of(slices);
    matrices_.push_back({std::move(slices), format});
  }

  /// Loads everything that was added, and forgets it. Throws std::invalid_argument for scales that do not fit the
  /// inputs of a slice and for a rounding that returns a matrix of another shape or format, std::runtime_error naming a
  /// weight that the format cannot hold or the rounding refuses; some matrices are then loaded, others are as they
  /// were. Which thread fills what changes no bit.
  void run(const LoadProgress& progress = {}) {
    const std::vector<Matrix> matrices = std::exchange(matrices_, {});
    std::uint64_t total = 0;
    for (const Matrix& matrix : matrices) total += detail::bytes_of(matrix.slices);
    detail::ProgressMeter meter(progress, total);
    std::vector<detail::CodeLoaderScratch> scratch(static_cast<std::size_t>(num_workers()));
    parallel_in_order(std::ssize(matrices), [&](Index task, Index worker) {
      const Matrix& matrix = matrices[static_cast<std::size_t>(task)];
      PanelMatrix<Quantised>& to = *matrix.slices.front().to_codes;
      PanelMatrix<Quantised> made = loaded(matrix, scratch[static_cast<std::size_t>(worker)]);
      if (!made.is_shaped_as(to) || made.format() != matrix.format)
        fail("moe::CodeLoader::run: the rounding of weight ", names_of(matrix.slices), " returns [", made.outputs(),
             ", ", made.inputs(), "] in ", made.format().name(), ", expected [", to.outputs(), ", ", to.inputs(),
             "] in ", matrix.format.name(), ", in the order of the weights");
      made.set_dot(to.dot());
      to = std::move(made);
      meter.add(detail::bytes_of(matrix.slices));
    });
  }

 private:
  struct Matrix {
    std::vector<WeightSlice> slices;
    WeightFormat format;
  };

  /// Of the weights of a matrix: "'gate' or 'up'".
  static std::string names_of(detail::MatrixSlices slices) {
    std::string text, last;
    for (const WeightSlice& slice : slices) {
      if (slice.source.name() == last) continue;
      last = slice.source.name();
      text += (text.empty() ? "" : " or ") + detail::in_quotes(last);
    }
    return text;
  }

  PanelMatrix<Quantised> loaded(const Matrix& matrix, detail::CodeLoaderScratch& scratch) const {
    const WeightSlice* misfit = nullptr;
    PanelMatrix<Quantised> result;
    try {
      result = format_ ? detail::round_slices(matrix.slices, matrix.format, rounding_, scratch.panels)
                       : detail::keep_slices(matrix.slices, matrix.format, scratch.codes, misfit);
    } catch (const std::invalid_argument& error) {  // of a number in the file
      fail_environment(matrix.slices.front().source.label(), ": weight ", names_of(matrix.slices), ": ", error.what());
    }
    if (misfit)
      fail("moe::CodeLoader::run: weight ", detail::in_quotes(misfit->source.name()), " is stored as ",
           misfit->source.format(), " with scales that begin or end inside of ",
           std::min(matrix.format.group_of(misfit->inputs), misfit->inputs),
           " inputs of an output, expected one for all of them, or a format to round it to");
    return result;
  }

  std::optional<WeightFormat> format_;
  MatrixRounding rounding_;
  std::vector<Matrix> matrices_;
};

/// One matrix at once, one thread. Throws as CodeLoader.
inline void load_weight(const WeightSlice& slice, PanelMatrix<Quantised>& to, std::optional<WeightFormat> format = {}) {
  CodeLoader loader(format);
  loader.add({slice.into(to)});
  loader.run();
}

}  // namespace moe::inline MOE_ABI
