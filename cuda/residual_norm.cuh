#pragma once
// What the kernels of residual_norm share. Terms and their gradients may be float32 or bfloat16, each its own. Rows are
// fetched as raw words and converted when they are used: all loads of a row are under way before the first is waited
// for.

#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/row_layout.cuh"
#include "ops/residual_norm.h"

namespace graft::cuda::residual_norm {

static_assert(kResidualNormMaxWidth <= kWidestRow);

inline constexpr int kTerms = kResidualNormMaxTerms;
inline constexpr int kNorms = kResidualNormMaxNorms;

__device__ __forceinline__ void unpack_floats(const uint4& word, float (&to)[kGroup]) {
  to[0] = __uint_as_float(word.x);
  to[1] = __uint_as_float(word.y);
  to[2] = __uint_as_float(word.z);
  to[3] = __uint_as_float(word.w);
}
__device__ __forceinline__ void unpack_halves(const uint2& word, float (&to)[kGroup]) {
  to[0] = __uint_as_float(word.x << 16U);
  to[1] = __uint_as_float(word.x & 0xffff0000U);
  to[2] = __uint_as_float(word.y << 16U);
  to[3] = __uint_as_float(word.y & 0xffff0000U);
}

/// Four columns of a row of T as they lie in memory; floats where rows are read element by element.
template <class T, bool kAligned>
struct RawGroup {
  static constexpr bool kHalves = kAligned && std::is_same_v<T, bf16>;
  std::conditional_t<kHalves, uint2, uint4> word;

  __device__ __forceinline__ void fetch(const T* row, int column, int width) {
    word = {};
    if constexpr (kAligned) {
      if (column < width) word = *reinterpret_cast<const decltype(word)*>(row + column);
    } else {
      float values[kGroup];
      load_group<false>(row, column, width, values);
      word = {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
              __float_as_uint(values[3])};
    }
  }
  __device__ __forceinline__ void unpack(float (&to)[kGroup]) const {
    if constexpr (kHalves) {
      unpack_halves(word, to);
    } else {
      unpack_floats(word, to);
    }
  }
};

template <class T, class L>
using RawRow = RawGroup<T, L::kAligned>[L::kVectors];

template <class T, class L>
__device__ __forceinline__ void fetch_row(const T* row, int width, RawRow<T, L>& to) {
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) to[v].fetch(row, L::column(v), width);
}

/// A tensor that is read, and whether it is bfloat16 (float32 otherwise).
struct Source {
  const void* data;
  bool is_bf16;
};

/// A row of a Source.
template <class L>
struct RawAnyRow {
  RawGroup<float, L::kAligned> groups[L::kVectors];  // an aligned group of bfloat16 in x and y

  __device__ __forceinline__ void fetch(const Source& from, std::int64_t start, int width) {
    if (from.is_bf16) {
      RawRow<bf16, L> halves;
      fetch_row<bf16, L>(static_cast<const bf16*>(from.data) + start, width, halves);
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        groups[v].word.x = halves[v].word.x;
        groups[v].word.y = halves[v].word.y;
        if constexpr (!L::kAligned) {
          groups[v].word.z = halves[v].word.z;
          groups[v].word.w = halves[v].word.w;
        }
      }
    } else {
      fetch_row<float, L>(static_cast<const float*>(from.data) + start, width, groups);
    }
  }
  /// to += scale * row.
  __device__ __forceinline__ void add(const Source& from, float scale, float (&to)[L::kVectors][kGroup]) const {
    if (L::kAligned && from.is_bf16) {
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        float value[kGroup];
        unpack_halves({groups[v].word.x, groups[v].word.y}, value);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) to[v][j] += scale * value[j];
      }
    } else {
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        float value[kGroup];
        groups[v].unpack(value);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) to[v][j] += scale * value[j];
      }
    }
  }
};

template <class L, class T>
__device__ __forceinline__ void store_row(T* row, int width, const float (&from)[L::kVectors][kGroup]) {
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) store_group<L::kAligned>(row, L::column(v), width, from[v]);
}

[[nodiscard]] __device__ __forceinline__ float tanh_or_zero(const float* beta) {
  return beta == nullptr ? 0.F : tanhf(*beta);
}

/// Rows of up to kCount terms on their way.
template <class L, int kCount>
struct RawTerms {
  RawAnyRow<L> rows[kCount];

  /// Terms first ... first + kCount - 1, those of them that there are.
  __device__ __forceinline__ void fetch(const Source (&terms)[kTerms], int first, int count, std::int64_t start,
                                        int width) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (first + i < count) rows[i].fetch(terms[first + i], start, width);
    }
  }
  /// to += sum over them of factor(k) * term k.
  template <class Factor>
  __device__ __forceinline__ void add(const Source (&terms)[kTerms], int first, int count,
                                      float (&to)[L::kVectors][kGroup], Factor&& factor) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (first + i < count) rows[i].add(terms[first + i], factor(first + i), to);
    }
  }
};

/// Throws DeviceError, naming the kernel, for a tensor of another dtype.
[[nodiscard]] inline bool is_bf16(DType dtype, const char* kernel, const char* what) {
  if (dtype == DType::F32 || dtype == DType::BF16) return dtype == DType::BF16;
  throw DeviceError(std::string(kernel) + ": " + what + " is " + name_of(dtype) +
                    ", expected float32 or bfloat16 (float64 runs on the CPU only)");
}

[[nodiscard]] inline Source source_of(const ConstView& view, const char* kernel, const char* what) {
  if (!view) return {nullptr, false};
  return {view.data, is_bf16(view.dtype, kernel, what)};
}

}  // namespace graft::cuda::residual_norm
