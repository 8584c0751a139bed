// SPDX-License-Identifier: MIT
// Fits that many tests make. Where all tests are one executable (MOE_SHARED_FITS), shared_fits.cpp compiles them once
// for all; a test that is compiled by itself has its own.
#pragma once

#ifdef MOE_SHARED_FITS
#include "moe/gaussian/fit/fit.hpp"

extern template moe::GaussianFit<moe::SoftmaxGate> moe::fit(const moe::RegressionData&, moe::Index,
                                                            const moe::SoftmaxGate&, const moe::FitOptions&);
extern template moe::GaussianFit<moe::TopKGate> moe::fit(const moe::RegressionData&, moe::Index, const moe::TopKGate&,
                                                         const moe::FitOptions&);
extern template moe::GaussianFit<moe::SoftmaxGate> moe::fit_from(const moe::RegressionData&,
                                                                 const moe::GaussianMoe<moe::SoftmaxGate>&,
                                                                 const moe::FitOptions&);
extern template moe::GaussianFit<moe::TopKGate> moe::fit_from(const moe::RegressionData&,
                                                              const moe::GaussianMoe<moe::TopKGate>&,
                                                              const moe::FitOptions&);
#endif
