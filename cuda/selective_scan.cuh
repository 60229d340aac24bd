#pragma once
// What the forward and backward kernels of the selective scan share: arguments, arithmetic, staging of B and C, sums
// over neighbouring lanes.

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/exp2.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/selective_scan.h"

namespace graft::cuda::scan {

constexpr int kTile = static_cast<int>(kSelectiveScanTile);  // steps between checkpoints
constexpr int kThreads = 128;
constexpr float kLn2 = 0.6931471805599453F;

template <class T>
struct Source {
  const T* u;
  const T* delta;
  const T* b;  // column 0 of B in row 0
  const T* c;
  const T* z;  // null: no gate
  const float* a_log;
  const float* skip;
  const float* bias;
  std::int64_t bc_row, z_row;
  int tokens, width, state;
  int channel_blocks;
  bool softplus;
};

template <class T>
[[nodiscard]] Source<T> source_of(const SelectiveScanSource& in, std::int64_t channels_a_block) {
  Source<T> s{};
  s.u = in.u.as<T>();
  s.delta = in.delta.as<T>();
  s.b = in.bc.as<T>() + in.b_offset;
  s.c = in.bc.as<T>() + in.c_offset;
  s.z = in.z ? in.z.as<T>() + in.z_offset : nullptr;
  s.a_log = in.a_log.as<float>();
  s.skip = in.skip.as<float>();
  s.bias = in.delta_bias.as<float>();
  s.bc_row = in.bc.shape[2];
  s.z_row = in.z ? in.z.shape[2] : 0;
  s.tokens = static_cast<int>(in.u.shape[1]);
  s.width = static_cast<int>(in.u.shape[2]);
  s.state = static_cast<int>(in.a_log.shape[1]);
  s.channel_blocks = static_cast<int>((in.u.shape[2] + channels_a_block - 1) / channels_a_block);
  s.softplus = in.softplus;
  return s;
}

/// 1 / x in one instruction, error 1 ulp; 0 for infinity.
[[nodiscard]] __device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
[[nodiscard]] __device__ __forceinline__ float sigmoid(float v) {
  return fast_reciprocal(1.F + fast_exp2(-kLog2E * v));
}
/// softplus(v) = max(v, 0) + log1p(m), m = exp(-|v|) in (0, 1], and log1p(m) = 2 atanh(s), s = m / (2 + m) <= 1/3,
/// whose series is cut where its terms are below 2^-25 of the sum: the small step sizes of very negative v keep their
/// relative accuracy. From v = 17 on the sum is v, and sigmoid(v) is 1, in float32.
[[nodiscard]] __device__ __forceinline__ float softplus_of(float v, float m) {
  const float s = m * fast_reciprocal(2.F + m);
  const float s2 = s * s;
  float series = 1.F / 13.F;
  series = series * s2 + 1.F / 11.F;
  series = series * s2 + 1.F / 9.F;
  series = series * s2 + 1.F / 7.F;
  series = series * s2 + 1.F / 5.F;
  series = series * s2 + 1.F / 3.F;
  series = series * s2 + 1.F;
  return fmaxf(v, 0.F) + 2.F * s * series;
}
[[nodiscard]] __device__ __forceinline__ float softplus(float v) {
  return softplus_of(v, fast_exp2(-kLog2E * fabsf(v)));
}
/// Also its slope, sigmoid(v).
[[nodiscard]] __device__ __forceinline__ float softplus(float v, float& slope) {
  const float m = fast_exp2(-kLog2E * fabsf(v));
  slope = (v >= 0.F ? 1.F : m) * fast_reciprocal(1.F + m);
  return softplus_of(v, m);
}
template <class T>
[[nodiscard]] __device__ __forceinline__ float step_size(const Source<T>& in, float v) {
  return in.softplus ? softplus(v) : v;
}
/// log2(e) A of a state, so that a step's decay is 2^(dt * rate); 0 for padding, whose state then stays 0.
template <class T>
[[nodiscard]] __device__ __forceinline__ float decay_rate(const Source<T>& in, int channel, int n) {
  if (channel >= in.width || n >= in.state) return 0.F;
  return -kLog2E * expf(in.a_log[std::int64_t{channel} * in.state + n]);
}

/// B and C of the steps of a tile on their way to shared memory as [kTile, 2, kPadded] floats, zeros beyond the states
/// and the last step. load() only asks for them, so that the wait can be put behind other work.
template <class T, int kPadded>
struct ColumnTile {
  static constexpr int kCount = kTile * 2 * kPadded / kThreads;
  static_assert(kCount * kThreads == kTile * 2 * kPadded);
  T values[kCount];

  __device__ __forceinline__ void load(const Source<T>& in, std::int64_t sequence, int start, int thread) {
    const std::int64_t first = (sequence * in.tokens + start) * in.bc_row;
    const T* const b = in.b + first;
    const T* const c = in.c + first;
    const int row = static_cast<int>(in.bc_row);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int element = i * kThreads + thread;
      const int step = element / (2 * kPadded);
      const int n = element % kPadded;
      const bool inside = n < in.state && start + step < in.tokens;
      values[i] = inside ? (element / kPadded % 2 == 0 ? b : c)[step * row + n] : from_float<T>(0.F);
    }
  }
  __device__ __forceinline__ void store(float* to) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i * kThreads + static_cast<int>(threadIdx.x)] = to_float(values[i]);
  }
};

/// Sums kCount values over the lanes of a warp that differ in the bits kMask, kMask / 2, ..., kLast of their number,
/// and deals the sums out: a bit that halves the values leaves the upper half to the lanes that have it set, so that
/// lane (k, ...) of the first bits ends up with values[0], ... = sums k * count, ... . Once one value is left, further
/// bits leave it to all their lanes. Half the shuffles of a sum for everybody at every level.
template <int kCount, int kMask, int kLast, int kSize>
__device__ __forceinline__ void reduce_scatter(float (&values)[kSize], int lane) {
  static_assert((kCount & (kCount - 1)) == 0 && kCount <= kSize);
  if constexpr (kMask >= kLast && kMask > 0) {
    if constexpr (kCount > 1) {
      const bool upper = (lane & kMask) != 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        const float given = upper ? values[i] : values[i + kCount / 2];
        const float kept = upper ? values[i + kCount / 2] : values[i];
        values[i] = kept + shuffle_xor(given, kMask);
      }
      reduce_scatter<kCount / 2, kMask / 2, kLast>(values, lane);
    } else {
      values[0] += shuffle_xor(values[0], kMask);
      reduce_scatter<1, kMask / 2, kLast>(values, lane);
    }
  }
}

}  // namespace graft::cuda::scan
