// SPDX-License-Identifier: MIT
// Everything that a run of moe_bench_table finds out, as a table, as JSON and as a roofline picture.
#pragma once

#include "routing_measurement.hpp"

namespace bench {

struct Report {
  std::vector<CellResult> cells;
  std::vector<ShareResult> shares;
  std::vector<PlanResult> plans;
  std::vector<MovementResult> movements;
};

/// Processor, instruction set, what the columns mean.
void print_header();
void print_row(const CellResult& result);
/// What follows the rows: scaling with threads, shares, routing kernels.
void print_rest(const Report& report);

/// Throw std::runtime_error if the file cannot be written.
void write_json(const Report& report, const std::string& path);
void write_formats_json(const std::vector<CellResult>& cells, const std::string& path);
/// Writes `path`.gp, and the picture itself if gnuplot is installed; false if not.
bool write_picture(const Report& report, const std::string& path);

}  // namespace bench
