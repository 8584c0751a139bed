// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of mixtures of experts of other families than the normal one of gaussian.hpp: robust ones,
// counts, proportions, classes. Start with likelihood/fit.hpp. Every header also stands alone.

// The model, and what experts may be.
#include "moe/likelihood/binomial.hpp"
#include "moe/likelihood/data.hpp"
#include "moe/likelihood/diagonal_normal.hpp"
#include "moe/likelihood/expert_family.hpp"
#include "moe/likelihood/model.hpp"
#include "moe/likelihood/multinomial.hpp"
#include "moe/likelihood/normal.hpp"
#include "moe/likelihood/poisson.hpp"
#include "moe/likelihood/student_t.hpp"
#include "moe/likelihood/uniform_noise.hpp"

// Likelihood, estimation and standard errors.
#include "moe/likelihood/fit.hpp"
#include "moe/likelihood/fit_options.hpp"
#include "moe/likelihood/likelihood.hpp"
#include "moe/likelihood/standard_errors.hpp"

// Prediction and simulation.
#include "moe/likelihood/predict.hpp"
