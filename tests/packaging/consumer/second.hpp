// SPDX-License-Identifier: MIT
#pragma once

#include <moe/moe.hpp>

moe::Index busiest_expert(const moe::DispatchPlan& plan);
