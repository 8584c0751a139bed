// SPDX-License-Identifier: MIT
// Which kernels the peers run. Libraries choose them by the processor that they believe to be on, and an old library on
// a new processor may choose badly: slow ones, or ones whose results are wrong.
#pragma once

#include <string>
#include <vector>

namespace bench {

/// To be called first in main. Keeps the peers to the instruction set that this program is compiled for, so that they
/// do not win or lose by it, and tries the kernels of OpenBLAS that it allows, each in a process of its own, as one may
/// end in an illegal instruction. If others than those that it has chosen, or that OPENBLAS_CORETYPE names, are faster
/// and right, the program starts once more with them. A second or two.
void choose_peer_kernels(char** argv);

/// A line for each peer: its version, the kernels that it runs, and what became of the others.
std::vector<std::string> peer_kernels();

}  // namespace bench
