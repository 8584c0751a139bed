// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of experts over processes. Nothing here needs MPI: `Self` is one rank, `Threads` are ranks of
// one process; moe/mpi/mpi_communicator.hpp, target moe::mpi, is MPI itself. Every header also stands alone.

// Ranks and what they do together.
#include "moe/mpi/collectives.hpp"
#include "moe/mpi/communicator.hpp"
#include "moe/mpi/self.hpp"
#include "moe/mpi/threads.hpp"
