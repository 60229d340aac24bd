#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/philox.h"
#include "engine/step_state.h"
#include "engine/tensor.h"

namespace graft {

/// Which elements a dropout keeps: a function of what is in the step state and of the element's place.
struct DropoutMask {
  std::int64_t examples = 0;  // the leading axis of x
  std::int64_t repeats = 1;   // tokens that share the draws of an example, or 1
  std::int64_t draws = 1;     // of one example (and one repeat of it)
  std::uint32_t purpose = 0;
  std::uint32_t first_example = 0;
  std::uint32_t threshold = 0;  // a draw below it drops
  double scale = 1;             // of what is kept

  /// Draws 4 * group ... 4 * group + 3 of an example. The same bits on host and device.
  [[nodiscard]] GRAFT_HD Words4 words(const StepState& state, std::int64_t example, std::int64_t group) const {
    const Draw draw{state.seed, RandomDomain::Dropout, state.step, first_example + static_cast<std::uint32_t>(example)};
    return draw.words(purpose, static_cast<std::uint32_t>(group));
  }
};

struct DropoutArgs {
  const StepState* state = nullptr;
  ConstView x;   // or dy
  GradTarget y;  // or dx
  DropoutMask mask;
};

inline constinit Kernel<DropoutArgs> dropout_forward{"dropout_forward"};
inline constinit Kernel<DropoutArgs> dropout_backward{"dropout_backward"};

/// y = x * keep / (1 - p) in training, keep being 0 with probability p and 1 otherwise; y = x (the same tensor) where
/// ctx.training is off or p is 0.
///   x        [B, ...]   float32, bfloat16 or float64, at most 2^32 elements of one example; with `shared_over_time`
///                       [B, T, D], one draw for each (b, d), the same at every t
///   p        [0, 1)     rounded to a multiple of 2^-32
///   purpose             below 2^16; different for every dropout of a step
///   first_example       place of x[0] in the global batch, so that ranks draw what one rank would
///   returns             shape and dtype of x
/// Element i of example b is dropped if word i of the stream (seed, Dropout, purpose, step, first_example + b) is below
/// p 2^32: nothing is stored, backward (and recomputation) draws the same mask, and so does every backend.
/// Throws ArgumentError if p, purpose or a shape is out of range, or if training without ctx.state.
/// Source: Srivastava et al. 2014, section 4 (scaled while training); the mask over time: krafton-ai/mambaformer-icl,
/// s4d.py, DropoutNd.
[[nodiscard]] Tensor dropout(const Context& ctx, const Tensor& x, double p, std::uint32_t purpose,
                             bool shared_over_time = false, std::uint32_t first_example = 0);

}  // namespace graft
