#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "engine/dtype.h"

namespace graft::cuda {

/// Device type of DType::BF16; the host's graft::bfloat16 has the same layout.
using bf16 = __nv_bfloat16;

/// Elements of T in one 16-byte access.
template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

[[nodiscard]] __device__ __forceinline__ float to_float(float value) { return value; }
[[nodiscard]] __device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }

/// Rounds to nearest even.
template <class T>
[[nodiscard]] __device__ __forceinline__ T from_float(float value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

/// Whether 16-byte accesses at `pointer` are allowed. An empty pointer counts as aligned.
[[nodiscard]] inline bool is_aligned16(const void* pointer) {
  return (reinterpret_cast<std::uintptr_t>(pointer) & 15U) == 0;
}

namespace detail {
template <int kBytes>
struct WordOf;
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = std::uint32_t;
};
template <>
struct WordOf<2> {
  using type = std::uint16_t;
};

/// How N elements of T are moved: as few accesses of at most 16 bytes as there can be.
template <class T, int N>
struct Access {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T)) < 16 ? N * static_cast<int>(sizeof(T)) : 16;
  static constexpr int kElements = kBytes / static_cast<int>(sizeof(T));  // of one access
  static_assert(N % kElements == 0);
  using Word = typename WordOf<kBytes>::type;
};
}  // namespace detail

/// Reads N consecutive elements as floats. `from` is aligned to min(16, N * sizeof(T)) bytes.
///   float v[8];
///   load(row + column, v);
template <class T, int N>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
  using A = detail::Access<T, N>;
#pragma unroll
  for (int i = 0; i < N; i += A::kElements) {
    const typename A::Word word = *reinterpret_cast<const typename A::Word*>(from + i);
    const T* values = reinterpret_cast<const T*>(&word);
#pragma unroll
    for (int j = 0; j < A::kElements; ++j) to[i + j] = to_float(values[j]);
  }
}

/// Writes N floats as consecutive elements of T, with the alignment that load() asks for.
template <class T, int N>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  using A = detail::Access<T, N>;
#pragma unroll
  for (int i = 0; i < N; i += A::kElements) {
    typename A::Word word;
    if constexpr (std::is_same_v<T, bf16> && A::kElements % 2 == 0) {
      auto* pairs = reinterpret_cast<__nv_bfloat162*>(&word);  // one conversion instruction a pair
#pragma unroll
      for (int j = 0; j < A::kElements / 2; ++j) {
        pairs[j] = __floats2bfloat162_rn(from[i + 2 * j], from[i + 2 * j + 1]);
      }
    } else {
      T* values = reinterpret_cast<T*>(&word);
#pragma unroll
      for (int j = 0; j < A::kElements; ++j) values[j] = from_float<T>(from[i + j]);
    }
    *reinterpret_cast<typename A::Word*>(to + i) = word;
  }
}

}  // namespace graft::cuda
