#pragma once

#include <cstdint>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "engine/error.h"
#include "engine/tensor.h"

// The second stage of sums over rows: blocks of the first stage left one row of sums each in partial [parts, columns].

namespace graft::cuda {

/// A gradient of a parameter: float32 or bfloat16, stored or added to.
struct ParameterGradient {
  void* data = nullptr;
  bool is_bf16 = false;
  bool accumulate = false;

  __device__ __forceinline__ void put(std::int64_t i, float value) const {
    if (data == nullptr) return;
    if (is_bf16) {
      bf16* const to = static_cast<bf16*>(data) + i;
      *to = from_float<bf16>(accumulate ? to_float(*to) + value : value);
    } else {
      float* const to = static_cast<float*>(data) + i;
      *to = accumulate ? *to + value : value;
    }
  }
};

/// Throws DeviceError, naming the kernel, for a gradient of another dtype.
[[nodiscard]] inline ParameterGradient parameter_gradient(const GradTarget& target, const char* kernel) {
  if (target && target.view.dtype != DType::F32 && target.view.dtype != DType::BF16) {
    throw DeviceError(std::string(kernel) + ": a gradient is " + name_of(target.view.dtype) +
                      ", expected float32 or bfloat16");
  }
  return {target.view.data, target.view.dtype == DType::BF16, target.accumulate};
}

/// A column and its total.
struct ColumnTotal {
  std::int64_t column = -1;  // negative: this thread has none
  float total = 0.F;
};

/// Adds up columns of partial [parts, columns] in an order that depends on `parts` alone. For blocks of (kWarp, kWarp)
/// threads, blocks_for(columns, kWarp) of them; one thread in kWarp gets a column.
[[nodiscard]] __device__ __forceinline__ ColumnTotal column_total(const float* partial, int parts,
                                                                  std::int64_t columns) {
  __shared__ float sums[kWarp][kWarp + 1];
  const int lane = static_cast<int>(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.y);
  const std::int64_t first = std::int64_t{blockIdx.x} * kWarp;
  float total = 0.F;
  if (first + lane < columns) {
#pragma unroll 8  // all of a usual number of parts are on their way at once
    for (int part = warp; part < parts; part += kWarp) total += partial[part * columns + first + lane];
  }
  sums[warp][lane] = total;
  __syncthreads();
  total = warp_sum(sums[lane][warp]);  // columns across warps now
  const bool mine = lane == 0 && first + warp < columns;
  return {mine ? first + warp : -1, total};
}

}  // namespace graft::cuda
