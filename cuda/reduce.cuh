#pragma once

#include <cuda_runtime.h>

namespace graft::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kFullWarp = 0xffffffffU;

struct Sum {
  template <class T>
  [[nodiscard]] __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
  [[nodiscard]] __device__ __forceinline__ float2 operator()(float2 a, float2 b) const {
    return {a.x + b.x, a.y + b.y};
  }
};
struct Max {
  template <class T>
  [[nodiscard]] __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

template <class T>
[[nodiscard]] __device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kFullWarp, value, mask);
}
[[nodiscard]] __device__ __forceinline__ float2 shuffle_xor(float2 value, int mask) {
  return {__shfl_xor_sync(kFullWarp, value.x, mask), __shfl_xor_sync(kFullWarp, value.y, mask)};
}

/// Combines the values of `kWidth` neighbouring lanes (a power of two); all of them get the same bits,
/// since a butterfly adds the same pairs on both sides. All 32 lanes must call it.
template <int kWidth = kWarp, class T, class Op>
[[nodiscard]] __device__ __forceinline__ T warp_reduce(T value, Op op) {
  static_assert(kWidth >= 1 && kWidth <= kWarp && (kWidth & (kWidth - 1)) == 0);
#pragma unroll
  for (int mask = kWidth / 2; mask > 0; mask /= 2) value = op(value, shuffle_xor(value, mask));
  return value;
}
template <int kWidth = kWarp, class T>
[[nodiscard]] __device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce<kWidth>(value, Sum{});
}
template <int kWidth = kWarp, class T>
[[nodiscard]] __device__ __forceinline__ T warp_max(T value) {
  return warp_reduce<kWidth>(value, Max{});
}

/// Combines one value of each thread of a one-dimensional block of kThreads threads, in a fixed order;
/// every thread gets the result. All threads must call it; calls may follow each other directly.
template <int kThreads, class T, class Op>
[[nodiscard]] __device__ __forceinline__ T block_reduce(T value, Op op) {
  static_assert(kThreads % kWarp == 0 && kThreads <= kWarp * kWarp);
  constexpr int kWarps = kThreads / kWarp;
  value = warp_reduce(value, op);
  if constexpr (kWarps > 1) {
    __shared__ T parts[kWarps];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = parts[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) value = op(value, parts[warp]);
    __syncthreads();  // parts may be written again by the next call
  }
  return value;
}
template <int kThreads, class T>
[[nodiscard]] __device__ __forceinline__ T block_sum(T value) {
  return block_reduce<kThreads>(value, Sum{});
}
template <int kThreads, class T>
[[nodiscard]] __device__ __forceinline__ T block_max(T value) {
  return block_reduce<kThreads>(value, Max{});
}

}  // namespace graft::cuda
