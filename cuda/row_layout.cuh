#pragma once

#include <cstdint>

#include "cuda/groups.cuh"
#include "cuda/reduce.cuh"

// Kernels that keep a row in registers: kLanes threads (a warp, or a block of 256) hold kVectors groups of four columns
// each, group v of lane l being columns 4 * (v * kLanes + l) ... + 3. With kAligned, groups are moved by one access and
// never straddle the end of a row; without it, element by element.

namespace graft::cuda {

inline constexpr int kWideLanes = 256;
inline constexpr int kWidestRow = kWideLanes * 8 * kGroup;

/// kNarrowThreads: threads of a block where a warp has a row.
template <int kLanes_, int kVectors_, bool kAligned_, int kNarrowThreads>
struct RowLayout {
  static constexpr int kLanes = kLanes_;
  static constexpr int kVectors = kVectors_;
  static constexpr bool kAligned = kAligned_;
  static constexpr int kThreads = kLanes == kWarp ? kNarrowThreads : kLanes;
  static constexpr int kRows = kThreads / kLanes;  // of a block at a time

  [[nodiscard]] __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  /// Which of the block's rows this thread works on.
  [[nodiscard]] __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / kLanes; }
  /// First column of group `v` of this thread.
  [[nodiscard]] __device__ __forceinline__ static int column(int v) { return (v * kLanes + lane()) * kGroup; }

  template <class T>
  __device__ __forceinline__ static void load(const T* from, int width, float (&to)[kVectors][kGroup]) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) load_group<kAligned>(from, column(v), width, to[v]);
  }

  /// The sum of one value a lane of the row; all lanes get it.
  [[nodiscard]] __device__ __forceinline__ static float sum(float value) {
    if constexpr (kLanes == kWarp) {
      return warp_sum(value);
    } else {
      return block_sum<kLanes>(value);
    }
  }

  /// to[column] = the sum over the block's kRows rows of what their threads hold. All threads of the block call it.
  __device__ __forceinline__ static void store_sum_of_rows(const float (&values)[kVectors][kGroup], float* to,
                                                           int width) {
    store_sums<1>(values, to, values, nullptr, width);
  }
  /// The same for two sums, of which `to_second` may be null.
  __device__ __forceinline__ static void store_sums_of_rows(const float (&first)[kVectors][kGroup], float* to_first,
                                                            const float (&second)[kVectors][kGroup], float* to_second,
                                                            int width) {
    store_sums<2>(first, to_first, second, to_second, width);
  }

 private:
  template <int kSums>
  __device__ __forceinline__ static void store_sums(const float (&first)[kVectors][kGroup], float* to_first,
                                                    const float (&second)[kVectors][kGroup], float* to_second,
                                                    int width) {
    if constexpr (kRows == 1) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        store_group<kAligned>(to_first, column(v), width, first[v]);
        if (kSums == 2 && to_second != nullptr) store_group<kAligned>(to_second, column(v), width, second[v]);
      }
    } else {
      constexpr int kSpan = kWarp * kGroup;  // columns of one group of all lanes
      static_assert(kThreads >= kSums * kSpan);
      __shared__ float4 parts[kRows][kSums][kWarp];
      const float* const flat = &parts[0][0][0].x;
      const int i = static_cast<int>(threadIdx.x);
      float* const to = i < kSpan ? to_first : to_second;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (v > 0) __syncthreads();
        parts[row()][0][lane()] = make_float4(first[v][0], first[v][1], first[v][2], first[v][3]);
        if constexpr (kSums == 2) {
          parts[row()][1][lane()] = make_float4(second[v][0], second[v][1], second[v][2], second[v][3]);
        }
        __syncthreads();
        const int mine = v * kSpan + i % kSpan;
        if (i < kSums * kSpan && mine < width && to != nullptr) {
          float total = 0.F;
#pragma unroll
          for (int part = 0; part < kRows; ++part) total += flat[part * kSums * kSpan + i];
          to[mine] = total;
        }
      }
    }
  }
};

/// Calls body(RowLayout<...>{}) for rows of `width` columns, at most kWidestRow. A warp takes rows of up to
/// `kWidestNarrow` columns, 512 or 1024.
template <int kNarrowThreads, int kWidestNarrow, class Body>
void with_row_layout(std::int64_t width, bool aligned, Body&& body) {
  if (!aligned) {
    if (width <= 512) return body(RowLayout<kWarp, 4, false, kNarrowThreads>{});
    return body(RowLayout<kWideLanes, 8, false, kNarrowThreads>{});
  }
  if (width <= 128) return body(RowLayout<kWarp, 1, true, kNarrowThreads>{});
  if (width <= 256) return body(RowLayout<kWarp, 2, true, kNarrowThreads>{});
  if (width <= 512) return body(RowLayout<kWarp, 4, true, kNarrowThreads>{});
  if (width <= 1024) {
    if constexpr (kWidestNarrow >= 1024) {
      return body(RowLayout<kWarp, 8, true, kNarrowThreads>{});
    } else {
      return body(RowLayout<kWideLanes, 1, true, kNarrowThreads>{});
    }
  }
  if (width <= 2048) return body(RowLayout<kWideLanes, 2, true, kNarrowThreads>{});
  return body(RowLayout<kWideLanes, 8, true, kNarrowThreads>{});
}

}  // namespace graft::cuda
