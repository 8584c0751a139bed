// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of the statistics: Gaussian mixtures of experts, with the gates of the layers, by maximum
// likelihood. Start with gaussian/fit.hpp. Every header also stands alone.

// The model: what it is, its numbers, its gate.
#include "moe/gaussian/data.hpp"
#include "moe/gaussian/gate_model.hpp"
#include "moe/gaussian/gate_weights.hpp"
#include "moe/gaussian/model.hpp"
#include "moe/gaussian/parameters.hpp"

// Likelihood and estimation.
#include "moe/gaussian/fit.hpp"
#include "moe/gaussian/fit_options.hpp"
#include "moe/gaussian/likelihood.hpp"

// Prediction and sampling.
#include "moe/gaussian/normal_mixture.hpp"
#include "moe/gaussian/predict.hpp"
#include "moe/gaussian/sample.hpp"

// Inference.
#include "moe/gaussian/bootstrap.hpp"
#include "moe/gaussian/choose_experts.hpp"
#include "moe/gaussian/criteria.hpp"
#include "moe/gaussian/dendrogram.hpp"
#include "moe/gaussian/estimable.hpp"
#include "moe/gaussian/identifiability.hpp"
#include "moe/gaussian/identifiability_report.hpp"
#include "moe/gaussian/independence.hpp"
#include "moe/gaussian/standard_errors.hpp"

// Theory: losses, distances, rates.
#include "moe/gaussian/distance.hpp"
#include "moe/gaussian/rate_experiment.hpp"
#include "moe/gaussian/voronoi.hpp"
