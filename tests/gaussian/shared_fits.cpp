// SPDX-License-Identifier: MIT
#include "gaussian/shared_fits.hpp"

#include "moe/gaussian/fit/fit.hpp"

template moe::GaussianFit<moe::SoftmaxGate> moe::fit(const moe::RegressionData&, moe::Index, const moe::SoftmaxGate&,
                                                     const moe::FitOptions&);
template moe::GaussianFit<moe::TopKGate> moe::fit(const moe::RegressionData&, moe::Index, const moe::TopKGate&,
                                                  const moe::FitOptions&);
template moe::GaussianFit<moe::SoftmaxGate> moe::fit_from(const moe::RegressionData&,
                                                          const moe::GaussianMoe<moe::SoftmaxGate>&,
                                                          const moe::FitOptions&);
template moe::GaussianFit<moe::TopKGate> moe::fit_from(const moe::RegressionData&,
                                                       const moe::GaussianMoe<moe::TopKGate>&, const moe::FitOptions&);
