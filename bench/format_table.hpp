// SPDX-License-Identifier: MIT
// One layer with its weights in many formats, beside itself with floats.
#pragma once

#include "layer_measurement.hpp"

namespace bench {

/// What the columns of print_formats mean.
extern const char* const kFormatColumns;

/// The batches of the table.
inline const std::vector<Index> kFormatTokens = {1, 8, 64, 512};

/// A line for each contestant, columns for each cell; these are of one LayerBench, and differ in their tokens alone.
void print_formats(const std::vector<CellResult>& cells);

}  // namespace bench
