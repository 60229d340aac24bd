#pragma once

#include <cstdint>

#include "engine/philox.h"

namespace graft {

/// A value that grows over training: min(start + floor(step / interval) * increment, end).
/// Source: the update rule of Garg et al.'s curriculum.
struct Ramp {
  std::int64_t start = 1;
  std::int64_t end = 1;
  std::int64_t increment = 0;
  std::int64_t interval = 1;

  [[nodiscard]] GRAFT_HD std::int64_t at(std::uint64_t step) const {
    const std::int64_t value =
        start + static_cast<std::int64_t>(step / static_cast<std::uint64_t>(interval)) * increment;
    return value < end ? value : end;
  }
  /// A ramp that is at `value` from the start.
  [[nodiscard]] static Ramp constant(std::int64_t value) { return {value, value, 0, 1}; }
};

/// Which examples a sampler draws. The step is read from device memory; the rest is fixed for a graph.
struct Selection {
  RandomDomain domain = RandomDomain::Train;
  std::int64_t batch = 0;    // examples to draw
  std::int64_t first = 0;    // number of the first one: rank * batch in data-parallel training
  bool consecutive = false;  // false: examples first..first+batch-1 of each step. true: of step 0, continuing through
                             // the set from batch to batch (evaluation: example step * batch + i)
};

}  // namespace graft
