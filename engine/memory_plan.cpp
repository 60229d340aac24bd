#include "engine/memory_plan.h"

#include <algorithm>
#include <numeric>

namespace graft {

MemoryPlan plan_memory(const std::vector<Lifetime>& lifetimes, std::size_t alignment) {
  std::vector<std::size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });

  const auto padded = [&](std::size_t i) { return (lifetimes[i].bytes + alignment - 1) / alignment * alignment; };
  MemoryPlan plan;
  plan.offsets.assign(lifetimes.size(), 0);
  std::vector<std::size_t> placed;  // by offset
  for (const std::size_t i : order) {
    if (lifetimes[i].bytes == 0) continue;
    std::size_t offset = 0;
    for (const std::size_t other : placed) {
      const bool together = lifetimes[other].first <= lifetimes[i].last && lifetimes[i].first <= lifetimes[other].last;
      if (!together) continue;
      if (offset + padded(i) <= plan.offsets[other]) break;  // fits into the hole before it
      offset = std::max(offset, plan.offsets[other] + padded(other));
    }
    plan.offsets[i] = offset;
    plan.total = std::max(plan.total, offset + padded(i));
    const auto position = std::upper_bound(placed.begin(), placed.end(), offset,
                                           [&](std::size_t value, std::size_t p) { return value < plan.offsets[p]; });
    placed.insert(position, i);
  }
  return plan;
}

}  // namespace graft
