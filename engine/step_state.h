#pragma once

#include <cstdint>

namespace graft {

/// After so many updates left out in a row the state stands still: the step is neither counted nor applied, however
/// often it is run. The host may then look at exactly this step, and no run goes on beyond what stopped it.
inline constexpr std::uint32_t kMostSkippedInRow = 10;

inline constexpr std::int64_t kNothingBad = -1;  // loss and gradients are finite
inline constexpr std::int64_t kLossBad = -2;     // every gradient is finite, the loss is not
inline constexpr std::int64_t kNormBad = -3;     // every square is finite, their sum is not

/// Everything a step reads that differs from the step before. It lives in device memory, so that one
/// captured graph serves every step. Scalars that enter float64 runs are doubles.
struct StepState {
  std::uint64_t step = 0;  // steps already done
  std::uint64_t seed = 0;
  double learning_rate = 0;              // of the coming update
  double clip_scale = 1;                 // factor on every gradient, min(1, max_norm / (norm + 1e-6))
  double gradient_norm = 0;              // global L2 norm before clipping
  double bias_correction1 = 1;           // 1 - beta1^t of the coming update, t counted from 1
  double bias_correction2 = 1;           // 1 - beta2^t
  std::uint64_t updates = 0;             // updates applied
  std::uint64_t skipped = 0;             // updates left out because the loss or a gradient was not finite
  std::uint32_t skip = 0;                // 1: this step's update must not be applied
  std::uint32_t skipped_in_row = 0;      // updates left out since the last that was applied
  std::int64_t first_bad = kNothingBad;  // of the step at hand: the first gradient that is not finite, as an index
                                         // into the flat buffer, or one of the constants above
};

}  // namespace graft
