// SPDX-License-Identifier: MIT
// Small worlds to act in: a point mass between two goals, and a pendulum whose torque does not lift it at once.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include <moe/core/random.hpp>

namespace systems {

/// A world in one state, for one thread. Actions are numbers in [-1, 1]; everything random is of the seed and episode.
class World {
 public:
  struct Outcome {
    double reward = 0;
    bool ends = false;  ///< there is nothing to gain after it, as opposed to a world that is only left
  };

  virtual ~World() = default;
  virtual moe::Index state_dim() const = 0;
  virtual moe::Index action_dim() const = 0;
  virtual moe::Index steps() const = 0;  ///< after which it is left
  virtual void start(std::uint64_t seed, std::int64_t episode) = 0;
  virtual Outcome act(const float* action) = 0;
  virtual void observe(float* state) const = 0;
};

/// A point in the plane that starts near the origin and moves by 0.25 times its action, along a line at an angle of the
/// seed towards goals on both sides at a distance of 1. Every step costs a quarter of the distance to the nearer goal
/// that it leaves; the world ends with a reward of 1 within 0.2 of one.
class TwoGoals final : public World {
 public:
  explicit TwoGoals(std::uint64_t seed)
      : angle_(std::numbers::pi * moe::RandomField(moe::Purpose::User, seed).uniform(0, 7)) {}

  moe::Index state_dim() const override { return 2; }
  moe::Index action_dim() const override { return 2; }
  moe::Index steps() const override { return 20; }
  void start(std::uint64_t seed, std::int64_t episode) override {
    const moe::RandomField random(moe::Purpose::User, seed);
    for (std::size_t d = 0; d < 2; ++d) place_[d] = 0.02 * random.normal(episode, std::int64_t(d));
  }
  Outcome act(const float* action) override {
    for (std::size_t d = 0; d < 2; ++d) place_[d] = std::clamp(place_[d] + 0.25 * double{action[d]}, -2.0, 2.0);
    const double distance = std::min(distance_to(0), distance_to(1));
    return {distance < 0.2 ? 1 : -0.25 * distance, distance < 0.2};
  }
  void observe(float* state) const override {
    for (std::size_t d = 0; d < 2; ++d) state[d] = static_cast<float>(place_[d]);
  }

  std::array<double, 2> goal(int which) const {
    const double side = which == 0 ? 1 : -1;
    return {side * std::cos(angle_), side * std::sin(angle_)};
  }
  double distance_to(int which) const { return std::hypot(place_[0] - goal(which)[0], place_[1] - goal(which)[1]); }

 private:
  double angle_;
  std::array<double, 2> place_ = {};
};

/// The pendulum of OpenAI Gym: torque of at most 2, gravity 10, mass and length 1, steps of 0.05 s. A step costs
/// angle^2 + 0.1 speed^2 + 0.001 torque^2, an angle of 0 is upright; returns are in tenths of that.
class Pendulum final : public World {
 public:
  moe::Index state_dim() const override { return 3; }
  moe::Index action_dim() const override { return 1; }
  moe::Index steps() const override { return 200; }
  void start(std::uint64_t seed, std::int64_t episode) override {
    const moe::RandomField random(moe::Purpose::User, seed);
    angle_ = std::numbers::pi * (2 * random.uniform(episode, 0) - 1);
    speed_ = 2 * random.uniform(episode, 1) - 1;
  }
  Outcome act(const float* action) override {
    const double torque = 2 * std::clamp(double{action[0]}, -1.0, 1.0);
    const double from_top = std::remainder(angle_, 2 * std::numbers::pi);
    const double cost = from_top * from_top + 0.1 * speed_ * speed_ + 0.001 * torque * torque;
    speed_ = std::clamp(speed_ + 0.05 * (15 * std::sin(angle_) + 3 * torque), -8.0, 8.0);
    angle_ += 0.05 * speed_;
    return {-0.1 * cost, false};
  }
  void observe(float* state) const override {
    state[0] = static_cast<float>(std::cos(angle_));
    state[1] = static_cast<float>(std::sin(angle_));
    state[2] = static_cast<float>(speed_ / 4);
  }

 private:
  double angle_ = 0, speed_ = 0;
};

}  // namespace systems
