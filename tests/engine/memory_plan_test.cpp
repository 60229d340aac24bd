#include "engine/memory_plan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/philox.h"

namespace graft::test {
namespace {

std::size_t padded(std::size_t bytes, std::size_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

bool together(const Lifetime& a, const Lifetime& b) { return a.first <= b.last && b.first <= a.last; }

/// The most bytes in use at any event: no plan can be smaller.
std::size_t peak(const std::vector<Lifetime>& lifetimes, std::size_t alignment) {
  std::size_t result = 0;
  for (const Lifetime& at : lifetimes) {
    std::size_t bytes = 0;
    for (const Lifetime& other : lifetimes) {
      if (other.first <= at.first && at.first <= other.last) bytes += padded(other.bytes, alignment);
    }
    result = std::max(result, bytes);
  }
  return result;
}

void check_plan(const std::vector<Lifetime>& lifetimes, std::size_t alignment) {
  const MemoryPlan plan = plan_memory(lifetimes, alignment);
  REQUIRE(plan.offsets.size() == lifetimes.size());
  std::size_t sum = 0;
  for (std::size_t a = 0; a < lifetimes.size(); ++a) {
    sum += padded(lifetimes[a].bytes, alignment);
    CHECK(plan.offsets[a] % alignment == 0);
    CHECK(plan.offsets[a] + lifetimes[a].bytes <= plan.total);
    for (std::size_t b = a + 1; b < lifetimes.size(); ++b) {
      if (!together(lifetimes[a], lifetimes[b])) continue;
      if (lifetimes[a].bytes == 0 || lifetimes[b].bytes == 0) continue;
      const bool apart = plan.offsets[a] + lifetimes[a].bytes <= plan.offsets[b] ||
                         plan.offsets[b] + lifetimes[b].bytes <= plan.offsets[a];
      REQUIRE(apart);
    }
  }
  CHECK(plan.total <= sum);
  CHECK(plan.total >= peak(lifetimes, alignment));
}

TEST_CASE("memory plan: blocks that are alive together never overlap") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const Draw draw{seed, RandomDomain::Bootstrap, 0, 0};
    const std::uint32_t count = 1 + draw.below(60, 0, 0);
    std::vector<Lifetime> lifetimes;
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto first = static_cast<std::int64_t>(draw.below(100, 1, i));
      lifetimes.push_back({draw.below(seed % 2 == 0 ? 5000 : 5, 2, i), first, first + draw.below(40, 3, i)});
    }
    INFO("seed " << seed);
    check_plan(lifetimes, 256);
    check_plan(lifetimes, 1);
  }
}

TEST_CASE("memory plan: nothing, and nothing but empty blocks, needs nothing") {
  CHECK(plan_memory({}).total == 0);
  const MemoryPlan plan = plan_memory({{0, 0, 5}, {0, 2, 3}});
  CHECK(plan.total == 0);
  CHECK(plan.offsets == std::vector<std::size_t>{0, 0});
}

TEST_CASE("memory plan: an empty block takes no room among others") {
  const MemoryPlan plan = plan_memory({{256, 0, 4}, {0, 1, 2}, {256, 1, 3}});
  CHECK(plan.total == 512);
}

TEST_CASE("memory plan: blocks that follow each other share memory") {
  const MemoryPlan plan = plan_memory({{1000, 0, 1}, {900, 2, 3}, {800, 4, 9}});
  CHECK(plan.total == 1024);
  CHECK(plan.offsets == std::vector<std::size_t>{0, 0, 0});
}

TEST_CASE("memory plan: the last event of one and the first of another may not coincide") {
  CHECK(plan_memory({{256, 0, 2}, {256, 2, 4}}).total == 512);
  CHECK(plan_memory({{256, 0, 1}, {256, 2, 4}}).total == 256);
}

TEST_CASE("memory plan: a hole is used where the block fits") {
  // a and c stay, b between them ends, d takes its place; e does not fit there
  const MemoryPlan plan = plan_memory({{1024, 0, 9}, {768, 0, 3}, {512, 0, 9}, {512, 4, 9}, {256, 4, 9}});
  CHECK(plan.total == 1024 + 768 + 512);
  const std::vector<std::size_t> expected = {0, 1024, 1792, 1024, 1536};
  CHECK(plan.offsets == expected);
}

TEST_CASE("memory plan: saved activations of a step fit in the sum of their sizes") {
  // forward allocates 0..n-1, backward releases them in reverse order: nothing can be shared, nothing may be wasted
  std::vector<Lifetime> lifetimes;
  for (std::int64_t i = 0; i < 20; ++i) lifetimes.push_back({256 * static_cast<std::size_t>(1 + i % 5), i, 40 - i});
  CHECK(plan_memory(lifetimes).total == peak(lifetimes, 256));
}

TEST_CASE("memory plan: is the same every time") {
  std::vector<Lifetime> lifetimes;
  const Draw draw{9, RandomDomain::Bootstrap, 0, 0};
  for (std::uint32_t i = 0; i < 200; ++i) {
    const auto first = static_cast<std::int64_t>(draw.below(300, 1, i));
    lifetimes.push_back({draw.below(3, 2, i) * 512U, first, first + draw.below(50, 3, i)});  // many of equal size
  }
  CHECK(plan_memory(lifetimes).offsets == plan_memory(lifetimes).offsets);
}

}  // namespace
}  // namespace graft::test
