// SPDX-License-Identifier: MIT
#pragma once

// The table of contents of the statistics: Gaussian mixtures of experts, with the gates of the layers, by maximum
// likelihood. Start with gaussian/fit/fit.hpp. Every header also stands alone.

// The model: what it is, its numbers, its gate.
#include "moe/gaussian/model/data.hpp"
#include "moe/gaussian/model/gate_model.hpp"
#include "moe/gaussian/model/gate_weights.hpp"
#include "moe/gaussian/model/input_columns.hpp"
#include "moe/gaussian/model/model.hpp"
#include "moe/gaussian/model/parameters.hpp"

// Data of people: columns of numbers and text, formulas, dummies.
#include "moe/gaussian/design/data_frame.hpp"
#include "moe/gaussian/design/design.hpp"
#include "moe/gaussian/design/formula.hpp"
#include "moe/gaussian/design/quadratic.hpp"
#include "moe/gaussian/design/regression.hpp"

// Likelihood and estimation.
#include "moe/gaussian/fit/fit.hpp"
#include "moe/gaussian/fit/fit_options.hpp"
#include "moe/gaussian/fit/flag_words.hpp"
#include "moe/gaussian/pass/likelihood.hpp"

// Prediction and sampling.
#include "moe/gaussian/predict/normal_mixture.hpp"
#include "moe/gaussian/predict/predict.hpp"
#include "moe/gaussian/predict/residuals.hpp"
#include "moe/gaussian/predict/sample.hpp"

// Inference.
#include "moe/gaussian/inference/bootstrap.hpp"
#include "moe/gaussian/inference/choose_experts.hpp"
#include "moe/gaussian/inference/criteria.hpp"
#include "moe/gaussian/inference/cross_validation.hpp"
#include "moe/gaussian/inference/dendrogram.hpp"
#include "moe/gaussian/inference/estimable.hpp"
#include "moe/gaussian/inference/identifiability.hpp"
#include "moe/gaussian/inference/independence.hpp"
#include "moe/gaussian/inference/prediction_intervals.hpp"
#include "moe/gaussian/inference/standard_errors.hpp"
#include "moe/gaussian/inference/summary.hpp"

// Theory: losses, distances, rates.
#include "moe/gaussian/theory/distance.hpp"
#include "moe/gaussian/theory/rate_experiment.hpp"
#include "moe/gaussian/theory/rate_level.hpp"
#include "moe/gaussian/theory/voronoi.hpp"
