#pragma once
// Forward attention on tensor cores: a thread block takes a tile of queries of one head, each warp 32 of them, and
// walks over the tiles of keys they may see while the next tile is on its way.

#include "cuda/attention_tile.cuh"
#include "cuda/check.h"
#include "cuda/exp2.cuh"

namespace graft::cuda::attention {

inline constexpr float kLn2 = 0.6931471805599453f;

template <class Mma, int kHeadDim>
struct ForwardPlan {
  using T = Tile<Mma, kHeadDim>;
  static constexpr int kRowTiles = 2;
  static constexpr int kRows = 16 * kRowTiles;  // queries a warp
  static constexpr int kMaxWarps = 4;
  static constexpr int kBlocksPerSm = T::kStride <= 80 ? 4 : T::kStride <= 144 ? 3 : T::kStride <= 272 ? 2 : 1;
  static constexpr int kKeys = T::kStride <= 256 ? 64 : 32;  // keys of one stage in shared memory
  static constexpr int kColumnTiles = 4;                     // keys / 8 whose scores are in registers at a time
  static constexpr bool kKeep = kRowTiles * T::kSteps * 4 <= 32 || (kHeadDim <= 64 && kRowTiles * T::kSteps * 4 <= 64);

  static std::size_t shared_bytes(int warps) {
    return static_cast<std::size_t>(warps * kRows + 4 * kKeys) * T::kStride;
  }
};

template <class Mma, int kHeadDim>
__global__ void __launch_bounds__(128, ForwardPlan<Mma, kHeadDim>::kBlocksPerSm) forward_kernel(const Params p) {
  using Plan = ForwardPlan<Mma, kHeadDim>;
  using T = typename Plan::T;
  using Storage = typename Mma::Storage;
  constexpr int kRowTiles = Plan::kRowTiles;
  constexpr int kColumnTiles = Plan::kColumnTiles;
  constexpr int kBlock = 8 * kColumnTiles;
  extern __shared__ __align__(128) unsigned char shared[];

  const int warp = warp_index();
  const int lane = threadIdx.x & 31;
  const int block_rows = (blockDim.x >> 5) * Plan::kRows;
  const int sequence = blockIdx.x / p.tiles;
  // The longest rows first: what is left at the end of the grid is short.
  const int block_first = (p.tiles - 1 - static_cast<int>(blockIdx.x) % p.tiles) * block_rows;
  const int batch = sequence / p.heads;
  const int head = sequence % p.heads;
  const Storage* rows =
      static_cast<const Storage*>(p.qkv) + static_cast<std::int64_t>(batch) * p.tokens * p.row + head * p.head_stride;

  unsigned char* queries = shared;
  unsigned char* keys = queries + block_rows * T::kStride;      // [2 stages][kKeys]
  unsigned char* values = keys + 2 * Plan::kKeys * T::kStride;  // [2 stages][kKeys]
  const auto load_stage = [&](int tile) {
    const std::int64_t first = static_cast<std::int64_t>(tile) * Plan::kKeys;
    const int at = (tile & 1) * Plan::kKeys * T::kStride;
    const int valid = p.tokens - tile * Plan::kKeys;
    T::load(keys + at, rows + p.k_offset + first * p.row, p.row, Plan::kKeys, valid, p);
    T::load(values + at, rows + p.v_offset + first * p.row, p.row, Plan::kKeys, valid, p);
  };

  const int key_end = min(p.tokens, block_first + block_rows);
  const int key_tiles = (key_end + Plan::kKeys - 1) / Plan::kKeys;
  T::load(queries, rows + p.q_offset + static_cast<std::int64_t>(block_first) * p.row, p.row, block_rows,
          p.tokens - block_first, p);
  load_stage(0);
  copy_commit();
  if (key_tiles > 1) load_stage(1);
  copy_commit();
  copy_wait<1>();
  T::round(queries, block_rows);
  T::round(keys, Plan::kKeys);
  T::round(values, Plan::kKeys);
  __syncthreads();

  const int first = block_first + warp * Plan::kRows;       // this warp's first query
  const int last = min(first + Plan::kRows, p.tokens) - 1;  // below `first`: none
  const float to_exponent = p.scale * kLog2E;
  const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeep> query(queries, warp * Plan::kRows);
  float y[kRowTiles][kHeadDim / 8][4] = {};
  float maximum[kRowTiles][2];
  float sum[kRowTiles][2] = {};  // of this lane's columns
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) maximum[m][0] = maximum[m][1] = -INFINITY;

  for (int tile = 0; tile < key_tiles; ++tile) {
    const int at = (tile & 1) * Plan::kKeys * T::kStride;
    for (int block = 0; block < Plan::kKeys; block += kBlock) {
      const int key = tile * Plan::kKeys + block;
      if (first >= p.tokens || key > last) break;
      float s[kRowTiles][kColumnTiles][4];  // scores, then weights
      multiply_transposed(s, query, keys + at, block);
      if (key + kBlock - 1 > first) hide_later_keys<true>(s, first, key);
        // Key 0 is in every row's first block, so the maximum is finite from here on.
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float largest = s[m][0][2 * half];
#pragma unroll
          for (int n = 0; n < kColumnTiles; ++n) {
            largest = fmaxf(largest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
          }
          largest = fmaxf(maximum[m][half], quad_max(largest));
          const float shrink = power_of_two((maximum[m][half] - largest) * to_exponent);
          maximum[m][half] = largest;
          const float offset = largest * to_exponent;
          float part = 0.f;
#pragma unroll
          for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
              s[m][n][i] = power_of_two(fmaf(s[m][n][i], to_exponent, -offset));
              part += s[m][n][i];
            }
          }
          sum[m][half] = fmaf(sum[m][half], shrink, part);
#pragma unroll
          for (int n = 0; n < kHeadDim / 8; ++n) {
            y[m][n][2 * half] *= shrink;
            y[m][n][2 * half + 1] *= shrink;
          }
        }
      }
      multiply_add<Mma, kHeadDim>(y, s, values + at, block);
    }
    if (tile + 1 < key_tiles) {
      __syncthreads();  // everyone is done with this stage
      if (tile + 2 < key_tiles) load_stage(tile + 2);
      copy_commit();
      copy_wait<1>();
      const int next = ((tile + 1) & 1) * Plan::kKeys * T::kStride;
      T::round(keys + next, Plan::kKeys);
      T::round(values + next, Plan::kKeys);
      __syncthreads();
    }
  }

  const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.head_dim;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    const float total[2] = {quad_sum(sum[m][0]), quad_sum(sum[m][1])};
    const int row = first + 16 * m;
    auto* to =
        static_cast<Storage*>(p.y) + (static_cast<std::int64_t>(batch) * p.tokens + row) * width + head * p.head_dim;
    store_rows(to, width, y[m], 1.f / total[0], 1.f / total[1], p.tokens - row, p, false);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = row + (lane >> 2) + 8 * half;
      if ((lane & 3) == 0 && token < p.tokens) {
        p.lse[static_cast<std::int64_t>(sequence) * p.tokens + token] =
            fmaf(maximum[m][half], p.scale, logf(total[half]));
      }
    }
  }
}

inline std::size_t shared_limit() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<std::size_t>(bytes);
}

template <class Kernel>
void launch(Kernel kernel, cudaStream_t stream, std::int64_t blocks, int threads, std::size_t bytes, const Params& p) {
  // For every launch, since it counts for one device only; a host call, so it may be made during capture.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), bytes, stream>>>(p);
  check(cudaGetLastError());
}

/// Splits a head's row blocks evenly over thread blocks of at most `max_warps` warps.
struct Split {
  int tiles;
  int warps;
};
inline Split split_rows(int tokens, int rows_per_warp, int max_warps) {
  const int blocks = (tokens + rows_per_warp - 1) / rows_per_warp;
  const int tiles = (blocks + max_warps - 1) / max_warps;
  return {tiles, (blocks + tiles - 1) / tiles};
}

template <class Mma, int kHeadDim>
bool launch_forward(cudaStream_t stream, Params p, int batch) {
  using Plan = ForwardPlan<Mma, kHeadDim>;
  const Split split = split_rows(p.tokens, Plan::kRows, Plan::kMaxWarps);
  const std::size_t bytes = Plan::shared_bytes(split.warps);
  if (bytes > shared_limit()) return false;
  p.tiles = split.tiles;
  launch(forward_kernel<Mma, kHeadDim>, stream, std::int64_t{batch} * p.heads * p.tiles, 32 * split.warps, bytes, p);
  return true;
}

}  // namespace graft::cuda::attention
