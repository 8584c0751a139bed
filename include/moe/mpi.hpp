// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of experts over processes. Nothing here needs MPI: `Self` is one rank, `Threads` are ranks of
// one process; moe/mpi/mpi_communicator.hpp, target moe::mpi, is MPI itself. Every header also stands alone.

// Fully sharded sparse data parallelism: who has which experts, what goes between ranks, and what that takes.
#include "moe/mpi/calibrate.hpp"
#include "moe/mpi/cost_model.hpp"
#include "moe/mpi/dispatch_rule.hpp"
#include "moe/mpi/expert_bytes.hpp"
#include "moe/mpi/fully_sharded_experts.hpp"
#include "moe/mpi/heterogeneous_sharding.hpp"
#include "moe/mpi/load_estimate.hpp"
#include "moe/mpi/materialise.hpp"
#include "moe/mpi/placement.hpp"
#include "moe/mpi/sparse_exchange.hpp"
#include "moe/mpi/topology.hpp"

// Ranks and what they do together.
#include "moe/mpi/collectives.hpp"
#include "moe/mpi/communicator.hpp"
#include "moe/mpi/self.hpp"
#include "moe/mpi/threads.hpp"

// Experts over ranks.
#include "moe/mpi/clip.hpp"
#include "moe/mpi/reduce_gradient.hpp"
#include "moe/mpi/row_exchange.hpp"
#include "moe/mpi/sharded_experts.hpp"
#include "moe/mpi/sharded_parameters.hpp"
