// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/visit.hpp"
#include "moe/io/file/quantised_parameters.hpp"
#include "moe/io/file/safetensors.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Throws unless the file has a leaf, in its shape: its scalars, or codes. Calls use(name) for each of its tensors.
template <class Leaf, class Use>
void check_leaf(const std::string& label, const SafetensorsReader& file, const std::string& name, const Leaf& leaf,
                const Use& use) {
  const auto require = [&](const std::string& tensor, const std::vector<Index>& shape) {
    const TensorInfo& info = file.tensor(tensor);
    if (info.shape != shape)
      fail_environment(label, ": tensor '", tensor, "' has shape [", join(info.shape, ", "), "], expected [",
                       join(shape, ", "), "]");
    use(tensor);
  };
  if constexpr (kIsQuantised<Leaf>) {
    if (has_codes(file, name)) {
      const WeightFormat format = read_format(label, file, name, leaf);
      for (const auto& [part, info] : tensors_of(name, leaf.outputs(), leaf.inputs(), format)) {
        require(part, info.shape);
        if (file.tensor(part).dtype != info.dtype)
          fail_environment(label, ": tensor '", part, "' is ", dtype_name(file.tensor(part).dtype), ", expected ",
                           dtype_name(info.dtype));
      }
      return;
    }
  }
  require(name, parameter_shape(leaf));
}

/// Throws unless the file has exactly the parameters and state of `layer`, in its shapes. The state of moments, which
/// versions before 0.2.0 wrote, may be there.
template <class T>
void check_parameters(const std::string& label, const SafetensorsReader& file, const T& layer) {
  std::set<std::string, std::less<>> expected;
  visit_all(
      [&](const std::string& name, const auto& leaf) {
        check_leaf(label, file, name, leaf, [&](const std::string& tensor) { expected.insert(tensor); });
      },
      layer);
  walk<Walked::Ever>([&](const std::string& name, const auto&) { expected.insert(name); },
                     [&](auto&& walker) { visit(walker, layer); });
  for (const auto& [name, info] : file.tensors())
    if (!expected.contains(name)) fail_environment(label, ": tensor '", name, "' is not a parameter of the layer");
}

/// Sets a leaf that check_leaf() has seen.
template <class Leaf>
void load_leaf(const std::string& label, const SafetensorsReader& file, const std::string& name, Leaf& leaf,
               Narrowing narrowing) {
  if constexpr (kIsQuantised<Leaf>) {
    read_quantised(label, file, name, leaf, narrowing);
  } else {
    using S = ParameterScalar<Leaf>;
    std::vector<S> values(static_cast<std::size_t>(parameter_size(leaf)));
    file.read(name, std::span<S>(values), narrowing);
    write_parameter(leaf, std::span<const S>(values));
  }
}

}  // namespace detail

/// Saves every parameter of `layer`, and its state, to a safetensors file, under its visited name, in the logical shape
/// ([out, in] for a weight, [] for a number) and its own precision; weights in few bits as their codes and scales (see
/// moe/io/file/quantised_parameters.hpp). Equal layers give equal bytes. The file appears
/// whole or not at all; one parameter at a time is copied. Works for optimiser states too.
/// Whatever is neither (k, a temperature that is fixed) is not in the file: the program that loads it says it again. An
/// object has to say what its numbers are: one with neither visit() nor state() does not compile. One whose visit()
/// names nothing, such as a gate without biases, has said that there is nothing to lose, and is saved as a file without
/// tensors. (A part of a layer that cannot be trained need not say it, and is then not in the file.) Throws
/// std::runtime_error if the file cannot be written, std::invalid_argument if two parameters share a name.
template <class T>
void save_parameters(const std::filesystem::path& path, const T& layer, const Metadata& metadata = {}) {
  static_assert(HasParameters<T> || HasState<T>,
                "moe::save_parameters: the object needs "
                "`template <class F, class... Self> static void visit(F&&, Self&...)`, which names what is saved "
                "(see moe/core/visit.hpp)");
  SafetensorsHeader header{.metadata = metadata};
  visit_all(
      [&](const std::string& name, const auto& leaf) {
        const auto add = [&](const std::string& tensor, const TensorInfo& info) {
          if (!header.tensors.emplace(tensor, info).second)
            fail("moe::save_parameters: the layer visits two parameters named '", tensor, "'");
        };
        if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>) {
          for (const auto& [part, info] : detail::tensors_of(name, leaf.outputs(), leaf.inputs(), leaf.format()))
            add(part, info);
        } else {
          add(name, {.dtype = dtype_of<ParameterScalar<decltype(leaf)>>(), .shape = parameter_shape(leaf)});
        }
      },
      layer);
  SafetensorsWriter writer(path, std::move(header));
  visit_all(
      [&](const std::string& name, const auto& leaf) {
        if constexpr (detail::kIsQuantised<std::remove_cvref_t<decltype(leaf)>>)
          return detail::write_quantised(writer, name, leaf);
        using S = ParameterScalar<decltype(leaf)>;
        std::vector<S> values(static_cast<std::size_t>(parameter_size(leaf)));
        read_parameter(leaf, std::span<S>(values));
        writer.write(name, std::span<const S>(values));
      },
      layer);
  writer.commit();
}

/// Sets every parameter of `layer`, and its state, from a file of save_parameters(), bit for bit, and returns the
/// metadata.
/// Weights in few bits take the format of the file; from a file of floats they are rounded to the one they have.
/// F32 tensors may fill double parameters (exact); F64 tensors fill float parameters only with Narrowing::Allow.
/// Throws std::runtime_error that names the tensor if one is missing, too many, of another shape or type, or cannot be
/// read. On error the layer is untouched: it is filled as a copy and then moved into place. FileAccess::Read takes the
/// memory of the file once more, and does not mind one that shrinks meanwhile.
template <class T>
Metadata load_parameters(const std::filesystem::path& path, T& layer, Narrowing narrowing = Narrowing::Refuse,
                         FileAccess access = FileAccess::Map) {
  static_assert(HasParameters<T> || HasState<T>,
                "moe::load_parameters: the object needs "
                "`template <class F, class... Self> static void visit(F&&, Self&...)`, which names what is loaded "
                "(see moe/core/visit.hpp)");
  const SafetensorsReader file(path, access);
  const std::string label = std::string("moe::load_parameters: '") + path.string() + "'";
  detail::check_parameters(label, file, layer);
  T loaded = layer;
  visit_all([&](const std::string& name, auto& leaf) { detail::load_leaf(label, file, name, leaf, narrowing); },
            loaded);
  layer = std::move(loaded);
  return file.metadata();
}

}  // namespace moe::inline MOE_ABI
