// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstring>
#include <span>

#include "moe/core/aligned.hpp"
#include "moe/kernel/code_panels.hpp"
#include "moe/kernel/panel_matrix.hpp"
#include "moe/kernel/weight_rounding.hpp"

namespace moe::inline MOE_ABI::detail {

/// The memory of a PanelMatrix<Quantised>, and where in it the parts of a weight are. Places are not checked.
struct CodeStore {
  static constexpr Index kLanes = simd::kLanes<float>;
  static constexpr Index kWidth = kernel::kPanelWidth<float>;

  CodeStore(Index num_outputs, Index inputs, PanelOrder columns, const WeightFormat& format)
      : outputs(checked_size("moe::PanelMatrix", "outputs", num_outputs)), order(columns) {
    format.validate();
    checked_product("moe::PanelMatrix", checked_size("moe::PanelMatrix", "inputs", inputs), 8 * kWidth);
    if (order == PanelOrder::Paired && outputs % 2 != 0)
      fail("moe::PanelMatrix: paired order with ", outputs, " outputs, expected an even number");
    const Index units = order == PanelOrder::Paired ? outputs / 2 : outputs;
    const Index width = order == PanelOrder::Paired ? kLanes : kWidth;
    panels.format = format;
    panels.inputs = inputs;
    panels.panels = (units + width - 1) / width;
    if (format.code == WeightCode::Zeros) return;
    const Index step = kernel::detail::inputs_per_step(format.code);
    const Index size = format.scale == ScaleType::Unscaled ? inputs : std::min(format.group_of(inputs), inputs);
    panels.group = std::max<Index>(step, (size + step - 1) / step * step);
    panels.header_bytes = kWidth * (format.scale_bits() + format.zero_bits()) / 8;
    const auto bytes_of = [&](Index count) {  // of a group with so many inputs
      return panels.header_bytes + (count + step - 1) / step * kernel::detail::step_bytes(format);
    };
    panels.group_bytes = bytes_of(panels.group);
    const Index whole = inputs / panels.group, rest = inputs % panels.group;
    Index bytes = whole * panels.group_bytes + (rest > 0 ? bytes_of(rest) : 0);
    constexpr Index kLine = static_cast<Index>(kCacheLine);
    bytes = (bytes + kLine - 1) / kLine * kLine;
    if (bytes % 4096 == 0 && bytes > 0) bytes += kLine;  // see PanelMatrix::stride()
    panels.panel_bytes = bytes;
    memory = AlignedBuffer<std::byte>::in_huge_pages(checked_product("moe::PanelMatrix", panels.panels, bytes));
    panels.data = memory.data();
  }
  CodeStore(const CodeStore& other)
      : outputs(other.outputs), order(other.order), has_nan(other.has_nan), panels(other.panels), memory(other.memory) {
    panels.data = memory.data();
  }
  CodeStore& operator=(const CodeStore&) = delete;

  /// Where the parts of a weight are: bytes from the begin of the panel, and a bit of the first of its code.
  struct Place {
    Index panel, scale, zero, code;
    int bit;
  };

  Place place(Index output, Index input) const {
    Index panel = output / kWidth, column = output % kWidth;
    if (order == PanelOrder::Paired) {
      const Index half = outputs / 2, unit = output < half ? output : output - half;
      panel = unit / kLanes;
      column = unit % kLanes + (output < half ? 0 : kLanes);
    }
    const WeightFormat& format = panels.format;
    const Index group = input / panels.group, within = input % panels.group, at = group * panels.group_bytes;
    const Index step = kernel::detail::inputs_per_step(format.code);
    const Index codes = at + panels.header_bytes + within / step * kernel::detail::step_bytes(format);
    const Index scale = at + column * (format.scale_bits() / 8);
    const Index zero = at + kWidth * (format.scale_bits() / 8) + column * (format.zero_bits() / 8);
    const Index i = within % step;
    Place result{panel, scale, zero, codes, 0};
    switch (format.code) {
      case WeightCode::Bf16:
        result.code += i / 2 * (4 * kWidth) + 4 * column + i % 2 * 2;
        break;
      case WeightCode::F16:
        result.code += 2 * (i * kWidth + column);
        break;
      case WeightCode::E4M3:
      case WeightCode::E5M2:
      case WeightCode::Int8:
        result.code += i * kWidth + column;
        break;
      case WeightCode::Int4:
      case WeightCode::E2M1:
        result.code += 4 * column + i / 2;
        result.bit = static_cast<int>(i % 2 * 4);
        break;
      case WeightCode::Planes:
        result.code += 4 * column + i / 8;
        result.bit = static_cast<int>(i % 8);
        break;
      case WeightCode::Zeros:
        break;
    }
    return result;
  }

  /// Codes of an output that have been checked. Eight inputs from a multiple of eight on lie in one step, and in every
  /// step alike: a place is sought once for them.
  void put_codes(Index output, Index first_input, std::span<const std::uint32_t> codes) {
    const WeightCode type = panels.format.code;
    std::array<Index, 8> offset;
    for (Index j = 0; j < 8; ++j) offset[static_cast<std::size_t>(j)] = place(output, j).code - place(output, 0).code;
    const auto put = [&](const auto& put_one) {
      Place at = {};
      std::byte* step = nullptr;
      for (std::size_t i = 0, j = static_cast<std::size_t>(first_input % 8); i < codes.size(); ++i, j = (j + 1) % 8) {
        if (i == 0 || j == 0) {
          at = place(output, first_input + static_cast<Index>(i) - static_cast<Index>(j));
          step = memory.data() + at.panel * panels.panel_bytes + at.code;
        }
        put_one(step + offset[j], j, codes[i]);
      }
    };
    if (type == WeightCode::Bf16 || type == WeightCode::F16) {
      put([](std::byte* at, std::size_t, std::uint32_t code) { std::memcpy(at, &code, 2); });
    } else if (type == WeightCode::Int4 || type == WeightCode::E2M1) {
      put([](std::byte* at, std::size_t j, std::uint32_t code) {
        const std::uint32_t rest = std::to_integer<std::uint32_t>(*at) & (j % 2 == 0 ? 0xF0u : 0x0Fu);
        *at = static_cast<std::byte>(rest | code << j % 2 * 4);
      });
    } else if (type == WeightCode::Planes) {
      for (std::size_t i = 0; i < codes.size(); ++i)
        store_code(place(output, first_input + static_cast<Index>(i)), codes[i]);
    } else {
      bool found_nan = false;
      put([&](std::byte* at, std::size_t, std::uint32_t code) {
        *at = static_cast<std::byte>(code);
        found_nan = found_nan || (code & 0x7Fu) == 0x7Fu;
      });
      if (type == WeightCode::E4M3 && found_nan) has_nan = true;
    }
  }

  /// Calls f(step, output, input) for every output and eight inputs at a time, as far as there are eight: `step` is the
  /// byte of the memory where their codes begin. What lies side by side comes one after the other.
  template <class F>
  void for_each_eight(const F& f) const {
    const bool is_paired = order == PanelOrder::Paired;
    const Index units = is_paired ? outputs / 2 : outputs, width = is_paired ? kLanes : kWidth;
    const Index apart = place_of_column(1) - place_of_column(0);
    for (Index unit = 0; unit < units; unit += width)
      for (Index input = 0; input + 8 <= panels.inputs; input += 8)
        for (Index first = unit; first < outputs; first += units) {
          const Place at = place(first, input);
          const Index step = at.panel * panels.panel_bytes + at.code, count = std::min(width, units - unit);
          for (Index c = 0; c < count; ++c) f(step + c * apart, first + c, input);
        }
  }
  /// Codes of all outputs, rows of so many bytes in which they follow each other bit by bit.
  void put_rows(const std::byte* rows, Index row_bytes) {
    const int bits = panels.format.code_bits();
    const auto put = [&](const auto& put_eight) {
      for_each_eight([&](Index step, Index output, Index input) {
        put_eight(memory.data() + step, rows + output * row_bytes + input / 8 * bits);
      });
    };
    switch (panels.format.code) {
      case WeightCode::Bf16:  // pairs
        put([](std::byte* to, const std::byte* from) {
          for (Index i = 0; i < 4; ++i) std::memcpy(to + i * (4 * kWidth), from + 4 * i, 4);
        });
        break;
      case WeightCode::F16:
        put([](std::byte* to, const std::byte* from) {
          for (Index i = 0; i < 8; ++i) std::memcpy(to + i * (2 * kWidth), from + 2 * i, 2);
        });
        break;
      case WeightCode::Int4:
      case WeightCode::E2M1:  // a word, in the same order
        put([](std::byte* to, const std::byte* from) { std::memcpy(to, from, 4); });
        break;
      case WeightCode::Planes:
        put([bits](std::byte* to, const std::byte* from) { put_planes(to, from, bits); });
        break;
      case WeightCode::E4M3:
      case WeightCode::E5M2:
      case WeightCode::Int8:
        put_bytes(put);
        break;
      case WeightCode::Zeros:
        break;
    }
    for (Index o = 0; o < outputs; ++o)
      for (Index i = panels.inputs / 8 * 8; i < panels.inputs; ++i)
        store_code(place(o, i), get_bits(rows + o * row_bytes, i * bits, bits));
  }
  /// `count` <= 16 bits from a bit on; codes begin at a byte, or end in it: 8 bits from anywhere touch two.
  static std::uint32_t get_bits(const std::byte* from, Index first, int count) {
    std::uint32_t bits = 0;
    for (int b = 0; b < count; b += 8) {
      const Index at = first + b, part = std::min(8, count - b);
      std::uint32_t value = std::to_integer<std::uint32_t>(from[at / 8]);
      if (at % 8 + part > 8) value |= std::to_integer<std::uint32_t>(from[at / 8 + 1]) << 8;
      bits |= (value >> at % 8 & ((1u << part) - 1)) << b;
    }
    return bits;
  }

  /// Calls f(at, word, count) for the words of plane p that lie side by side: bits of 32 inputs each, `count` of them
  /// from byte `at` of the memory on; word = step * outputs + first output.
  template <class F>
  void for_each_plane_run(int p, const F& f) const {
    const bool is_paired = order == PanelOrder::Paired;
    const Index units = is_paired ? outputs / 2 : outputs, width = is_paired ? kLanes : kWidth;
    for (Index step = 0; step < (panels.inputs + 31) / 32; ++step)
      for (Index unit = 0; unit < units; unit += width)
        for (Index first = unit; first < outputs; first += units) {
          const Place at = place(first, 32 * step);
          f(at.panel * panels.panel_bytes + at.code + p * (4 * kWidth), step * outputs + first,
            std::min(width, units - unit));
        }
  }

  const std::byte* at_panel(Index panel) const { return panels.panel(panel); }
  std::uint32_t load(Index panel, Index at, int bytes) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, at_panel(panel) + at, static_cast<std::size_t>(bytes));
    return bits;
  }
  void store(Index panel, Index at, std::uint32_t bits, int bytes) {
    std::memcpy(memory.data() + panel * panels.panel_bytes + at, &bits, static_cast<std::size_t>(bytes));
  }
  std::uint32_t load_code(const Place& at) const {
    const WeightFormat& format = panels.format;
    const int bits = format.code_bits();
    if (format.code != WeightCode::Planes)
      return load(at.panel, at.code, std::max(1, bits / 8)) >> at.bit & ((1u << bits) - 1);
    std::uint32_t code = 0;
    for (int p = 0; p < bits; ++p) code = code << 1 | (load(at.panel, at.code + p * (4 * kWidth), 1) >> at.bit & 1u);
    return code;
  }
  void store_code(const Place& at, std::uint32_t code) {
    const WeightFormat format = panels.format;
    const int bits = format.code_bits();
    if (format.code == WeightCode::Planes) {
      for (int p = 0; p < bits; ++p) {
        const Index byte = at.code + p * (4 * kWidth);
        const std::uint32_t rest = load(at.panel, byte, 1) & ~(1u << at.bit);
        store(at.panel, byte, rest | (code >> (bits - 1 - p) & 1u) << at.bit, 1);
      }
    } else if (bits < 8) {
      const std::uint32_t rest = load(at.panel, at.code, 1) & ~(15u << at.bit);
      store(at.panel, at.code, rest | code << at.bit, 1);
    } else {
      store(at.panel, at.code, code, bits / 8);
      if (format.code == WeightCode::E4M3 && (code & 0x7Fu) == 0x7Fu) has_nan = true;
    }
  }
  std::uint32_t load_scale(const Place& at) const { return load(at.panel, at.scale, panels.format.scale_bits() / 8); }
  float whole_scale(const Place& at) const {
    const float stored = detail::scale_of_bits(panels.format.scale, load_scale(at));
    return panels.format.scale == ScaleType::E4M3 ? stored * panels.scale : stored;
  }
  int load_zero(const Place& at) const { return static_cast<std::int8_t>(load(at.panel, at.zero, 1)); }
  float load_offset(const Place& at) const {
    return detail::scale_of_bits(panels.format.scale, load(at.panel, at.zero, panels.format.scale_bits() / 8));
  }

  /// Where the codes of a column begin in a step.
  Index place_of_column(Index column) const {
    const int bits = panels.format.code_bits();
    return (panels.format.code == WeightCode::F16                   ? 2
            : bits == 8 && panels.format.code != WeightCode::Planes ? 1
                                                                    : 4) *
           column;
  }
  /// Eight codes of `bits` each, from as many bytes, to a byte of each plane.
  static void put_planes(std::byte* to, const std::byte* from, int bits) {
    std::uint64_t codes = 0;  // of at most 8 bytes, the first lowest
    for (int b = 0; b < bits; ++b) codes |= std::to_integer<std::uint64_t>(from[b]) << 8 * b;
    for (int p = 0; p < bits; ++p) {
      unsigned plane = 0;
      for (int i = 0; i < 8; ++i) plane |= static_cast<unsigned>(codes >> (i * bits + bits - 1 - p) & 1u) << i;
      to[p * (4 * kWidth)] = static_cast<std::byte>(plane);
    }
  }
  template <class Put>
  void put_bytes(const Put& put) {
    unsigned most = 0;  // 127 where there is a NaN of E4M3
    put([&](std::byte* to, const std::byte* from) {
      for (Index i = 0; i < 8; ++i) {
        to[i * kWidth] = from[i];
        most = std::max(most, std::to_integer<unsigned>(from[i]) & 0x7Fu);
      }
    });
    if (panels.format.code == WeightCode::E4M3 && most == 0x7Fu) has_nan = true;
  }

  Index outputs;
  PanelOrder order;
  bool has_nan = false;  ///< a code E4M3
  kernel::CodePanels panels;
  AlignedBuffer<std::byte> memory;
};

}  // namespace moe::inline MOE_ABI::detail
