// SPDX-License-Identifier: MIT
// A program over ranks, of somebody else: their numbers add up. One process where nobody starts more.
#include <array>
#include <exception>
#include <iostream>
#include <moe/mpi.hpp>
#include <moe/mpi/mpi_communicator.hpp>
#include <span>
#include <stdexcept>

int main(int argc, char** argv) try {
  const moe::mpi::MpiSession session(argc, argv);
  moe::mpi::run_ranks(session, [](const moe::mpi::Mpi& ranks) {
    std::array<double, 1> sum = {static_cast<double>(ranks.rank() + 1)};
    moe::mpi::all_reduce(ranks, std::span<double>(sum));
    const auto size = static_cast<double>(ranks.size());
    if (sum[0] != size * (size + 1) / 2) throw std::runtime_error("another sum");
    if (ranks.rank() == 0) std::cout << "moe on " << ranks.size() << " ranks\n";
  });
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
