#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace graft {

/// When a block is in use, in events of the step: from `first` up to and including `last`.
struct Lifetime {
  std::size_t bytes = 0;
  std::int64_t first = 0;
  std::int64_t last = 0;
};

struct MemoryPlan {
  std::vector<std::size_t> offsets;  // one a lifetime, multiples of the alignment
  std::size_t total = 0;
};

/// Offsets such that blocks alive at the same time do not overlap: largest first, each at the lowest
/// offset that fits. A pure function.
[[nodiscard]] MemoryPlan plan_memory(const std::vector<Lifetime>& lifetimes, std::size_t alignment = 256);

}  // namespace graft
