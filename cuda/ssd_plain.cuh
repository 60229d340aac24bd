#pragma once
// Products of float32 for the kernels of the state-space dual that take every shape: blocks of 256 threads form
// [64, 64] products, 4 x 4 elements a thread, from factors that are given as functions of (row, k) and (k, column).

#include <cstdint>

#include "cuda/ssd.cuh"

namespace graft::cuda::ssd {

inline constexpr int kBlock = 64;          // rows and columns of a product
inline constexpr int kPlainThreads = 256;  // 16 x 16, thread (y, x) has rows 4 y ... 4 y + 3, columns 4 x ... 4 x + 3
inline constexpr int kDepth = 16;          // of a panel
inline constexpr int kPadded = kBlock + 1;
inline constexpr int kChunkBlocks = kChunk / kBlock;

struct Panels {
  float left[kDepth][kBlock + 4];
  float right[kDepth][kBlock + 4];
};
using Square = float[kBlock][kPadded];
using Elements = float[4][4];

[[nodiscard]] __device__ __forceinline__ int own_row(int r) { return static_cast<int>(threadIdx.x) / 16 * 4 + r; }
[[nodiscard]] __device__ __forceinline__ int own_column(int c) { return static_cast<int>(threadIdx.x) % 16 * 4 + c; }

/// sum(row, column) += sum over k < depth of left(row, k) right(k, column). kRows, kColumns: neighbours in memory
/// differ by a row of the left, a column of the right factor, and not by k. All threads of the block call it; what
/// they wrote to shared memory before is seen, and may be written again after.
template <bool kRows, bool kColumns, class Left, class Right>
__device__ __forceinline__ void multiply_add(Elements& sum, Panels& panels, int depth, Left left, Right right) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int k0 = 0; k0 < depth; k0 += kDepth) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kBlock * kDepth / kPlainThreads; ++i) {
      const int e = i * kPlainThreads + thread;
      {
        const int row = kRows ? e % kBlock : e / kDepth;
        const int k = kRows ? e / kBlock : e % kDepth;
        panels.left[k][row] = k0 + k < depth ? left(row, k0 + k) : 0.F;
      }
      {
        const int column = kColumns ? e % kBlock : e / kDepth;
        const int k = kColumns ? e / kBlock : e % kDepth;
        panels.right[k][column] = k0 + k < depth ? right(k0 + k, column) : 0.F;
      }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float a[4], b[4];
      load(&panels.left[k][own_row(0)], a);
      load(&panels.right[k][own_column(0)], b);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[r][c] += a[r] * b[c];
      }
    }
  }
  __syncthreads();
}

/// Calls body(r, c, row, column) for each of the thread's elements.
template <class Body>
__device__ __forceinline__ void for_each_element(Body body) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) body(r, c, own_row(r), own_column(c));
  }
}

/// One head of one chunk: its inputs by step and column, zeros outside.
template <class T>
struct ChunkReader {
  const Source<T>& in;
  std::int64_t row0;  // of the chunk
  int valid, head, group;

  __device__ ChunkReader(const Source<T>& source, std::int64_t sequence, int chunk, int its_head)
      : in(source),
        row0(sequence * source.tokens + std::int64_t{chunk} * kChunk),
        valid(source.valid(chunk)),
        head(its_head),
        group(its_head / source.together) {}

  [[nodiscard]] __device__ __forceinline__ float x(int step, int p) const {
    if (step >= valid || p >= in.head_dim) return 0.F;
    return to_float(in.x[(row0 + step) * in.row + std::int64_t{head} * in.head_dim + p]);
  }
  [[nodiscard]] __device__ __forceinline__ float b(int step, int n) const { return of_group(in.b, step, n); }
  [[nodiscard]] __device__ __forceinline__ float c(int step, int n) const { return of_group(in.c, step, n); }
  [[nodiscard]] __device__ __forceinline__ float z(int step, int p) const {
    if (step >= valid || p >= in.head_dim) return 0.F;
    return to_float(in.z[(row0 + step) * in.z_row + std::int64_t{head} * in.head_dim + p]);
  }
  /// The gradient of y before the gate.
  [[nodiscard]] __device__ __forceinline__ float dy(const T* from, int step, int p) const {
    if (from == nullptr || step >= valid || p >= in.head_dim) return 0.F;
    const float value = to_float(from[(row0 + step) * in.width + std::int64_t{head} * in.head_dim + p]);
    return in.z == nullptr ? value : value * silu(z(step, p));
  }
  /// A state [P, N].
  [[nodiscard]] __device__ __forceinline__ float state(const float* from, int p, int n) const {
    return p < in.head_dim && n < in.state ? from[std::int64_t{p} * in.state + n] : 0.F;
  }

 private:
  [[nodiscard]] __device__ __forceinline__ float of_group(const T* from, int step, int n) const {
    if (step >= valid || n >= in.state) return 0.F;
    return to_float(from[(row0 + step) * in.row + std::int64_t{group} * in.state + n]);
  }
};

/// exp(c_i - c_j) for i >= j, else 0; the power of a decay to the future would overflow.
[[nodiscard]] __device__ __forceinline__ float decay_between(const float* decay, int i, int j) {
  return i < j ? 0.F : fast_exp2(decay[i] - decay[j]);
}

/// y [64, 64] += rows [64 block, ...) of one head's y without skip and gate, channels from p0 on. `weights` is scratch.
template <class T>
__device__ __forceinline__ void add_outputs(Elements& y, Panels& panels, Square& weights, const ChunkReader<T>& at,
                                            const float* dt, const float* decay, const float* state, int block,
                                            int p0) {
  const int row0 = block * kBlock;
  if (state != nullptr) {
    multiply_add<false, false>(
        y, panels, at.in.state, [&](int row, int k) { return at.c(row0 + row, k); },
        [&](int k, int column) { return at.state(state, p0 + column, k); });
    for_each_element([&](int r, int c, int row, int) { y[r][c] *= fast_exp2(decay[row0 + row]); });
  }
  for (int other = 0; other <= block; ++other) {
    const int column0 = other * kBlock;
    Elements key = {};
    multiply_add<false, false>(
        key, panels, at.in.state, [&](int row, int k) { return at.c(row0 + row, k); },
        [&](int k, int column) { return at.b(column0 + column, k); });
    for_each_element([&](int r, int c, int row, int column) {
      // Chosen, not multiplied by 0: what is not finite must not reach earlier steps.
      const int i = row0 + row, j = column0 + column;
      weights[row][column] = i < j ? 0.F : key[r][c] * decay_between(decay, i, j) * dt[j];
    });
    multiply_add<false, true>(
        y, panels, kBlock, [&](int row, int k) { return weights[row][k]; },
        [&](int k, int column) { return at.x(column0 + k, p0 + column); });
  }
}

}  // namespace graft::cuda::ssd
