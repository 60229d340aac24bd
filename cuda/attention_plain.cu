// Attention in plain float32 arithmetic: the fp32 mode, head dims beyond 128, and devices whose thread blocks have too
// little shared memory for the tensor-core kernels. The same tiles and the same two backward passes as those, with
// rows as float32 in shared memory: thread (r, c) of a 16 x 8 grid holds rows r and r + 16, columns c + 8 j of the
// scores, and columns 4 (c + 8 i) to 4 (c + 8 i) + 3 of the results.

#include "cuda/attention_forward.cuh"

namespace graft::cuda::attention {
namespace {

constexpr int kThreads = 128;

template <int kHeadDim>
struct PlainPlan {
  static constexpr int kTile = kHeadDim <= 128 ? 32 : 16;  // queries and keys of a tile
  static constexpr int kRows = kTile / 16;                 // of a thread
  static constexpr int kKeys = kTile / 8;
  static constexpr int kGroups = kHeadDim / 32;    // groups of four result columns of a thread
  static constexpr int kStride = kHeadDim + 4;     // floats; 4 rows of queries or 8 of keys meet no bank twice
  static constexpr int kWeightStride = kTile + 4;  // floats

  static constexpr std::size_t shared_bytes(int tiles, int weights) {
    return sizeof(float) * kTile * static_cast<std::size_t>(tiles * kStride + weights * kWeightStride);
  }
};

__device__ float4 four(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ float4 four(const __nv_bfloat16* from) {
  return make_float4(__bfloat162float(from[0]), __bfloat162float(from[1]), __bfloat162float(from[2]),
                     __bfloat162float(from[3]));
}

/// Columns [column, column + 4) of a row of a head, zeros past the head.
template <class Storage>
__device__ float4 read_four(const Storage* row, int column, const Params& p) {
  if (column + 4 <= p.head_dim && p.vector) return four(row + column);
  float x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = column + i < p.head_dim ? static_cast<float>(row[column + i]) : 0.f;
  return make_float4(x[0], x[1], x[2], x[3]);
}

/// Fills a tile from `source` (row 0's address), with zeros from row `valid` on.
template <class Plan, class Storage>
__device__ void load_tile(float* tile, const Storage* source, std::int64_t row_stride, int valid, const Params& p) {
  constexpr int kFours = Plan::kGroups * 8;
  for (int i = threadIdx.x; i < Plan::kTile * kFours; i += kThreads) {
    const int row = i / kFours;
    const int column = i % kFours * 4;
    *reinterpret_cast<float4*>(tile + row * Plan::kStride + column) =
        row < valid ? read_four(source + row * row_stride, column, p) : make_float4(0.f, 0.f, 0.f, 0.f);
  }
}

__device__ float dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/// out[i][j] = <left row r + 16 i, right row c + 8 j>.
template <class Plan>
__device__ void multiply_transposed(float (&out)[Plan::kRows][Plan::kKeys], const float* left, const float* right) {
  const int r = threadIdx.x / 8;
  const int c = threadIdx.x % 8;
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Plan::kKeys; ++j) out[i][j] = 0.f;
  }
#pragma unroll 4
  for (int d = 0; d < Plan::kGroups * 32; d += 4) {
    float4 a[Plan::kRows];
#pragma unroll
    for (int i = 0; i < Plan::kRows; ++i) a[i] = four(left + (r + 16 * i) * Plan::kStride + d);
#pragma unroll
    for (int j = 0; j < Plan::kKeys; ++j) {
      const float4 b = four(right + (c + 8 * j) * Plan::kStride + d);
#pragma unroll
      for (int i = 0; i < Plan::kRows; ++i) out[i][j] = dot(a[i], b, out[i][j]);
    }
  }
}

/// Hands the weights of a row to the eight threads that share it, by way of shared memory; all are in one warp.
template <class Plan>
__device__ void spread(float* shared_weights, const float (&weights)[Plan::kRows][Plan::kKeys]) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Plan::kKeys; ++j) {
      shared_weights[(threadIdx.x / 8 + 16 * i) * Plan::kWeightStride + threadIdx.x % 8 + 8 * j] = weights[i][j];
    }
  }
  __syncwarp();
}

/// sum[i] += sum over tile rows k of weights[r + 16 i][k] * tile row k.
template <class Plan>
__device__ void multiply_add(float4 (&sum)[Plan::kRows][Plan::kGroups], const float* weights, const float* tile) {
  const int r = threadIdx.x / 8;
  const int c = threadIdx.x % 8;
#pragma unroll 4
  for (int k = 0; k < Plan::kTile; ++k) {
    float w[Plan::kRows];
#pragma unroll
    for (int i = 0; i < Plan::kRows; ++i) w[i] = weights[(r + 16 * i) * Plan::kWeightStride + k];
#pragma unroll
    for (int g = 0; g < Plan::kGroups; ++g) {
      const float4 x = four(tile + k * Plan::kStride + 4 * (c + 8 * g));
#pragma unroll
      for (int i = 0; i < Plan::kRows; ++i) {
        sum[i][g].x = fmaf(w[i], x.x, sum[i][g].x);
        sum[i][g].y = fmaf(w[i], x.y, sum[i][g].y);
        sum[i][g].z = fmaf(w[i], x.z, sum[i][g].z);
        sum[i][g].w = fmaf(w[i], x.w, sum[i][g].w);
      }
    }
  }
}

template <class Plan>
__device__ void clear(float4 (&sum)[Plan::kRows][Plan::kGroups]) {
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) {
#pragma unroll
    for (int g = 0; g < Plan::kGroups; ++g) sum[i][g] = make_float4(0.f, 0.f, 0.f, 0.f);
  }
}

/// Sum over the eight threads that share a row.
__device__ float row_sum(float x) {
  x = quad_sum(x);
  return x + __shfl_xor_sync(0xffffffffU, x, 4);
}

/// Stores or adds factor[i] * sum[i] to rows r + 16 i of `to` that are below `rows`.
template <class Plan, class Out>
__device__ void store_tile(Out* to, std::int64_t row_stride, const float4 (&sum)[Plan::kRows][Plan::kGroups],
                           const float (&factor)[Plan::kRows], int rows, const Params& p, bool accumulate) {
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) {
    const int row = static_cast<int>(threadIdx.x / 8) + 16 * i;
    if (row >= rows) continue;
#pragma unroll
    for (int g = 0; g < Plan::kGroups; ++g) {
      const int column = 4 * (static_cast<int>(threadIdx.x % 8) + 8 * g);
      if (column >= p.head_dim) continue;
      const float x[4] = {sum[i][g].x * factor[i], sum[i][g].y * factor[i], sum[i][g].z * factor[i],
                          sum[i][g].w * factor[i]};
      Out* out = to + row * row_stride + column;
      if (p.vector) {
        store_four(out, x, accumulate);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (column + e < p.head_dim) out[e] = Out(x[e] + (accumulate ? static_cast<float>(out[e]) : 0.f));
        }
      }
    }
  }
}

template <class Plan, class Storage>
__device__ void store_gradient(const float4 (&sum)[Plan::kRows][Plan::kGroups], float factor, std::int64_t at, int rows,
                               const Params& p) {
  float factors[Plan::kRows];
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) factors[i] = factor;
  if (sizeof(Storage) == 2 && p.wide) {
    store_tile<Plan>(static_cast<float*>(p.dqkv) + at, p.row, sum, factors, rows, p, p.accumulate);
  } else {
    store_tile<Plan>(static_cast<Storage*>(p.dqkv) + at, p.row, sum, factors, rows, p, p.accumulate);
  }
}

template <class Storage, int kHeadDim>
__global__ void __launch_bounds__(kThreads) plain_forward_kernel(const Params p) {
  using Plan = PlainPlan<kHeadDim>;
  constexpr int kTile = Plan::kTile;
  extern __shared__ __align__(128) unsigned char shared[];
  auto* queries = reinterpret_cast<float*>(shared);
  float* keys = queries + kTile * Plan::kStride;
  float* values = keys + kTile * Plan::kStride;
  float* weights = values + kTile * Plan::kStride;

  const int sequence = blockIdx.x / p.tiles;
  const int first = (p.tiles - 1 - static_cast<int>(blockIdx.x) % p.tiles) * kTile;  // longest rows first
  const int head = sequence % p.heads;
  const std::int64_t token = static_cast<std::int64_t>(sequence / p.heads) * p.tokens;
  const Storage* rows = static_cast<const Storage*>(p.qkv) + token * p.row + head * p.head_stride;
  load_tile<Plan>(queries, rows + p.q_offset + static_cast<std::int64_t>(first) * p.row, p.row, p.tokens - first, p);

  const int r = threadIdx.x / 8;
  const int c = threadIdx.x % 8;
  float4 y[Plan::kRows][Plan::kGroups];
  clear<Plan>(y);
  float maximum[Plan::kRows], sum[Plan::kRows];
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) {
    maximum[i] = -INFINITY;
    sum[i] = 0.f;
  }
  for (int key = 0; key <= first; key += kTile) {
    __syncthreads();  // everyone is done with the tile before
    const std::int64_t at = static_cast<std::int64_t>(key) * p.row;
    load_tile<Plan>(keys, rows + p.k_offset + at, p.row, p.tokens - key, p);
    load_tile<Plan>(values, rows + p.v_offset + at, p.row, p.tokens - key, p);
    __syncthreads();
    float s[Plan::kRows][Plan::kKeys];
    multiply_transposed<Plan>(s, queries, keys);
#pragma unroll
    for (int i = 0; i < Plan::kRows; ++i) {
      float largest = maximum[i];
#pragma unroll
      for (int j = 0; j < Plan::kKeys; ++j) {
        s[i][j] = key + c + 8 * j > first + r + 16 * i ? -INFINITY : s[i][j] * p.scale;
        largest = fmaxf(largest, s[i][j]);
      }
      largest = quad_max(largest);
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 4));
      const float shrink = expf(maximum[i] - largest);
      maximum[i] = largest;
      float part = 0.f;
#pragma unroll
      for (int j = 0; j < Plan::kKeys; ++j) {
        s[i][j] = expf(s[i][j] - largest);
        part += s[i][j];
      }
      sum[i] = fmaf(sum[i], shrink, part);
#pragma unroll
      for (int g = 0; g < Plan::kGroups; ++g) {
        y[i][g].x *= shrink;
        y[i][g].y *= shrink;
        y[i][g].z *= shrink;
        y[i][g].w *= shrink;
      }
    }
    spread<Plan>(weights, s);
    multiply_add<Plan>(y, weights, values);
  }

  float factor[Plan::kRows];
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) {
    const float total = row_sum(sum[i]);
    factor[i] = 1.f / total;
    const int row = first + r + 16 * i;
    if (c == 0 && row < p.tokens) {
      p.lse[static_cast<std::int64_t>(sequence) * p.tokens + row] = maximum[i] + logf(total);
    }
  }
  const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.head_dim;
  store_tile<Plan>(static_cast<Storage*>(p.y) + (token + first) * width + head * p.head_dim, width, y, factor,
                   p.tokens - first, p, false);
}

/// The gradient of queries, and delta for the keys' kernel.
template <class Storage, int kHeadDim>
__global__ void __launch_bounds__(kThreads) plain_queries_kernel(const Params p) {
  using Plan = PlainPlan<kHeadDim>;
  constexpr int kTile = Plan::kTile;
  extern __shared__ __align__(128) unsigned char shared[];
  auto* queries = reinterpret_cast<float*>(shared);
  float* dy = queries + kTile * Plan::kStride;
  float* keys = dy + kTile * Plan::kStride;
  float* values = keys + kTile * Plan::kStride;
  float* weights = values + kTile * Plan::kStride;

  const int sequence = blockIdx.x / p.tiles;
  const int first = (p.tiles - 1 - static_cast<int>(blockIdx.x) % p.tiles) * kTile;  // longest rows first
  const int head = sequence % p.heads;
  const std::int64_t token = static_cast<std::int64_t>(sequence / p.heads) * p.tokens;
  const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.head_dim;
  const std::int64_t own = (token + first) * width + head * p.head_dim;
  const std::int64_t gradient = token * p.row + head * p.head_stride;
  const Storage* rows = static_cast<const Storage*>(p.qkv) + gradient;
  load_tile<Plan>(queries, rows + p.q_offset + static_cast<std::int64_t>(first) * p.row, p.row, p.tokens - first, p);
  load_tile<Plan>(dy, static_cast<const Storage*>(p.dy) + own, width, p.tokens - first, p);
  __syncthreads();

  const int r = threadIdx.x / 8;
  const int c = threadIdx.x % 8;
  float lse[Plan::kRows], delta[Plan::kRows];
#pragma unroll
  for (int i = 0; i < Plan::kRows; ++i) {
    const int row = r + 16 * i;
    const bool inside = first + row < p.tokens;
    const std::int64_t at = static_cast<std::int64_t>(sequence) * p.tokens + first + row;
    float part = 0.f;
    for (int g = 0; inside && g < Plan::kGroups; ++g) {
      const int column = 4 * (c + 8 * g);
      part = dot(four(dy + row * Plan::kStride + column),
                 read_four(static_cast<const Storage*>(p.y) + own + row * width, column, p), part);
    }
    delta[i] = row_sum(part);
    lse[i] = inside ? p.lse[at] : 0.f;
    if (c == 0 && inside) p.delta[at] = delta[i];
  }

  float4 dq[Plan::kRows][Plan::kGroups];
  clear<Plan>(dq);
  for (int key = 0; key <= first; key += kTile) {
    __syncthreads();  // everyone is done with the tile before
    const std::int64_t at = static_cast<std::int64_t>(key) * p.row;
    load_tile<Plan>(keys, rows + p.k_offset + at, p.row, p.tokens - key, p);
    load_tile<Plan>(values, rows + p.v_offset + at, p.row, p.tokens - key, p);
    __syncthreads();
    float s[Plan::kRows][Plan::kKeys], dp[Plan::kRows][Plan::kKeys];
    multiply_transposed<Plan>(s, queries, keys);
    multiply_transposed<Plan>(dp, dy, values);
#pragma unroll
    for (int i = 0; i < Plan::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Plan::kKeys; ++j) {
        const bool hidden = key + c + 8 * j > first + r + 16 * i;
        s[i][j] = hidden ? 0.f : expf(fmaf(s[i][j], p.scale, -lse[i])) * (dp[i][j] - delta[i]);
      }
    }
    spread<Plan>(weights, s);
    multiply_add<Plan>(dq, weights, keys);
  }
  store_gradient<Plan, Storage>(dq, p.scale, gradient + p.q_offset + static_cast<std::int64_t>(first) * p.row,
                                p.tokens - first, p);
}

/// The gradients of keys and values.
template <class Storage, int kHeadDim>
__global__ void __launch_bounds__(kThreads) plain_keys_kernel(const Params p) {
  using Plan = PlainPlan<kHeadDim>;
  constexpr int kTile = Plan::kTile;
  extern __shared__ __align__(128) unsigned char shared[];
  auto* keys = reinterpret_cast<float*>(shared);
  float* values = keys + kTile * Plan::kStride;
  float* queries = values + kTile * Plan::kStride;
  float* dy = queries + kTile * Plan::kStride;
  float* weights = dy + kTile * Plan::kStride;
  float* dweights = weights + kTile * Plan::kWeightStride;

  const int sequence = blockIdx.x / p.tiles;
  const int first = static_cast<int>(blockIdx.x) % p.tiles * kTile;  // the first keys have most queries
  const int head = sequence % p.heads;
  const std::int64_t token = static_cast<std::int64_t>(sequence / p.heads) * p.tokens;
  const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.head_dim;
  const std::int64_t gradient = token * p.row + head * p.head_stride;
  const Storage* rows = static_cast<const Storage*>(p.qkv) + gradient;
  const std::int64_t own = static_cast<std::int64_t>(first) * p.row;
  load_tile<Plan>(keys, rows + p.k_offset + own, p.row, p.tokens - first, p);
  load_tile<Plan>(values, rows + p.v_offset + own, p.row, p.tokens - first, p);

  const int r = threadIdx.x / 8;
  const int c = threadIdx.x % 8;
  float4 dk[Plan::kRows][Plan::kGroups], dv[Plan::kRows][Plan::kGroups];
  clear<Plan>(dk);
  clear<Plan>(dv);
  for (int query = first; query < p.tokens; query += kTile) {
    __syncthreads();  // everyone is done with the tile before
    load_tile<Plan>(queries, rows + p.q_offset + static_cast<std::int64_t>(query) * p.row, p.row, p.tokens - query, p);
    load_tile<Plan>(dy, static_cast<const Storage*>(p.dy) + (token + query) * width + head * p.head_dim, width,
                    p.tokens - query, p);
    float lse[Plan::kKeys], delta[Plan::kKeys];
#pragma unroll
    for (int j = 0; j < Plan::kKeys; ++j) {
      const int column = query + c + 8 * j;
      const std::int64_t at = static_cast<std::int64_t>(sequence) * p.tokens + column;
      lse[j] = column < p.tokens ? p.lse[at] : 0.f;
      delta[j] = column < p.tokens ? p.delta[at] : 0.f;
    }
    __syncthreads();
    float s[Plan::kRows][Plan::kKeys], dp[Plan::kRows][Plan::kKeys];  // [keys, queries]
    multiply_transposed<Plan>(s, keys, queries);
    multiply_transposed<Plan>(dp, values, dy);
#pragma unroll
    for (int i = 0; i < Plan::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Plan::kKeys; ++j) {
        const bool hidden = first + r + 16 * i > query + c + 8 * j;
        s[i][j] = hidden ? 0.f : expf(fmaf(s[i][j], p.scale, -lse[j]));
        dp[i][j] = s[i][j] * (dp[i][j] - delta[j]);
      }
    }
    spread<Plan>(weights, s);
    spread<Plan>(dweights, dp);
    multiply_add<Plan>(dv, weights, dy);
    multiply_add<Plan>(dk, dweights, queries);
  }
  store_gradient<Plan, Storage>(dk, p.scale, gradient + p.k_offset + own, p.tokens - first, p);
  store_gradient<Plan, Storage>(dv, 1.f, gradient + p.v_offset + own, p.tokens - first, p);
}

template <class Storage, int kHeadDim>
void launch_plain_forward(cudaStream_t stream, Params p, int batch) {
  using Plan = PlainPlan<kHeadDim>;
  p.tiles = (p.tokens + Plan::kTile - 1) / Plan::kTile;
  launch(plain_forward_kernel<Storage, kHeadDim>, stream, std::int64_t{batch} * p.heads * p.tiles, kThreads,
         Plan::shared_bytes(3, 1), p);
}

template <class Storage, int kHeadDim>
void launch_plain_backward(cudaStream_t stream, Params p, int batch) {
  using Plan = PlainPlan<kHeadDim>;
  p.tiles = (p.tokens + Plan::kTile - 1) / Plan::kTile;
  const std::int64_t blocks = std::int64_t{batch} * p.heads * p.tiles;
  launch(plain_queries_kernel<Storage, kHeadDim>, stream, blocks, kThreads, Plan::shared_bytes(4, 1), p);
  launch(plain_keys_kernel<Storage, kHeadDim>, stream, blocks, kThreads, Plan::shared_bytes(4, 2), p);
}

/// Calls launch.operator()<storage, head dim>() for the smallest compiled head dim that holds the given one.
template <class Launch>
void with_types(int head_dim, bool bf16, Launch launch) {
  const auto with_head_dim = [&]<class Storage>() {
    if (head_dim <= 32) return launch.template operator()<Storage, 32>();
    if (head_dim <= 64) return launch.template operator()<Storage, 64>();
    if (head_dim <= 128) return launch.template operator()<Storage, 128>();
    return launch.template operator()<Storage, 256>();
  };
  return bf16 ? with_head_dim.template operator()<__nv_bfloat16>() : with_head_dim.template operator()<float>();
}

}  // namespace

void forward_plain(cudaStream_t stream, Params p, int batch, bool bf16) {
  with_types(p.head_dim, bf16,
             [&]<class Storage, int kHeadDim>() { launch_plain_forward<Storage, kHeadDim>(stream, p, batch); });
}

void backward_plain(cudaStream_t stream, Params p, int batch, bool bf16) {
  with_types(p.head_dim, bf16,
             [&]<class Storage, int kHeadDim>() { launch_plain_backward<Storage, kHeadDim>(stream, p, batch); });
}

}  // namespace graft::cuda::attention
