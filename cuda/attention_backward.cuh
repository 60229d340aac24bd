#pragma once
// Backward attention on tensor cores. Scores are computed twice: once by the warp that owns the queries (dq), once,
// transposed, by the warp that owns the keys (dk, dv). Every result then has one owner, which sums in a fixed order,
// and nothing but row statistics passes between warps.

#include "cuda/attention_forward.cuh"

namespace graft::cuda::attention {

template <class Mma, int kHeadDim>
struct BackwardPlan {
  using T = Tile<Mma, kHeadDim>;
  static constexpr int kRowTiles = kHeadDim <= 32 ? 2 : 1;
  static constexpr int kRows = 16 * kRowTiles;  // queries or keys a warp owns
  static constexpr int kMaxWarps = 4;
  static constexpr int kColumnTiles = 2;  // others / 8 whose scores are in registers at a time
  static constexpr int kBlocksPerSm = kHeadDim <= 64 ? 3 : 1;
  static constexpr int kStage = T::kStride <= 256 ? 64 : 32;  // others of one stage in shared memory

  // Left factors stay in registers while they fit beside the sums and two blocks of scores.
  static constexpr int kFactor = 4 * kRowTiles * T::kSteps;
  static constexpr int kSum = kRowTiles * kHeadDim / 2;
  static constexpr int kScores = 2 * 4 * kRowTiles * kColumnTiles;
  static constexpr int kBudget = 136;
  static constexpr bool kKeepQuery = kSum + kScores + kFactor <= kBudget;
  static constexpr bool kKeepDy = kSum + kScores + 2 * kFactor <= kBudget;
  static constexpr bool kKeepKey = 2 * kSum + kScores + kFactor <= kBudget;
  static constexpr bool kKeepValue = 2 * kSum + kScores + 2 * kFactor <= kBudget;

  static std::size_t fused_bytes(int tokens) {
    const auto rows = static_cast<std::size_t>((tokens + kRows - 1) / kRows * kRows);
    return rows * (4 * T::kStride + 2 * sizeof(float));
  }
  static std::size_t tiled_bytes(int warps) {
    return static_cast<std::size_t>(2 * warps * kRows + 4 * kStage) * T::kStride + 4 * kStage * sizeof(float);
  }
};

/// Where one head of one batch entry lies in every array.
template <class Storage>
struct HeadPointers {
  const Storage *q, *k, *v, *dy, *y;
  const float* lse;
  float* delta;
  std::int64_t gradient;  // element of dqkv that belongs to column 0 of the head in row 0
  std::int64_t width;     // elements of a row of y

  __device__ HeadPointers(const Params& p, int sequence) {
    const int batch = sequence / p.heads;
    const int head = sequence % p.heads;
    const std::int64_t token = static_cast<std::int64_t>(batch) * p.tokens;
    width = static_cast<std::int64_t>(p.heads) * p.head_dim;
    gradient = token * p.row + head * p.head_stride;
    q = static_cast<const Storage*>(p.qkv) + gradient + p.q_offset;
    k = static_cast<const Storage*>(p.qkv) + gradient + p.k_offset;
    v = static_cast<const Storage*>(p.qkv) + gradient + p.v_offset;
    dy = static_cast<const Storage*>(p.dy) + token * width + head * p.head_dim;
    y = static_cast<const Storage*>(p.y) + token * width + head * p.head_dim;
    lse = p.lse + static_cast<std::int64_t>(sequence) * p.tokens;
    delta = p.delta + static_cast<std::int64_t>(sequence) * p.tokens;
  }
};

/// <a, b> of 16 bytes of two rows; a is rounded as the products will see it.
template <class Mma>
__device__ float chunk_dot(const uint4& a, const uint4& b, float sum) {
  using Storage = typename Mma::Storage;
  const auto* x = reinterpret_cast<const Storage*>(&a);
  const auto* y = reinterpret_cast<const Storage*>(&b);
#pragma unroll
  for (int e = 0; e < static_cast<int>(16 / sizeof(Storage)); ++e) {
    sum = fmaf(Mma::rounded(static_cast<float>(x[e])), static_cast<float>(y[e]), sum);
  }
  return sum;
}

/// delta[m][half] = <dy, y> of query first + 16 m + 8 half + lane / 4, known to all four lanes; 0 past the sequence.
/// Reads global memory, so that it can overlap with copies in flight.
template <class Mma, int kHeadDim, int kRowTiles>
__device__ void row_delta(float (&delta)[kRowTiles][2], const HeadPointers<typename Mma::Storage>& at, int first,
                          const Params& p) {
  using T = Tile<Mma, kHeadDim>;
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + 16 * m + 8 * half + (lane >> 2);
      const auto* dy = at.dy + row * at.width;
      const auto* y = at.y + row * at.width;
      const int columns = row < p.tokens ? p.head_dim : 0;
      float sum = 0.f;
      if (p.vector) {
#pragma unroll
        for (int c = 0; c < (T::kChunks + 3) / 4; ++c) {
          const int column = (4 * c + (lane & 3)) * T::kVector;
          uint4 a = make_uint4(0, 0, 0, 0);
          uint4 b = make_uint4(0, 0, 0, 0);
          if (column < columns) {
            a = *reinterpret_cast<const uint4*>(dy + column);
            b = *reinterpret_cast<const uint4*>(y + column);
          }
          sum = chunk_dot<Mma>(a, b, sum);
        }
      } else {
#pragma unroll 1
        for (int column = lane & 3; column < columns; column += 4) {
          sum = fmaf(Mma::rounded(static_cast<float>(dy[column])), static_cast<float>(y[column]), sum);
        }
      }
      delta[m][half] = sum;
    }
  }
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    delta[m][0] = quad_sum(delta[m][0]);
    delta[m][1] = quad_sum(delta[m][1]);
  }
}

/// Adds to dq what the keys [key, key + 8 * kColumnTiles), in rows `row` on of the tiles, contribute.
template <class Plan, class Mma, int kHeadDim>
__device__ void add_to_queries(float (&dq)[Plan::kRowTiles][kHeadDim / 8][4],
                               const LeftFactor<Mma, kHeadDim, Plan::kRowTiles, Plan::kKeepQuery>& query,
                               const LeftFactor<Mma, kHeadDim, Plan::kRowTiles, Plan::kKeepDy>& dy,
                               const float (&exponent)[Plan::kRowTiles][2], const float (&delta)[Plan::kRowTiles][2],
                               const unsigned char* keys, const unsigned char* values, int row, int key, int first,
                               float to_exponent) {
  float s[Plan::kRowTiles][Plan::kColumnTiles][4];   // scores, weights, then their gradients
  float dp[Plan::kRowTiles][Plan::kColumnTiles][4];  // <dy, v>
  multiply_transposed(s, query, keys, row);
  multiply_transposed(dp, dy, values, row);
  if (key + 8 * Plan::kColumnTiles - 1 > first) hide_later_keys<true>(s, first, key);
#pragma unroll
  for (int m = 0; m < Plan::kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < Plan::kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = power_of_two(fmaf(s[m][n][i], to_exponent, -exponent[m][i >> 1]));
        s[m][n][i] = p * (dp[m][n][i] - delta[m][i >> 1]);
      }
    }
  }
  multiply_add<Mma, kHeadDim>(dq, s, keys, row);
}

/// Adds to dk and dv what the queries [token, token + 8 * kColumnTiles), in rows `row` on of the tiles, contribute.
/// `exponent` and `delta` hold log2(e) lse and delta of the tiles' rows.
template <class Plan, class Mma, int kHeadDim>
__device__ void add_to_keys(float (&dk)[Plan::kRowTiles][kHeadDim / 8][4],
                            float (&dv)[Plan::kRowTiles][kHeadDim / 8][4],
                            const LeftFactor<Mma, kHeadDim, Plan::kRowTiles, Plan::kKeepKey>& key,
                            const LeftFactor<Mma, kHeadDim, Plan::kRowTiles, Plan::kKeepValue>& value,
                            const unsigned char* queries, const unsigned char* dy, const float* lse, const float* delta,
                            int row, int token, int first, float to_exponent) {
  const int lane = threadIdx.x & 31;
  float s[Plan::kRowTiles][Plan::kColumnTiles][4];   // [keys, queries]: scores, then weights
  float dp[Plan::kRowTiles][Plan::kColumnTiles][4];  // <v, dy>, then gradients of the scores
  multiply_transposed(s, key, queries, row);
  multiply_transposed(dp, value, dy, row);
  if (first + Plan::kRows - 1 > token) hide_later_keys<false>(s, first, token);
#pragma unroll
  for (int n = 0; n < Plan::kColumnTiles; ++n) {
    const int column = 8 * n + 2 * (lane & 3);
    const float2 exponents = *reinterpret_cast<const float2*>(lse + row + column);
    const float2 deltas = *reinterpret_cast<const float2*>(delta + row + column);
#pragma unroll
    for (int m = 0; m < Plan::kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float exponent = (i & 1 ? exponents.y : exponents.x) * kLog2E;
        const float p = power_of_two(fmaf(s[m][n][i], to_exponent, -exponent));
        s[m][n][i] = p;
        dp[m][n][i] = p * (dp[m][n][i] - (i & 1 ? deltas.y : deltas.x));
      }
    }
  }
  multiply_add<Mma, kHeadDim>(dv, s, dy, row);
  multiply_add<Mma, kHeadDim>(dk, dp, queries, row);
}

/// Stores or adds factor * gradient of rows [first, first + 16 * kRowTiles) of one of q, k and v.
template <class Mma, int kHeadDim, int kRowTiles>
__device__ void store_gradient(const float (&gradient)[kRowTiles][kHeadDim / 8][4], float factor, std::int64_t head,
                               int offset, int first, const Params& p) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    const int row = first + 16 * m;
    const std::int64_t at = head + offset + static_cast<std::int64_t>(row) * p.row;
    if (!Mma::kRounds && p.wide) {
      store_rows(static_cast<float*>(p.dqkv) + at, p.row, gradient[m], factor, factor, p.tokens - row, p, p.accumulate);
    } else {
      store_rows(static_cast<typename Mma::Storage*>(p.dqkv) + at, p.row, gradient[m], factor, factor, p.tokens - row,
                 p, p.accumulate);
    }
  }
}

/// Short sequences: one thread block a head, everything it reads in shared memory, all three gradients at once. A warp
/// takes the same row block as queries and as keys: few keys to see means many queries that see it, so warps are even.
template <class Mma, int kHeadDim>
__global__ void __launch_bounds__(128, BackwardPlan<Mma, kHeadDim>::kBlocksPerSm)
    backward_fused_kernel(const Params p) {
  using Plan = BackwardPlan<Mma, kHeadDim>;
  using T = typename Plan::T;
  constexpr int kRowTiles = Plan::kRowTiles;
  constexpr int kBlock = 8 * Plan::kColumnTiles;
  extern __shared__ __align__(128) unsigned char shared[];

  const int warp = warp_index();
  const int lane = threadIdx.x & 31;
  const int warps = blockDim.x >> 5;
  const int blocks = (p.tokens + Plan::kRows - 1) / Plan::kRows;
  const int rows = blocks * Plan::kRows;
  const HeadPointers<typename Mma::Storage> at(p, blockIdx.x);
  const int width = static_cast<int>(at.width);
  unsigned char* queries = shared;
  unsigned char* keys = queries + rows * T::kStride;
  unsigned char* values = keys + rows * T::kStride;
  unsigned char* dy = values + rows * T::kStride;
  auto* lse = reinterpret_cast<float*>(dy + rows * T::kStride);
  float* delta = lse + rows;

  T::load(queries, at.q, p.row, rows, p.tokens, p);
  T::load(keys, at.k, p.row, rows, p.tokens, p);
  T::load(values, at.v, p.row, rows, p.tokens, p);
  T::load(dy, at.dy, width, rows, p.tokens, p);
  for (int i = threadIdx.x; i < rows; i += blockDim.x) lse[i] = i < p.tokens ? at.lse[i] : 0.f;
  copy_commit();
  for (int block = warp; block < blocks; block += warps) {
    float own[kRowTiles][2];
    row_delta<Mma, kHeadDim>(own, at, block * Plan::kRows, p);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if ((lane & 3) == 0) delta[block * Plan::kRows + 16 * m + 8 * half + (lane >> 2)] = own[m][half];
      }
    }
  }
  copy_wait<0>();
  T::round(queries, rows);
  T::round(keys, rows);
  T::round(values, rows);
  T::round(dy, rows);
  __syncthreads();

  const float to_exponent = p.scale * kLog2E;
  for (int round = 0; round * warps < blocks; ++round) {
    const int block = round * warps + (round & 1 ? warps - 1 - warp : warp);
    if (block >= blocks) continue;
    const int first = block * Plan::kRows;
    {
      const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepQuery> query(queries, first);
      const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepDy> gradient(dy, first);
      float exponent[kRowTiles][2], own_delta[kRowTiles][2];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first + 16 * m + 8 * half + (lane >> 2);
          exponent[m][half] = lse[row] * kLog2E;
          own_delta[m][half] = delta[row];
        }
      }
      float dq[kRowTiles][kHeadDim / 8][4] = {};
      for (int key = 0; key < first + Plan::kRows; key += kBlock) {
        add_to_queries<Plan, Mma, kHeadDim>(dq, query, gradient, exponent, own_delta, keys, values, key, key, first,
                                            to_exponent);
      }
      store_gradient<Mma, kHeadDim>(dq, p.scale, at.gradient, p.q_offset, first, p);
    }
    {
      const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepKey> key(keys, first);
      const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepValue> value(values, first);
      float dk[kRowTiles][kHeadDim / 8][4] = {};
      float dv[kRowTiles][kHeadDim / 8][4] = {};
      for (int token = first; token < rows; token += kBlock) {
        add_to_keys<Plan, Mma, kHeadDim>(dk, dv, key, value, queries, dy, lse, delta, token, token, first, to_exponent);
      }
      store_gradient<Mma, kHeadDim>(dk, p.scale, at.gradient, p.k_offset, first, p);
      store_gradient<Mma, kHeadDim>(dv, 1.f, at.gradient, p.v_offset, first, p);
    }
  }
}

/// Long sequences, first kernel: a thread block owns queries and walks over the keys they see. Leaves delta in global
/// memory for the second.
template <class Mma, int kHeadDim>
__global__ void __launch_bounds__(128, BackwardPlan<Mma, kHeadDim>::kBlocksPerSm)
    backward_queries_kernel(const Params p) {
  using Plan = BackwardPlan<Mma, kHeadDim>;
  using T = typename Plan::T;
  constexpr int kRowTiles = Plan::kRowTiles;
  constexpr int kBlock = 8 * Plan::kColumnTiles;
  extern __shared__ __align__(128) unsigned char shared[];

  const int warp = warp_index();
  const int lane = threadIdx.x & 31;
  const int block_rows = (blockDim.x >> 5) * Plan::kRows;
  const int block_first = (p.tiles - 1 - static_cast<int>(blockIdx.x) % p.tiles) * block_rows;  // longest first
  const HeadPointers<typename Mma::Storage> at(p, blockIdx.x / p.tiles);
  unsigned char* queries = shared;
  unsigned char* dy = queries + block_rows * T::kStride;
  unsigned char* keys = dy + block_rows * T::kStride;            // [2 stages][kStage]
  unsigned char* values = keys + 2 * Plan::kStage * T::kStride;  // [2 stages][kStage]
  const auto load_stage = [&](int tile) {
    const std::int64_t row = static_cast<std::int64_t>(tile) * Plan::kStage * p.row;
    const int to = (tile & 1) * Plan::kStage * T::kStride;
    const int valid = p.tokens - tile * Plan::kStage;
    T::load(keys + to, at.k + row, p.row, Plan::kStage, valid, p);
    T::load(values + to, at.v + row, p.row, Plan::kStage, valid, p);
  };

  const int key_tiles = (min(p.tokens, block_first + block_rows) + Plan::kStage - 1) / Plan::kStage;
  T::load(queries, at.q + static_cast<std::int64_t>(block_first) * p.row, p.row, block_rows, p.tokens - block_first, p);
  T::load(dy, at.dy + block_first * at.width, static_cast<int>(at.width), block_rows, p.tokens - block_first, p);
  load_stage(0);
  copy_commit();
  if (key_tiles > 1) load_stage(1);
  copy_commit();

  const int first = block_first + warp * Plan::kRows;
  const int last = first < p.tokens ? min(first + Plan::kRows, p.tokens) - 1 : -1;
  float exponent[kRowTiles][2], delta[kRowTiles][2];
  row_delta<Mma, kHeadDim>(delta, at, first, p);
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + 16 * m + 8 * half + (lane >> 2);
      exponent[m][half] = row < p.tokens ? at.lse[row] * kLog2E : 0.f;
      if ((lane & 3) == 0 && row < p.tokens) at.delta[row] = delta[m][half];
    }
  }
  copy_wait<1>();
  T::round(queries, block_rows);
  T::round(dy, block_rows);
  T::round(keys, Plan::kStage);
  T::round(values, Plan::kStage);
  __syncthreads();

  const float to_exponent = p.scale * kLog2E;
  const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepQuery> query(queries, warp * Plan::kRows);
  const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepDy> gradient(dy, warp * Plan::kRows);
  float dq[kRowTiles][kHeadDim / 8][4] = {};
  for (int tile = 0; tile < key_tiles; ++tile) {
    const int stage = (tile & 1) * Plan::kStage * T::kStride;
    for (int row = 0; row < Plan::kStage; row += kBlock) {
      const int key = tile * Plan::kStage + row;
      if (key > last) break;
      add_to_queries<Plan, Mma, kHeadDim>(dq, query, gradient, exponent, delta, keys + stage, values + stage, row, key,
                                          first, to_exponent);
    }
    if (tile + 1 < key_tiles) {
      __syncthreads();  // everyone is done with this stage
      if (tile + 2 < key_tiles) load_stage(tile + 2);
      copy_commit();
      copy_wait<1>();
      const int next = ((tile + 1) & 1) * Plan::kStage * T::kStride;
      T::round(keys + next, Plan::kStage);
      T::round(values + next, Plan::kStage);
      __syncthreads();
    }
  }
  store_gradient<Mma, kHeadDim>(dq, p.scale, at.gradient, p.q_offset, first, p);
}

/// Long sequences, second kernel: a thread block owns keys and walks over the queries that see them.
template <class Mma, int kHeadDim>
__global__ void __launch_bounds__(128, BackwardPlan<Mma, kHeadDim>::kBlocksPerSm) backward_keys_kernel(const Params p) {
  using Plan = BackwardPlan<Mma, kHeadDim>;
  using T = typename Plan::T;
  constexpr int kRowTiles = Plan::kRowTiles;
  constexpr int kBlock = 8 * Plan::kColumnTiles;
  extern __shared__ __align__(128) unsigned char shared[];

  const int warp = warp_index();
  const int block_rows = (blockDim.x >> 5) * Plan::kRows;
  const int block_first = static_cast<int>(blockIdx.x) % p.tiles * block_rows;  // the first keys have most queries
  const HeadPointers<typename Mma::Storage> at(p, blockIdx.x / p.tiles);
  unsigned char* keys = shared;
  unsigned char* values = keys + block_rows * T::kStride;
  unsigned char* queries = values + block_rows * T::kStride;  // [2 stages][kStage]
  unsigned char* dy = queries + 2 * Plan::kStage * T::kStride;
  auto* lse = reinterpret_cast<float*>(dy + 2 * Plan::kStage * T::kStride);
  float* delta = lse + 2 * Plan::kStage;
  const auto load_stage = [&](int tile) {
    const int first = tile * Plan::kStage;
    const int to = tile & 1;
    const int valid = p.tokens - first;
    T::load(queries + to * Plan::kStage * T::kStride, at.q + static_cast<std::int64_t>(first) * p.row, p.row,
            Plan::kStage, valid, p);
    T::load(dy + to * Plan::kStage * T::kStride, at.dy + first * at.width, static_cast<int>(at.width), Plan::kStage,
            valid, p);
    for (int i = threadIdx.x; i < Plan::kStage; i += blockDim.x) {
      const int row = min(first + i, p.tokens - 1);
      copy_async_4(lse + to * Plan::kStage + i, at.lse + row, i < valid);
      copy_async_4(delta + to * Plan::kStage + i, at.delta + row, i < valid);
    }
  };

  const int first_tile = block_first / Plan::kStage;
  const int tiles = (p.tokens + Plan::kStage - 1) / Plan::kStage;
  T::load(keys, at.k + static_cast<std::int64_t>(block_first) * p.row, p.row, block_rows, p.tokens - block_first, p);
  T::load(values, at.v + static_cast<std::int64_t>(block_first) * p.row, p.row, block_rows, p.tokens - block_first, p);
  load_stage(first_tile);
  copy_commit();
  if (first_tile + 1 < tiles) load_stage(first_tile + 1);
  copy_commit();
  copy_wait<1>();
  T::round(keys, block_rows);
  T::round(values, block_rows);
  T::round(queries + (first_tile & 1) * Plan::kStage * T::kStride, Plan::kStage);
  T::round(dy + (first_tile & 1) * Plan::kStage * T::kStride, Plan::kStage);
  __syncthreads();

  const int first = block_first + warp * Plan::kRows;
  const float to_exponent = p.scale * kLog2E;
  const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepKey> key(keys, warp * Plan::kRows);
  const LeftFactor<Mma, kHeadDim, kRowTiles, Plan::kKeepValue> value(values, warp * Plan::kRows);
  float dk[kRowTiles][kHeadDim / 8][4] = {};
  float dv[kRowTiles][kHeadDim / 8][4] = {};
  for (int tile = first_tile; tile < tiles; ++tile) {
    const int stage = tile & 1;
    const int at_stage = stage * Plan::kStage * T::kStride;
    for (int row = 0; row < Plan::kStage; row += kBlock) {
      const int token = tile * Plan::kStage + row;
      if (token + kBlock <= first) continue;  // none of these queries sees the warp's keys
      if (token >= p.tokens) break;
      add_to_keys<Plan, Mma, kHeadDim>(dk, dv, key, value, queries + at_stage, dy + at_stage,
                                       lse + stage * Plan::kStage, delta + stage * Plan::kStage, row, token, first,
                                       to_exponent);
    }
    if (tile + 1 < tiles) {
      __syncthreads();  // everyone is done with this stage
      if (tile + 2 < tiles) load_stage(tile + 2);
      copy_commit();
      copy_wait<1>();
      const int next = (stage ^ 1) * Plan::kStage * T::kStride;
      T::round(queries + next, Plan::kStage);
      T::round(dy + next, Plan::kStage);
      __syncthreads();
    }
  }
  store_gradient<Mma, kHeadDim>(dk, p.scale, at.gradient, p.k_offset, first, p);
  store_gradient<Mma, kHeadDim>(dv, 1.f, at.gradient, p.v_offset, first, p);
}

template <class Mma, int kHeadDim>
bool launch_backward(cudaStream_t stream, Params p, int batch) {
  using Plan = BackwardPlan<Mma, kHeadDim>;
  const std::size_t limit = shared_limit();
  const std::int64_t sequences = std::int64_t{batch} * p.heads;
  if constexpr (kHeadDim <= 64) {
    // Up to two row blocks a warp, and two thread blocks of shared memory on a multiprocessor.
    const int blocks = (p.tokens + Plan::kRows - 1) / Plan::kRows;
    const std::size_t bytes = Plan::fused_bytes(p.tokens);
    if (blocks <= 2 * Plan::kMaxWarps && bytes <= limit / 2) {
      p.tiles = 1;
      const int warps = blocks <= Plan::kMaxWarps ? blocks : (blocks + 1) / 2;
      launch(backward_fused_kernel<Mma, kHeadDim>, stream, sequences, 32 * warps, bytes, p);
      return true;
    }
  }
  const Split split = split_rows(p.tokens, Plan::kRows, Plan::kMaxWarps);
  const std::size_t bytes = Plan::tiled_bytes(split.warps);
  if (bytes > limit) return false;
  p.tiles = split.tiles;
  launch(backward_queries_kernel<Mma, kHeadDim>, stream, sequences * p.tiles, 32 * split.warps, bytes, p);
  launch(backward_keys_kernel<Mma, kHeadDim>, stream, sequences * p.tiles, 32 * split.warps, bytes, p);
  return true;
}

}  // namespace graft::cuda::attention
