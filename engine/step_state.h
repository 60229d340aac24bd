#pragma once

#include <cstdint>

namespace graft {

/// Everything a step reads that differs from the step before. It lives in device memory, so that one
/// captured graph serves every step. Scalars that enter float64 runs are doubles.
struct StepState {
  std::uint64_t step = 0;  // steps already done
  std::uint64_t seed = 0;
  double learning_rate = 0;     // of the coming update
  double clip_scale = 1;        // factor on every gradient, min(1, max_norm / (norm + 1e-6))
  double gradient_norm = 0;     // global L2 norm before clipping
  double bias_correction1 = 1;  // 1 - beta1^t of the coming update, t counted from 1
  double bias_correction2 = 1;  // 1 - beta2^t
  std::uint64_t updates = 0;    // updates applied
  std::uint64_t skipped = 0;    // updates left out because a gradient was not finite
  std::uint32_t skip = 0;       // 1: this step's update must not be applied
  std::uint32_t reserved = 0;
};

}  // namespace graft
