#pragma once

#include <cstdint>

#include "cuda/vec.cuh"

// Rows read and written in groups of four columns: one 16-byte (float32) or 8-byte (bfloat16) access with kAligned,
// which needs a width that is a multiple of four and 16-byte aligned tensors; element by element without.

namespace graft::cuda {

inline constexpr int kGroup = 4;

/// Columns column ... column + 3 of a row; zeros beyond its width.
template <bool kAligned, class T>
__device__ __forceinline__ void load_group(const T* row, int column, int width, float (&to)[kGroup]) {
  if constexpr (kAligned) {
    if (column < width) {
      load(row + column, to);
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j) to[j] = !kAligned && column + j < width ? to_float(row[column + j]) : 0.F;
}

template <bool kAligned, class T>
__device__ __forceinline__ void store_group(T* row, int column, int width, const float (&from)[kGroup]) {
  if constexpr (kAligned) {
    if (column < width) store(row + column, from);
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (column + j < width) row[column + j] = from_float<T>(from[j]);
    }
  }
}

template <bool kAligned, class T>
__device__ __forceinline__ void store_or_add_group(T* row, bool accumulate, int column, int width,
                                                   const float (&from)[kGroup]) {
  float value[kGroup] = {};
  if (accumulate) load_group<kAligned>(row, column, width, value);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) value[j] += from[j];
  store_group<kAligned>(row, column, width, value);
}

/// A tensor of float32 or bfloat16, told apart at run time: all threads take the same branch, which costs a
/// memory-bound kernel nothing and saves an instantiation a combination of dtypes.
struct AnyRows {
  void* data;
  bool is_bf16;

  template <bool kAligned>
  __device__ __forceinline__ void load(std::int64_t start, int column, int width, float (&to)[kGroup]) const {
    if (is_bf16) {
      load_group<kAligned>(static_cast<const bf16*>(data) + start, column, width, to);
    } else {
      load_group<kAligned>(static_cast<const float*>(data) + start, column, width, to);
    }
  }
  template <bool kAligned>
  __device__ __forceinline__ void store_or_add(bool accumulate, std::int64_t start, int column, int width,
                                               const float (&from)[kGroup]) const {
    if (is_bf16) {
      store_or_add_group<kAligned>(static_cast<bf16*>(data) + start, accumulate, column, width, from);
    } else {
      store_or_add_group<kAligned>(static_cast<float*>(data) + start, accumulate, column, width, from);
    }
  }
};

/// Whether all of the tensors allow grouped accesses in rows of `width`.
template <class... Pointers>
[[nodiscard]] bool groups_aligned(std::int64_t width, Pointers... pointers) {
  return width % kGroup == 0 && (is_aligned16(pointers) && ...);
}

}  // namespace graft::cuda
