// SPDX-License-Identifier: MIT
// Runs parallel loops on std::threads: any number of workers whatever the machine has, and visible to ThreadSanitizer.
#pragma once

#include <thread>
#include <vector>

#include "moe/core/parallel.hpp"

namespace test {

class ThreadExecutor final : public moe::Executor {
 public:
  explicit ThreadExecutor(moe::Index workers) : workers_(workers) {}
  moe::Index concurrency() const override { return workers_; }
  void run(moe::TaskRef task) override {
    std::vector<std::thread> threads;
    for (moe::Index w = 1; w < workers_; ++w) threads.emplace_back([task, w] { task(w); });
    task(0);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  moe::Index workers_;
};

}  // namespace test
