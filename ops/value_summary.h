#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "engine/context.h"
#include "engine/dtype.h"
#include "engine/kernel.h"
#include "engine/step_state.h"
#include "engine/tensor.h"

namespace graft {

/// What the values of a tensor look like.
struct ValueSummary {
  std::int64_t nan = 0;                                  // values that are not a number
  std::int64_t infinite = 0;                             // values that are +inf or -inf
  std::int64_t first_bad = -1;                           // index of the first of either; -1: none
  double min = std::numeric_limits<double>::infinity();  // of the finite values
  double max = -std::numeric_limits<double>::infinity();

  [[nodiscard]] GRAFT_HD bool finite() const { return first_bad < 0; }
  GRAFT_HD void count(double value, std::int64_t index) {
    if (value - value == 0) {
      if (value < min) min = value;
      if (value > max) max = value;
      return;
    }
    (value != value ? nan : infinite) += 1;
    if (first_bad < 0 || index < first_bad) first_bad = index;
  }
  GRAFT_HD void merge(const ValueSummary& other) {
    nan += other.nan;
    infinite += other.infinite;
    if (other.first_bad >= 0 && (first_bad < 0 || other.first_bad < first_bad)) first_bad = other.first_bad;
    if (other.min < min) min = other.min;
    if (other.max > max) max = other.max;
  }
};

struct ValueSummaryArgs {
  ConstView values;       // [n] of a floating dtype
  ValueSummary* partial;  // [summary_blocks(n)]
};
inline constinit Kernel<ValueSummaryArgs> value_summary_kernel{"value_summary"};

/// Into how many blocks of consecutive elements a summary is split; a function of the length alone.
[[nodiscard]] constexpr std::int64_t summary_blocks(std::int64_t elements) {
  return std::clamp<std::int64_t>((elements + 4095) / 4096, 1, 512);
}

/// Reads a tensor of any floating dtype once and waits for the result: for reports, never inside a captured step.
/// Throws ArgumentError for another dtype, and while capturing or planning. Memory comes from ctx.run_memory.
[[nodiscard]] ValueSummary summarize_values(const Context& ctx, const ConstView& values);

struct PoisonArgs {
  View target;
  std::int64_t element;
  std::uint64_t first_step, last_step;  // steps done before the step that is hit
  double value;
  const StepState* state;
};
/// target[element] = value while first_step <= state.step <= last_step: how tests inject faults into captured steps.
inline constinit Kernel<PoisonArgs> poison{"poison"};

}  // namespace graft
