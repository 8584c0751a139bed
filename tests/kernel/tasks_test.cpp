// SPDX-License-Identifier: MIT
#include "moe/kernel/tasks.hpp"

#include <mutex>

#include "support/catch.hpp"
#include "support/thread_executor.hpp"

using moe::Index;

namespace {

struct Share {
  Index group, first, last;
};

/// The shares of groups of rows with `panels` panels of `depth` steps each, on some workers.
std::vector<Share> shares_of(const std::vector<Index>& rows, Index panels, Index depth, Index workers) {
  std::vector<Index> offset = {0};
  for (const Index count : rows) offset.push_back(offset.back() + count);
  test::ThreadExecutor executor(workers);
  const moe::UseExecutor use(executor);
  std::vector<Share> shares;
  std::mutex mutex;
  moe::kernel::TaskList tasks;
  tasks.run(
      {offset.data(), static_cast<Index>(rows.size())}, [&](Index) { return panels; }, [&](Index) { return depth; },
      [&](Index g, Index first, Index last, Index worker) {
        const std::lock_guard lock(mutex);
        CHECK((worker >= 0 && worker < workers));
        shares.push_back({g, first, last});
      });
  return shares;
}

}  // namespace

TEST_CASE("TaskList: every panel of a group with rows is in one share, no other panel in any", "[kernel][property]") {
  for (const Index workers : {1, 2, 5})
    for (const Index panels : {1, 3, 128})
      for (const Index depth : {0, 1, 2048}) {
        const std::vector<Index> rows = {5, 0, 1, 700, 0, 2};
        std::vector<std::vector<int>> seen(rows.size(), std::vector<int>(static_cast<std::size_t>(panels), 0));
        for (const Share& share : shares_of(rows, panels, depth, workers))
          for (Index p = share.first; p < share.last; ++p)
            ++seen[static_cast<std::size_t>(share.group)][static_cast<std::size_t>(p)];
        CAPTURE(workers, panels, depth);
        for (std::size_t g = 0; g < rows.size(); ++g)
          for (const int count : seen[g]) CHECK(count == (rows[g] > 0 ? 1 : 0));
      }
}

TEST_CASE("TaskList: one worker gets a share per group", "[kernel]") {
  CHECK(shares_of({3, 500, 0, 1}, 128, 2048, 1).size() == 3);
}

TEST_CASE("TaskList: a group with half of the rows is spread, and the last shares are small", "[kernel]") {
  for (const Index workers : {2, 4}) {
    Index of_large = 0, total = 0;
    std::vector<Index> work;
    const auto shares = shares_of({64, 64, 64, 64, 512, 64, 64, 64, 64}, 128, 2048, workers);
    for (const Share& share : shares) {
      of_large += share.group == 4 ? 1 : 0;
      work.push_back((share.group == 4 ? 512 : 64) * (share.last - share.first));
      total += work.back();
    }
    std::ranges::sort(work);
    CAPTURE(workers, shares.size());
    CHECK(of_large >= 2 * workers);
    CHECK(work.back() * workers * 3 < total);     // nobody starts with more than a third of its part
    CHECK(work.front() * workers * 100 < total);  // a hundredth of a worker's time is waited for at most
    CHECK(shares.size() < 40u * static_cast<std::size_t>(workers));
  }
}
