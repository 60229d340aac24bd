#pragma once

#include <cuda_runtime.h>

namespace graft::cuda {

inline constexpr float kLog2E = 1.4426950408889634F;

/// 2^x in one instruction, error 2 ulp; results below the least normal number are 0. A state that decays by less than
/// 2^-126 in a step is gone either way.
[[nodiscard]] __device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// A power of two that may not grow: exponents above 0 count as 0. NaN stays NaN, unlike with fminf().
[[nodiscard]] __device__ __forceinline__ float fast_decay(float exponent) {
  return fast_exp2(exponent > 0.F ? 0.F : exponent);
}

}  // namespace graft::cuda
