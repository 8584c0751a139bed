// SPDX-License-Identifier: MIT
#include "moe/likelihood/model.hpp"
#include "moe/likelihood/poisson.hpp"

moe::MixtureRegression<moe::Poisson, moe::LaplaceGate<>> mixture;
