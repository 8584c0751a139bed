// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "moe/kernel/code_store.hpp"
#include "moe/kernel/dot.hpp"

// Long, as it is one class: what a weight is made of, one by one.
namespace moe::inline MOE_ABI {

/// The codec of weights in few bits. Their format is a value of the matrix, not a type: experts and matrices of one
/// pool may differ in it, and each runs at full speed.
struct Quantised {
  using Storage = std::byte;
  using Scalar = float;
};

/// Weight matrix [outputs, inputs] in few bits, in the order that the kernels read: see PanelMatrix, WeightFormat. What
/// is computed with it has the bits of what is computed with decoded(). Its numbers are kept and not learned: experts
/// name it in `state`, and backward goes through it to the rows alone. Copies share their codes until one of them is
/// written; immutable use is thread-safe. Empty after it has been moved from.
template <>
class PanelMatrix<Quantised> {
 public:
  using Scalar = float;
  static constexpr Index kLanes = simd::kLanes<float>;
  static constexpr Index kWidth = kernel::kPanelWidth<float>;

  PanelMatrix() = default;
  /// Zeros, which take no memory.
  PanelMatrix(Index outputs, Index inputs, PanelOrder order = PanelOrder::Plain)
      : PanelMatrix(outputs, inputs, order, WeightFormat::none()) {}
  /// Zeros in a format. Throws std::invalid_argument for what WeightFormat::validate() refuses, sizes that are negative
  /// or too large, or an odd number of paired outputs.
  PanelMatrix(Index outputs, Index inputs, PanelOrder order, const WeightFormat& format)
      : state_(std::make_shared<detail::CodeStore>(outputs, inputs, order, format)) {}

  Index outputs() const { return state_ ? state_->outputs : 0; }
  Index inputs() const { return state_ ? state_->panels.inputs : 0; }
  Index panels() const { return state_ ? state_->panels.panels : 0; }
  PanelOrder order() const { return state_ ? state_->order : PanelOrder::Plain; }
  bool empty() const { return outputs() == 0; }
  WeightFormat format() const { return state_ ? state_->panels.format : WeightFormat::none(); }
  bool is_shaped_as(const PanelMatrix& other) const {
    return outputs() == other.outputs() && inputs() == other.inputs() && order() == other.order();
  }
  /// Scales of an output: 0 without scales.
  Index num_groups() const { return format().num_groups(inputs()); }
  /// Of codes, scales, zero points and padding.
  std::size_t bytes() const { return state_ ? static_cast<std::size_t>(state_->memory.size()) : 0; }

  /// What the kernels read; valid as long as this object lives and is not written.
  template <class S = Scalar>
  kernel::PanelSource<S> source() const {
    if (!state_) return {};
    const auto nan = state_->has_nan ? kernel::NanCodes::Present : kernel::NanCodes::Absent;
    return {.inputs = inputs(),
            .panels = panels(),
            .decoder = dot_ == Dot::Exact ? &kernel::decoder_of<S>(state_->panels.format, nan)
                                          : &kernel::dot_decoder_of<S>(state_->panels.format, dot_),
            .matrix = &state_->panels};
  }

  /// What rows are rounded to before they are multiplied. Of the matrix and its copies, not of its format; gradients
  /// are those of the exact product. With Dot::Int8
  ///   y = sum over groups of (sum of codes of x * codes of w, exact) * (scale of x * scale of w)
  /// in ascending order, a fused multiply-add for each group, and for each 512 inputs of larger ones; the bits do not
  /// depend on the batch, threads or, where it has a fused multiply-add, the instruction set. As |x - code * scale| <=
  /// max |x| / 254 in a group, y is off by at most sum over groups of max |x| / 254 * sum |w|, and rounding. With
  /// Dot::Bf16 each x is off by |x| / 256.
  Dot dot() const { return dot_; }
  /// Throws std::invalid_argument where can_dot() says that there is no such product.
  void set_dot(Dot dot) {
    if (!kernel::can_dot(format(), inputs(), dot))
      fail("moe::PanelMatrix::set_dot: ", dot == Dot::Int8 ? "Int8" : "Bf16", " of ", format().name(), " with ",
           inputs(), " inputs, expected at most ", kernel::detail::kMostDotInputs, " and ",
           dot == Dot::Int8 ? "int8, int4, mxfp4 or nvfp4 without zero points"
                            : "bf16 on a machine with AVX512-BF16 for which this is compiled");
    dot_ = dot;
  }

  /// One weight. Throws std::invalid_argument for an output or input that is not there.
  float get(Index output, Index input) const {
    require_place("moe::PanelMatrix::get", output, input);
    const kernel::CodePanels& panels = state_->panels;
    const WeightFormat& format = panels.format;
    if (format.code == WeightCode::Zeros) return 0;
    const detail::CodeStore::Place at = state_->place(output, input);
    const bool is_scaled = format.scale != ScaleType::Unscaled;
    const float zero = !format.has_zero_points             ? 0
                       : format.code == WeightCode::Planes ? state_->load_offset(at)
                                                           : static_cast<float>(state_->load_zero(at));
    return detail::weight_of_value(format, detail::value_of_code(format, state_->load_code(at)),
                                   is_scaled ? state_->whole_scale(at) : 1, zero);
  }
  /// The code of a weight, in the lowest bits: of Int8 and Int4 two's complement. Throws as get(), and for a matrix
  /// without codes.
  std::uint32_t code(Index output, Index input) const {
    require_codes("moe::PanelMatrix::code");
    require_place("moe::PanelMatrix::code", output, input);
    return state_->load_code(state_->place(output, input));
  }
  void set_code(Index output, Index input, std::uint32_t code) {
    constexpr const char* kFunction = "moe::PanelMatrix::set_code";
    require_codes(kFunction);
    require_place(kFunction, output, input);
    if (code >> format().code_bits() != 0)
      fail(kFunction, ": code ", code, ", expected one of ", format().code_bits(), " bits");
    own().store_code(state_->place(output, input), code);
  }
  /// Codes of an output from an input on: set_code() for many.
  void set_codes(Index output, Index first_input, std::span<const std::uint32_t> codes) {
    constexpr const char* kFunction = "moe::PanelMatrix::set_codes";
    require_codes(kFunction);
    if (codes.empty()) return;
    require_place(kFunction, output, first_input);
    require_place(kFunction, output, first_input + std::ssize(codes) - 1);
    const int bits = format().code_bits();
    for (const std::uint32_t code : codes)
      if (code >> bits != 0) fail(kFunction, ": code ", code, ", expected one of ", bits, " bits");
    own().put_codes(output, first_input, codes);
  }

  /// The scale of a group of an output, without that of the matrix. Throw std::invalid_argument for a group that is not
  /// there.
  float scale(Index output, Index group) const {
    const detail::CodeStore::Place at = group_place("moe::PanelMatrix::scale", output, group);
    return detail::scale_of_bits(format().scale, state_->load_scale(at));
  }
  /// Rounds to the nearest that can be stored. Throws for a finite scale that becomes infinite, and for one of E4M3
  /// codes of 2^119 and more, with which the kernels would leave the range of a float.
  void set_scale(Index output, Index group, float scale) {
    constexpr const char* kFunction = "moe::PanelMatrix::set_scale";
    const detail::CodeStore::Place at = group_place(kFunction, output, group);
    const std::uint32_t bits = detail::bits_of_scale(format().scale, scale);
    const float stored = detail::scale_of_bits(format().scale, bits);
    if (std::isfinite(scale) && !std::isfinite(stored))
      fail(kFunction, ": scale ", scale, " of output ", output, ", expected one that ", format().name(), " can store");
    require_scale(kFunction, output, stored);
    own().store(at.panel, at.scale, bits, format().scale_bits() / 8);
  }
  /// The zero point of a group, as the codes count; the offset of Planes.
  float zero_point(Index output, Index group) const {
    const detail::CodeStore::Place at = zero_place("moe::PanelMatrix::zero_point", output, group);
    return format().code == WeightCode::Planes ? state_->load_offset(at) : static_cast<float>(state_->load_zero(at));
  }
  /// Throws for a zero point of Int8 and Int4 that is no integer from -128 to 127, and for an offset of Planes that
  /// cannot be stored.
  void set_zero_point(Index output, Index group, float zero) {
    constexpr const char* kFunction = "moe::PanelMatrix::set_zero_point";
    const detail::CodeStore::Place at = zero_place(kFunction, output, group);
    if (format().code == WeightCode::Planes) {
      const std::uint32_t bits = detail::bits_of_scale(format().scale, zero);
      if (std::isfinite(zero) && !std::isfinite(detail::scale_of_bits(format().scale, bits)))
        fail(kFunction, ": offset ", zero, " of output ", output, ", expected one that ", format().name(),
             " can store");
      return own().store(at.panel, at.zero, bits, format().scale_bits() / 8);
    }
    if (!(zero >= -128 && zero <= 127) || zero != std::floor(zero))
      fail(kFunction, ": ", zero, " of output ", output, ", expected an integer from -128 to 127");
    own().store(at.panel, at.zero, static_cast<std::uint8_t>(static_cast<int>(zero)), 1);
  }
  /// What all scales are multiplied with where they are stored as E4M3; else 1.
  float matrix_scale() const { return state_ ? state_->panels.scale : 1; }
  void set_matrix_scale(float scale) {
    if (format().scale != ScaleType::E4M3 && scale != 1)
      fail("moe::PanelMatrix::set_matrix_scale: ", scale, " of ", format().name(),
           ", expected 1, or scales stored as E4M3");
    if (format().code == WeightCode::E4M3 && std::isfinite(scale) && std::abs(scale) * 448 >= 0x1p119f)
      fail("moe::PanelMatrix::set_matrix_scale: ", scale, " of codes E4M3, expected less than 2^119 / 448");
    own().panels.scale = scale;
  }

  /// What is stored, output by output, whatever the instruction set: codes as bits from the lowest of the first byte of
  /// a row on, rows in whole bytes; scales and zero points [outputs, num_groups()] as they are stored.
  struct Rows {
    std::vector<std::byte> codes = {}, scales = {}, zeros = {};
  };
  Rows rows() const {
    Rows result = empty_rows();
    const WeightFormat format = this->format();
    const int bits = format.code_bits();
    if (bits == 0) return result;
    const Index row_bytes = bytes_of_row();
    for (Index o = 0; o < outputs(); ++o) {
      for (Index i = 0; i < inputs(); ++i)
        put_bits(result.codes.data() + o * row_bytes, i * bits, bits, state_->load_code(state_->place(o, i)));
      for (Index g = 0; g < num_groups(); ++g) {
        const detail::CodeStore::Place at = state_->place(o, g * state_->panels.group);
        const Index k = o * num_groups() + g, scale = format.scale_bits() / 8, zero = format.zero_bits() / 8;
        std::memcpy(result.scales.data() + k * scale, state_->at_panel(at.panel) + at.scale,
                    static_cast<std::size_t>(scale));
        if (zero > 0)
          std::memcpy(result.zeros.data() + k * zero, state_->at_panel(at.panel) + at.zero,
                      static_cast<std::size_t>(zero));
      }
    }
    return result;
  }
  /// The same in memory of someone else.
  struct RowViews {
    std::span<const std::byte> codes = {}, scales = {}, zeros = {};
  };
  /// Throws std::invalid_argument for parts of other sizes, and for scales that set_scale() refuses; nothing has been
  /// set then.
  void set_rows(const RowViews& rows) {
    constexpr const char* kFunction = "moe::PanelMatrix::set_rows";
    const WeightFormat format = this->format();
    const Index groups = outputs() * num_groups(), codes = outputs() * bytes_of_row(),
                scales = groups * format.scale_bits() / 8, zeros = groups * format.zero_bits() / 8;
    if (std::ssize(rows.codes) != codes || std::ssize(rows.scales) != scales || std::ssize(rows.zeros) != zeros)
      fail(kFunction, ": ", rows.codes.size(), ", ", rows.scales.size(), " and ", rows.zeros.size(),
           " bytes of codes, scales and zero points, expected ", codes, ", ", scales, " and ", zeros);
    if (format.code_bits() == 0) return;
    PanelMatrix result(outputs(), inputs(), order(), format);
    result.own().panels.scale = matrix_scale();
    if (groups > 0) result.put_groups(kFunction, rows.scales, rows.zeros);
    result.own().put_rows(rows.codes.data(), bytes_of_row());
    result.dot_ = dot_;
    *this = std::move(result);
  }
  void set_rows(const Rows& rows) { set_rows(RowViews{rows.codes, rows.scales, rows.zeros}); }

  std::vector<Index> shape() const { return {outputs(), inputs()}; }
  /// The weights, row by row. Throws std::invalid_argument if there are not outputs * inputs values.
  template <class S>
  void read(std::span<S> values) const {
    if (std::ssize(values) != outputs() * inputs())
      fail("moe::PanelMatrix::read: ", values.size(), " values, expected outputs * inputs = ", outputs() * inputs());
    const PanelMatrix<F32> weights = decoded();
    weights.read(values);
  }
  /// Rounds other weights to the nearest ones of this format, with scales of their own: see round_to_nearest(). Throws
  /// std::invalid_argument for another number of values, for a matrix without codes, and naming the first weight that
  /// the format cannot hold: what is too large, and NaN and infinity but in BF16 and F16.
  template <class S>
  void write(std::span<const S> values) {
    constexpr const char* kFunction = "moe::PanelMatrix::write";
    if (std::ssize(values) != outputs() * inputs())
      fail(kFunction, ": ", values.size(), " values, expected outputs * inputs = ", outputs() * inputs());
    require_codes(kFunction);
    std::vector<float> row(static_cast<std::size_t>(inputs()));
    const auto row_of = [&](Index o) {
      std::copy_n(values.data() + o * inputs(), inputs(), row.data());
      return std::span<const float>(row);
    };
    round_rows(kFunction, row_of);
  }
  /// The same from panels of scalars.
  void round(const PanelMatrix<F32>& weights) {
    constexpr const char* kFunction = "moe::PanelMatrix::round";
    if (weights.outputs() != outputs() || weights.inputs() != inputs())
      fail(kFunction, ": weights are [", weights.outputs(), ", ", weights.inputs(), "], expected [", outputs(), ", ",
           inputs(), "]");
    require_codes(kFunction);
    std::vector<float> row(static_cast<std::size_t>(inputs()));
    const auto row_of = [&](Index o) {
      for (Index i = 0; i < inputs(); ++i) row[static_cast<std::size_t>(i)] = weights(o, i);
      return std::span<const float>(row);
    };
    round_rows(kFunction, row_of);
  }

  /// Panels of the weights: with them everything is computed to the same bits, from 2 to 20 times the memory.
  template <class To = F32>
  PanelMatrix<To> decoded() const {
    PanelMatrix<To> result(outputs(), inputs(), order());
    const auto from = source<typename PanelMatrix<To>::Scalar>();
    for (Index p = 0; p < panels(); ++p) from.decoder->decode(from.matrix, p, 0, inputs(), result.panel(p));
    return result;
  }

  /// The first `bits` planes: the matrix of fewer bits that is in this one, each weight at the middle of what it may
  /// have been. Throws std::invalid_argument for other formats, and unless 1 <= bits <= format().bits.
  PanelMatrix first_planes(int bits) const {
    constexpr const char* kFunction = "moe::PanelMatrix::first_planes";
    require_planes(kFunction, bits);
    PanelMatrix result = with_bits(bits);
    for (int p = 0; p < bits; ++p) result.set_plane(p, plane(p));
    return result;
  }
  /// Plane p of Planes, the highest bit being 0: bit i of word s * outputs + o is that of weight (o, 32 s + i), 0
  /// behind the last input. The same on every instruction set. Throws std::invalid_argument for a plane that is not
  /// there.
  std::vector<std::uint32_t> plane(int p) const {
    require_planes("moe::PanelMatrix::plane", p + 1);
    std::vector<std::uint32_t> words(static_cast<std::size_t>(plane_words()));
    state_->for_each_plane_run(p, [&](Index at, Index word, Index count) {
      std::memcpy(words.data() + word, state_->memory.data() + at, static_cast<std::size_t>(4 * count));
    });
    return words;
  }
  /// Throws as plane(), and for another number of words and bits behind the last input.
  void set_plane(int p, std::span<const std::uint32_t> words) {
    constexpr const char* kFunction = "moe::PanelMatrix::set_plane";
    require_planes(kFunction, p + 1);
    require_words(kFunction, words, 1);
    detail::CodeStore& state = own();
    state.for_each_plane_run(p, [&](Index at, Index word, Index count) {
      std::memcpy(state.memory.data() + at, words.data() + word, static_cast<std::size_t>(4 * count));
    });
  }
  /// Scales and zero points of all groups, as rows() gives them. Throws std::invalid_argument for other sizes, and for
  /// scales that set_scale() refuses; groups before that have been set then.
  void set_groups(std::span<const std::byte> scales, std::span<const std::byte> zeros) {
    constexpr const char* kFunction = "moe::PanelMatrix::set_groups";
    const WeightFormat format = this->format();
    const Index scale = format.scale_bits() / 8, zero = format.zero_bits() / 8, groups = outputs() * num_groups();
    if (std::ssize(scales) != groups * scale || std::ssize(zeros) != groups * zero)
      fail(kFunction, ": ", scales.size(), " and ", zeros.size(), " bytes of scales and zero points, expected ",
           groups * scale, " and ", groups * zero);
    if (groups > 0) put_groups(kFunction, scales, zeros);
  }
  /// The matrix with more planes, whose words follow each other: what first_planes(format().bits) takes away, so that
  ///   whole.first_planes(b).with_planes(the others of `whole`) is `whole`
  /// bit for bit. Throws std::invalid_argument for other formats, words of no whole planes, and more than 8 bits.
  PanelMatrix with_planes(std::span<const std::uint32_t> words) const {
    constexpr const char* kFunction = "moe::PanelMatrix::with_planes";
    require_planes(kFunction, format().bits);
    const auto size = static_cast<std::size_t>(plane_words());
    const int bits = format().bits,
              more = size == 0 ? 0 : static_cast<int>(std::min<std::size_t>(words.size() / size, 9));
    require_words(kFunction, words, more);
    if (bits + more > 8) fail(kFunction, ": ", more, " planes beside ", bits, ", expected at most 8 of them");
    PanelMatrix result = with_bits(bits + more);
    for (int p = 0; p < bits; ++p) result.set_plane(p, plane(p));
    for (int p = 0; p < more; ++p) result.set_plane(bits + p, words.subspan(static_cast<std::size_t>(p) * size, size));
    return result;
  }

 private:
  template <class RowOf>
  void round_rows(const char* function, const RowOf& row_of) {
    detail::CodeStore& state = own();
    const WeightFormat format = state.panels.format;
    float largest = 0;
    for (Index o = 0; o < outputs(); ++o) {
      const std::span<const float> row = row_of(o);
      for (Index i = 0; i < inputs(); ++i) {
        require_weight(function, o, i, row[static_cast<std::size_t>(i)]);
        largest = std::max(largest, std::abs(row[static_cast<std::size_t>(i)]));
      }
    }
    state.panels.scale = detail::matrix_scale_of(format, largest);
    std::vector<std::uint32_t> codes(static_cast<std::size_t>(inputs()));
    for (Index o = 0; o < outputs(); ++o) round_row(function, o, row_of(o), codes);
  }
  void round_row(const char* function, Index o, std::span<const float> row, std::vector<std::uint32_t>& codes) {
    const kernel::CodePanels& panels = state_->panels;
    const WeightFormat format = panels.format;
    const Index size = format.scale == ScaleType::Unscaled ? inputs() : panels.group;
    for (Index begin = 0; begin < inputs(); begin += size) {
      const Index count = std::min(size, inputs() - begin);
      const detail::GroupFit fit(format, panels.scale,
                                 row.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)));
      detail::GroupParameters parameters;
      if (format.scale != ScaleType::Unscaled) {
        parameters = fit.best();
        if (!std::isfinite(parameters.scale) || !std::isfinite(parameters.zero))
          fail(function, ": output ", o, " has weights from input ", begin, " on whose scale ", format.name(),
               " cannot store");
        set_scale(o, begin / size, parameters.scale);
        if (format.has_zero_points) set_zero_point(o, begin / size, parameters.zero);
      }
      fit.codes(parameters, codes.data());
      own().put_codes(o, begin, std::span<const std::uint32_t>(codes).first(static_cast<std::size_t>(count)));
    }
  }
  void require_weight(const char* function, Index o, Index i, float weight) const {
    const WeightCode code = format().code;
    if (code == WeightCode::Bf16 || code == WeightCode::F16) {
      const float rounded =
          detail::value_of_code(format(), detail::nearest_code(format(), static_cast<double>(weight)));
      if (std::isfinite(weight) == std::isfinite(rounded)) return;
    } else if (std::isfinite(weight)) {
      if (format().scale != ScaleType::Unscaled ||
          std::abs(static_cast<double>(weight)) <= detail::largest_code(format()))
        return;
    }
    fail(function, ": weight of output ", o, ", input ", i, " is ", weight, ", expected one that ", format().name(),
         " can hold");
  }

  void require_scale(const char* function, Index output, float scale) const {
    if (format().code == WeightCode::E4M3 && std::isfinite(scale) && std::abs(scale) >= 0x1p119f)
      fail(function, ": scale ", scale, " of output ", output, ", expected one below 2^119");
  }
  Index bytes_of_row() const { return (inputs() * format().code_bits() + 7) / 8; }
  Rows empty_rows() const {
    const WeightFormat format = this->format();
    const auto bytes = [](Index count) { return std::vector<std::byte>(static_cast<std::size_t>(count)); };
    const Index groups = outputs() * num_groups();
    return {.codes = bytes(outputs() * bytes_of_row()),
            .scales = bytes(groups * format.scale_bits() / 8),
            .zeros = bytes(groups * format.zero_bits() / 8)};
  }
  static void put_bits(std::byte* to, Index first, int count, std::uint32_t bits) {
    for (int b = 0; b < count; b += 8) {  // codes begin at a byte, or end in it: 8 bits from anywhere touch two
      const Index place = first + b, part = std::min(8, count - b);
      const std::uint32_t value = (bits >> b & ((1u << part) - 1)) << place % 8;
      to[place / 8] |= static_cast<std::byte>(value & 255u);
      if (place % 8 + part > 8) to[place / 8 + 1] |= static_cast<std::byte>(value >> 8);
    }
  }
  void put_groups(const char* function, std::span<const std::byte> scales, std::span<const std::byte> zeros) {
    const WeightFormat format = this->format();
    const Index scale = format.scale_bits() / 8, zero = format.zero_bits() / 8;
    detail::CodeStore& state = own();
    for (Index o = 0; o < outputs(); ++o)
      for (Index g = 0; g < num_groups(); ++g) {
        const detail::CodeStore::Place at = state.place(o, g * state.panels.group);
        const Index k = o * num_groups() + g;
        std::uint32_t stored = 0;
        std::memcpy(&stored, scales.data() + k * scale, static_cast<std::size_t>(scale));
        require_scale(function, o, detail::scale_of_bits(format.scale, stored));
        state.store(at.panel, at.scale, stored, static_cast<int>(scale));
        if (zero == 0) continue;
        std::memcpy(&stored, zeros.data() + k * zero, static_cast<std::size_t>(zero));
        state.store(at.panel, at.zero, stored, static_cast<int>(zero));
      }
  }
  Index plane_words() const { return (inputs() + 31) / 32 * outputs(); }
  void require_planes(const char* function, int bits) const {
    const WeightFormat whole = format();
    if (whole.code != WeightCode::Planes || bits < 1 || bits > whole.bits)
      fail(function, ": ", bits, " planes of ", whole.name(), ", expected planes, and 1 to as many as there are");
  }
  void require_words(const char* function, std::span<const std::uint32_t> words, int planes) const {
    const Index expected = planes * plane_words();
    if (std::ssize(words) != expected)
      fail(function, ": ", words.size(), " words, expected ", expected, " = planes * ceil(inputs / 32) * outputs");
    const Index used = inputs() % 32;
    if (used == 0) return;
    for (Index p = 1; p <= planes; ++p)
      for (Index o = 1; o <= outputs(); ++o)
        if (words[static_cast<std::size_t>(p * plane_words() - o)] >> used != 0)
          fail(function, ": bits of output ", outputs() - o, " behind input ", inputs() - 1, ", expected zeros");
  }
  /// Planes of so many bits, all 0, between the limits of this one: with its offsets, and its scales in that step.
  PanelMatrix with_bits(int bits) const {
    WeightFormat format = this->format();
    const int lost = format.bits - bits;
    format.bits = bits;
    PanelMatrix result(outputs(), inputs(), order(), format);
    detail::CodeStore& to = result.own();
    const kernel::CodePanels& from = state_->panels;
    to.panels.scale = from.scale;
    const bool is_paired = order() == PanelOrder::Paired;
    const Index units = is_paired ? outputs() / 2 : outputs(), width = is_paired ? kLanes : kWidth;
    const int bytes = format.scale_bits() / 8;
    for (Index p = 0; p < panels(); ++p)
      for (Index g = 0; g < num_groups(); ++g) {
        const Index at = g * to.panels.group_bytes;
        std::memcpy(to.memory.data() + p * to.panels.panel_bytes + at, from.panel(p) + g * from.group_bytes,
                    static_cast<std::size_t>(from.header_bytes));
        for (Index column = 0; column < kWidth; ++column) {
          if (p * width + column % width >= units) continue;  // padding
          const float scale = detail::scale_of_bits(format.scale, to.load(p, at + column * bytes, bytes));
          const std::uint32_t stored = detail::bits_of_scale(format.scale, std::ldexp(scale, lost));
          if (std::isfinite(scale) && !std::isfinite(detail::scale_of_bits(format.scale, stored)))
            fail("moe::PanelMatrix: scale ", scale, " times 2^", lost, ", expected one that ", format.name(),
                 " can store");
          to.store(p, at + column * bytes, stored, bytes);
        }
      }
    return result;
  }

  detail::CodeStore& own() {
    if (!state_) fail("moe::PanelMatrix: empty, expected a matrix that can be written");
    if (state_.use_count() > 1) state_ = std::make_shared<detail::CodeStore>(*state_);
#if !defined(__SANITIZE_THREAD__)                         // which knows no fences
    std::atomic_thread_fence(std::memory_order_acquire);  // what another thread read before it let go comes first
#endif
    return *state_;
  }
  void require_codes(const char* function) const {
    if (format().code == WeightCode::Zeros) fail(function, ": the matrix has no codes, expected one made in a format");
  }
  void require_place(const char* function, Index output, Index input) const {
    if (output < 0 || output >= outputs() || input < 0 || input >= inputs())
      fail(function, ": output ", output, ", input ", input, ", expected places of a matrix [", outputs(), ", ",
           inputs(), "]");
  }
  detail::CodeStore::Place group_place(const char* function, Index output, Index group) const {
    if (output < 0 || output >= outputs() || group < 0 || group >= num_groups())
      fail(function, ": output ", output, ", group ", group, ", expected places of [", outputs(), ", ", num_groups(),
           "]");
    return state_->place(output, group * state_->panels.group);
  }
  detail::CodeStore::Place zero_place(const char* function, Index output, Index group) const {
    if (!format().has_zero_points) fail(function, ": ", format().name(), " has no zero points");
    return group_place(function, output, group);
  }

  std::shared_ptr<detail::CodeStore> state_;
  Dot dot_ = Dot::Exact;
};

}  // namespace moe::inline MOE_ABI
