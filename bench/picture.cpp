// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "clock.hpp"
#include "report.hpp"

namespace bench {

namespace {

/// The cells that are drawn: forward passes on all threads, evenly routed.
std::vector<const CellResult*> drawn(const std::vector<CellResult>& cells) {
  std::vector<const CellResult*> result;
  for (const CellResult& cell : cells)
    if (cell.cell.pass == Pass::Forward && cell.cell.pattern == Pattern::Uniform && cell.cell.threads == all_threads())
      result.push_back(&cell);
  return result;
}

std::vector<std::string> shapes_of(const std::vector<const CellResult*>& cells) {
  std::vector<std::string> names;
  for (const CellResult* cell : cells)
    if (std::find(names.begin(), names.end(), cell->shape.name) == names.end()) names.push_back(cell->shape.name);
  return names;
}

/// Medians over the drawn cells whose weights are in the cache (or not).
double median_gbps(const std::vector<const CellResult*>& cells, bool warm) {
  std::vector<double> values;
  for (const CellResult* cell : cells)
    if (cell->measurement.is_warm == warm) values.push_back(1e-9 * cell->measurement.limits.bytes);
  return median(values);
}

/// The limits that are drawn: medians over the cells.
struct Roof {
  double peak, memory, cache;  // GFLOP/s, GB/s, GB/s (0 if no cell has its weights there)
  double at(double intensity, bool warm) const { return std::min(peak, intensity * (warm ? cache : memory)); }
};

/// Data blocks, one per shape: intensity, GFLOP/s of ours, of the best peer. Speeds are percentages of a cell's own
/// limit times the drawn one, so that a machine that was faster for a while does not lift points above the roof.
void write_points(std::ostream& script, const std::vector<const CellResult*>& cells,
                  const std::vector<std::string>& shapes, const Roof& roof) {
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    script << "$shape" << s << " << END\n";
    for (const CellResult* cell : cells) {
      if (cell->shape.name != shapes[s]) continue;
      const Work& work = cell->measurement.work;
      const double intensity = work.flop / work.bytes, limit = roof.at(intensity, cell->measurement.is_warm);
      const double ours = limit * cell->ours().percent_of_limit / 100;
      const Timing* best = cell->best_peer();
      script << intensity << ' ' << ours << ' ' << (best ? ours / best->ratio : ours) << '\n';
    }
    script << "END\n";
  }
}

}  // namespace

bool write_picture(const Report& report, const std::string& path) {
  const auto cells = drawn(report.cells);
  const auto shapes = shapes_of(cells);
  std::vector<double> peaks;
  for (const CellResult* cell : cells) peaks.push_back(1e-9 * cell->measurement.limits.flop);
  const Roof roof{median(peaks), median_gbps(cells, false), median_gbps(cells, true)};
  // Filled and hollow marks of gnuplot.
  constexpr int kMarks[][2] = {{7, 6}, {5, 4}, {9, 8}, {11, 10}, {13, 12}, {15, 14}};
  constexpr const char* kColours[] = {"#4477aa", "#cc6677", "#228833", "#aa8800", "#aa3377", "#33aaaa", "#555555"};

  std::ofstream script(path + ".gp");
  script << "set terminal svg size 900,560 font 'sans-serif,13' background '#ffffff'\nset output '" << path << "'\n";
  write_points(script, cells, shapes, roof);
  script << "set title 'Forward pass, " << all_threads() << " thread(s), " << instruction_set()
         << ": filled ours, hollow the best peer' noenhanced\n"
            "set logscale xy\nset xlabel 'FLOP per byte that has to move'\nset ylabel 'GFLOP/s'\n"
            "set xrange [0.3:1000]\nset yrange [5:" << 2 * roof.peak << "]\nset samples 500\nset border 3\n"
            "set tics nomirror\nset grid lc rgb '#e0e0e0' lt 1\nset key bottom right spacing 1.15\n"
            "set label 1 '" << static_cast<int>(roof.peak) << " GFLOP/s' at 0.35," << 1.15 * roof.peak
         << " tc '#333333'\n";
  script << "roof(x, bandwidth) = x * bandwidth < " << roof.peak << " ? x * bandwidth : " << roof.peak << "\nplot ";
  const auto draw_roof = [&](double gbps, const char* where, const char* dashes) {
    if (gbps > 0)
      script << "roof(x, " << gbps << ") with lines lw 1.8 lc '#333333' " << dashes << " title 'limit, weights from "
             << where << ": " << static_cast<int>(gbps) << " GB/s', ";
  };
  draw_roof(roof.memory, "memory", "dt 1");
  draw_roof(roof.cache, "cache", "dt 2");
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    const auto& [filled, hollow] = kMarks[s % std::size(kMarks)];
    const char* colour = kColours[s % std::size(kColours)];
    script << (s ? ", " : "") << "$shape" << s << " using 1:2:(0):($3-$2) with vectors nohead lw 1 lc '" << colour
           << "' notitle, '' using 1:3 with points pt " << hollow << " ps 0.9 lw 1.5 lc '" << colour
           << "' notitle, '' using 1:2 with points pt " << filled << " ps 0.9 lc '" << colour << "' title '"
           << shapes[s] << "' noenhanced";
  }
  script << '\n';
  script.close();
  if (!script) moe::fail_environment("bench: cannot write ", path, ".gp");
  return std::system(("gnuplot '" + path + ".gp' >&2").c_str()) == 0;
}

}  // namespace bench
