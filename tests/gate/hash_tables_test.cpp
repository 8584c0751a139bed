// SPDX-License-Identifier: MIT
#include "moe/gate/hash_tables.hpp"

#include <map>
#include <set>

#include "moe/gate/hash.hpp"
#include "support/catch.hpp"
#include "support/gates.hpp"

using moe::Index;
using moe::Matrix;

namespace {

std::vector<double> loads(const Matrix<double>& table, const std::vector<double>& frequency, Index num_experts) {
  std::vector<double> load(static_cast<std::size_t>(num_experts));
  for (Index key = 0; key < table.rows(); ++key)
    load[static_cast<std::size_t>(table(key, 0))] += frequency[static_cast<std::size_t>(key)];
  return load;
}

/// Frequencies 1 / rank, the order of the keys turned around.
std::vector<double> zipf(std::size_t num_keys) {
  std::vector<double> frequency(num_keys);
  for (std::size_t key = 0; key < num_keys; ++key) frequency[key] = 1 / static_cast<double>(num_keys - key);
  return frequency;
}

}  // namespace

TEST_CASE("random_hash_table: distinct experts, uniformly drawn, a function of the seed", "[gate]") {
  for (const auto& [experts, k] : {std::pair<Index, Index>{7, 3}, {1, 1}, {5, 5}, {300, 1}}) {
    const auto table = moe::random_hash_table(20, experts, k, 1);
    CHECK_NOTHROW(moe::HashGate{.table = table}.validate(experts));
    CHECK(table == moe::random_hash_table(20, experts, k, 1));
  }
  CHECK_FALSE(moe::random_hash_table(20, 7, 3, 1) == moe::random_hash_table(20, 7, 3, 2));
  // Each of the 10 pairs of 5 experts 1 / 10 of the time: Pearson's statistic with 9 degrees of freedom, 0.1% at 27.9.
  const auto table = moe::random_hash_table(20000, 5, 2, 3);
  std::map<std::set<double>, double> count;
  for (Index key = 0; key < table.rows(); ++key) count[{table(key, 0), table(key, 1)}] += 1;
  std::vector<double> counts;
  for (const auto& [pair, times] : count) counts.push_back(times);
  REQUIRE(counts.size() == 10);
  CHECK(test::chi_square(counts, std::vector<double>(10, 0.1)) < 27.9);
}

TEST_CASE("balanced_hash_table: frequencies 5, 4, 3, 3, 3 go to two experts as 8 and 10", "[gate]") {
  const auto table = moe::balanced_hash_table(std::vector<double>{3, 5, 3, 4, 3}, 2);
  // 5 -> 0, 4 -> 1, 3 -> 1 (7), 3 -> 0 (8), 3 -> 1 (10)
  Matrix<double> expected(5, 1);
  expected << 1, 0, 0, 1, 1;
  CHECK(table == expected);
}

TEST_CASE("balanced_hash_table: ten thousand keys of Zipf's law, evenly where no key is more than a share", "[gate]") {
  const auto frequency = zipf(10000);
  for (const Index experts : {8, 16}) {
    const auto load = loads(moe::balanced_hash_table(frequency, experts), frequency, experts);
    double total = 0, most = 0, second = 0;
    for (const double value : load) {
      total += value;
      if (value > most)
        second = std::exchange(most, value);
      else
        second = std::max(second, value);
    }
    const auto mean = [&](double sum, Index of) { return sum / static_cast<double>(of); };
    if (experts == 8) {
      CHECK(most / mean(total, 8) < 1.05);
    } else {  // the first key is 0.102 of all, a share 0.0625: it is alone, the others share the rest
      CHECK(most == 1);
      CHECK(second / mean(total - most, 15) < 1.05);
    }
  }
}

TEST_CASE("balanced_hash_table: keys that are never met are spread, too", "[gate]") {
  const auto table = moe::balanced_hash_table(std::vector<double>(9, 0.0), 3);
  CHECK(loads(table, std::vector<double>(9, 1.0), 3) == std::vector<double>{3, 3, 3});
}

TEST_CASE("clustered_hash_table: keys near each other have the same expert", "[gate]") {
  Matrix<float> embedding(30, 2);
  for (Index key = 0; key < 30; ++key)
    embedding.row(key) << 100 * static_cast<float>(key % 3) + 0.1f * static_cast<float>(key), 1;
  const auto table = moe::clustered_hash_table(embedding, 3, 1);
  CHECK_NOTHROW(moe::HashGate{.table = table}.validate(3));
  for (Index key = 3; key < 30; ++key) CHECK(table(key, 0) == table(key % 3, 0));
  CHECK(std::set<double>{table(0, 0), table(1, 0), table(2, 0)}.size() == 3);
}

TEST_CASE("hash tables: sizes out of range and frequencies that are none are refused", "[gate][error]") {
  CHECK_THROWS_WITH(moe::random_hash_table(0, 4, 1, 1), "moe::random_hash_table: num_keys is 0, expected at least 1");
  CHECK_THROWS_WITH(moe::random_hash_table(3, 4, 5, 1),
                    "moe::random_hash_table: k is 5, expected 1 <= k <= num_experts = 4");
  CHECK_THROWS_WITH(moe::balanced_hash_table(std::vector<double>{1, NAN}, 4),
                    "moe::balanced_hash_table: frequency of key 1 is nan, expected a finite number >= 0");
  CHECK_THROWS_AS(moe::balanced_hash_table({}, 4), std::invalid_argument);
  CHECK_THROWS_AS(moe::balanced_hash_table(std::vector<double>{1}, 0), std::invalid_argument);
  CHECK_THROWS_AS(moe::clustered_hash_table(Matrix<float>(Matrix<float>::Zero(2, 2)), 3, 1), std::invalid_argument);
}
