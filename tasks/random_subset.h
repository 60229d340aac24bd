#pragma once

#include <cstdint>

#include "engine/philox.h"

namespace graft {

/// Walks through 0 .. n-1 and takes k of them; every subset of size k is equally likely. Integers only.
/// Source: Knuth, The Art of Computer Programming 2, section 3.4.2, algorithm S.
///   RandomSubset subset(n, k);
///   for (int j = 0; j < n; ++j) kept[j] = subset.takes_next(draw, kPurpose);
class RandomSubset {
 public:
  GRAFT_HD RandomSubset(int n, int k) : left_(static_cast<std::uint32_t>(n)), wanted_(static_cast<std::uint32_t>(k)) {}

  /// Whether the next number is in the subset. The stream `purpose` of the draw is this subset's alone.
  [[nodiscard]] GRAFT_HD bool takes_next(const Draw& draw, std::uint32_t purpose) {
    const bool taken = draw.below(left_, purpose, walked_) < wanted_;
    --left_;
    ++walked_;
    if (taken) --wanted_;
    return taken;
  }

 private:
  std::uint32_t left_;
  std::uint32_t wanted_;
  std::uint32_t walked_ = 0;
};

}  // namespace graft
