#include <cstdint>

#include "cuda/ssd_tile.cuh"

// Backward on tensor cores. A block has one chunk of one sequence and walks a few heads of one group. A warp owns 16
// rows j at a time and walks the 16 x 16 tiles of the rows i >= j, transposed: K^T = B C^T and Theta^T = x dy^T give
//   M_ij = K_ij L_ij dt_j, of which dx_j = sum_i M_ij dy_i,      L_ij = exp(c_i - c_j)
//   V_ij = K_ij L_ij Theta_ij, of which the gradients of dt and of the decays come,
//   dK_ij = L_ij dt_j Theta_ij, summed over the heads in shared memory; of it dB = dK^T C and dC = dK B at the end.
// The gradient of the log decay of step t is the sum of W_ij = V_ij dt_j over i >= t > j: sums of whole tiles, of their
// columns and rows where t lies in the tile's rows or columns, and a double sum within tiles of the diagonal. No sum is
// taken as the difference of two others. Warps share nothing but such sums, which have a fixed order.

namespace graft::cuda::ssd {
namespace {

constexpr int kMaxTiles = kChunk / 16;
constexpr int kMaxWarps = 8;

/// Arrays in shared memory, as offsets in bytes.
struct GradientsLayout {
  Gradients<bf16> p;
  int rows, padded_state;
  int stages;  // heads whose rows are in shared memory: 2, the next one on its way, or 1
  int b, x, before, after, dk, floats;

  /// Returns the bytes of all arrays.
  template <int kHeadDim>
  std::size_t place(int stages_of_rows) {
    const int stride = tile_stride(padded_state);
    const int tiles = rows / 16;
    stages = stages_of_rows;
    b = rows * stride;
    x = 2 * b;
    before = x + 2 * stages * rows * tile_stride(kHeadDim);
    after = before + (p.ends.before != nullptr ? kHeadDim * stride : 0);
    dk = after + (p.ends.after != nullptr ? kHeadDim * stride : 0);
    floats = dk + tiles * (tiles + 1) / 2 * 1024;
    return static_cast<std::size_t>(floats) + sizeof(float) * kFloats;
  }
  // in floats:
  static constexpr int kSteps = 0;                                    // [2, 3, kChunk]: dt, decay, slope of two heads
  static constexpr int kColumnSums = kSteps + 6 * kChunk;             // [kMaxTiles, kChunk]
  static constexpr int kTileSums = kColumnSums + kMaxTiles * kChunk;  // [kMaxTiles, kMaxTiles]
  static constexpr int kDirect = kTileSums + kMaxTiles * kMaxTiles;   // [kChunk] each
  static constexpr int kRowSums = kDirect + kChunk;
  static constexpr int kBefore = kRowSums + kChunk;
  static constexpr int kAfter = kBefore + kChunk;
  static constexpr int kWarpSums = kAfter + kChunk;  // [4, kMaxWarps]
  static constexpr int kFloats = kWarpSums + 4 * kMaxWarps;
  static_assert(2 * kMaxWarps * kWarp <= kMaxTiles * kChunk);  // sums of channels take the place of column sums
};

/// Where the tiles (j, i) of row j begin, tiles of the diagonal first.
[[nodiscard]] __device__ __forceinline__ int tile_index(int j, int i, int tiles) {
  return j * tiles - j * (j - 1) / 2 + i - j;
}

/// Transposes an 8 x 8 matrix that a warp holds as ldmatrix leaves it.
[[nodiscard]] __device__ __forceinline__ std::uint32_t transpose(std::uint32_t word) {
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word));
  return out;
}

/// Sums over the 16 rows of a [16, 16] product, given each lane's sums over its own two rows: the lane gets column
/// 8 (lane / 16) + 2 (lane % 4) + lane / 8 % 2.
[[nodiscard]] __device__ __forceinline__ float column_sum(const float (&own)[4], int lane) {
  const bool high = (lane & 16) != 0, odd = (lane & 8) != 0;
  const float even_column = (high ? own[2] : own[0]) + shuffle_xor(high ? own[0] : own[2], 16);
  const float odd_column = (high ? own[3] : own[1]) + shuffle_xor(high ? own[1] : own[3], 16);
  const float mine = (odd ? odd_column : even_column) + shuffle_xor(odd ? even_column : odd_column, 8);
  return mine + shuffle_xor(mine, 4);
}

/// Within a tile of the diagonal: w[n][i] of row j and column i >= j, else 0, become the sums over columns >= i of row
/// j where i > j, else 0.
__device__ __forceinline__ void suffix_after_diagonal(float (&w)[2][4], int lane) {
  const int quad = lane & 3;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float after[2];  // sums of the columns of lanes to the right, of both blocks of eight
    float whole = 0.F;
#pragma unroll
    for (int n = 1; n >= 0; --n) {
      const float own = w[n][2 * half] + w[n][2 * half + 1];
      float sum = own;  // inclusive suffix over the four lanes
      const float next = __shfl_down_sync(kFullWarp, sum, 1, 4);
      if (quad < 3) sum += next;
      const float next2 = __shfl_down_sync(kFullWarp, sum, 2, 4);
      if (quad < 2) sum += next2;
      const float right = __shfl_down_sync(kFullWarp, sum, 1, 4);
      after[n] = (quad < 3 ? right : 0.F) + whole;
      whole = __shfl_sync(kFullWarp, sum, 0, 4);
    }
    const int row = (lane >> 2) + 8 * half;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int column = 8 * n + 2 * quad;
      const float odd = w[n][2 * half + 1] + after[n];
      const float even = w[n][2 * half] + odd;
      w[n][2 * half] = column > row ? even : 0.F;
      w[n][2 * half + 1] = column + 1 > row ? odd : 0.F;
    }
  }
}

/// Inclusive prefix (kForward) or suffix sums over kWidth neighbouring lanes.
template <bool kForward, int kWidth>
[[nodiscard]] __device__ __forceinline__ float lane_scan(float value, int lane) {
#pragma unroll
  for (int step = 1; step < kWidth; step *= 2) {
    const float other = kForward ? __shfl_up_sync(kFullWarp, value, static_cast<unsigned>(step), kWidth)
                                 : __shfl_down_sync(kFullWarp, value, static_cast<unsigned>(step), kWidth);
    const int place = lane % kWidth;
    if (kForward ? place >= step : place + step < kWidth) value += other;
  }
  return value;
}

/// values[kChunk] summed from `step` on, or before `step`; step = 32 warp + lane. All lanes of a warp call it.
[[nodiscard]] __device__ __forceinline__ float sum_from(const float* values, int step) {
  const int lane = step % kWarp;
  float sum = lane_scan<false, kWarp>(values[step], lane);
#pragma unroll
  for (int part = 1; part < kChunk / kWarp; ++part) {
    const float total = warp_sum(values[part * kWarp + lane]);
    if (part > step / kWarp) sum += total;
  }
  return sum;
}
[[nodiscard]] __device__ __forceinline__ float sum_before(const float* values, int step) {
  const int lane = step % kWarp;
  const float inclusive = __shfl_up_sync(kFullWarp, lane_scan<true, kWarp>(values[step], lane), 1);
  float sum = lane > 0 ? inclusive : 0.F;
#pragma unroll
  for (int part = 0; part + 1 < kChunk / kWarp; ++part) {
    const float total = warp_sum(values[part * kWarp + lane]);
    if (part < step / kWarp) sum += total;
  }
  return sum;
}

/// What one head's states give to the gradients of 16 rows of B (or C): [16, P] times a state [P, N], row r times
/// factor[r]. Stored or added to partial, row 0 of the tile; dot[r] = <unscaled row, B_r (C_r)>.
template <int kHeadDim>
__device__ __forceinline__ void add_from_state(const unsigned char* rows, const unsigned char* state, int stride,
                                               const unsigned char* columns, int row0, int valid, int padded_state,
                                               const float (&factor)[2], float* partial, std::int64_t partial_row,
                                               int states, bool first, float (&dot)[2]) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  std::uint32_t a[kHeadDim / 16][4];
  const std::uint32_t left = left_address(rows, tile_stride(kHeadDim), row0);
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) attention::load_matrices(left + static_cast<std::uint32_t>(k * 32), a[k]);
  const std::uint32_t right = left_address(state, stride, 0);
  dot[0] = dot[1] = 0.F;
#pragma unroll 2
  for (int n0 = 0; n0 < padded_state; n0 += 16) {
    float2 old[2][2];
    float2* at[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + (lane >> 2) + 8 * half;
        const int column = n0 + 8 * n + 2 * (lane & 3);
        const bool inside = row < valid && column < states;
        at[n][half] = inside ? reinterpret_cast<float2*>(partial + row * partial_row + column) : nullptr;
        old[n][half] = first || !inside ? float2{0.F, 0.F} : *at[n][half];
      }
    }
    float sum[2][4] = {};
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      std::uint32_t m[4];
      attention::load_matrices_transposed(right + static_cast<std::uint32_t>(k * 16 * stride + n0 * 2), m);
      multiply(sum[0], sum[1], a[k], m);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 value = {sum[n][2 * half], sum[n][2 * half + 1]};
        const float2 column = tile_pair(columns, stride, row0 + (lane >> 2) + 8 * half, n0 + 8 * n + 2 * (lane & 3));
        dot[half] += value.x * column.x + value.y * column.y;
        if (at[n][half] != nullptr) {
          *at[n][half] = {old[n][half].x + factor[half] * value.x, old[n][half].y + factor[half] * value.y};
        }
      }
    }
  }
  dot[0] = warp_sum<4>(dot[0]);
  dot[1] = warp_sum<4>(dot[1]);
}

template <int kHeadDim, int kWarps, int kBlocksPerSm>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksPerSm) gradients_kernel(const GradientsLayout layout) {
  extern __shared__ __align__(128) unsigned char shared[];
  using L = GradientsLayout;
  constexpr int kThreads = kWarps * kWarp;
  constexpr int kStride = tile_stride(kHeadDim);
  const Gradients<bf16>& p = layout.p;
  const Source<bf16>& in = p.in;
  const int head_blocks = in.heads / p.head_block;
  const int block = static_cast<int>(blockIdx.x) % head_blocks;
  const int chunk = static_cast<int>(blockIdx.x) / head_blocks % in.chunks;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / head_blocks / in.chunks;
  const int first_head = block * p.head_block;
  const int warp = attention::warp_index();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread & 31;
  const int valid = in.valid(chunk);
  const int tiles = (valid + 15) / 16;
  const int stride = tile_stride(layout.padded_state);
  const int depth = layout.padded_state / 16;
  const bool has_before = p.ends.has_before(chunk);
  const bool has_after = p.ends.has_after(chunk, in.chunks);
  unsigned char* const c = shared;
  unsigned char* const b = shared + layout.b;
  unsigned char* const before = shared + layout.before;
  unsigned char* const after = shared + layout.after;
  auto* const dk = reinterpret_cast<float4*>(shared + layout.dk);  // [tile][2][lane]
  auto* const sums = reinterpret_cast<float*>(shared + layout.floats);
  float* const column_sums = sums + L::kColumnSums;
  float* const tile_sums = sums + L::kTileSums;
  float* const direct = sums + L::kDirect;
  float* const row_sums = sums + L::kRowSums;
  float* const sums_before = sums + L::kBefore;
  float* const sums_after = sums + L::kAfter;
  float* const warp_sums = sums + L::kWarpSums;

  const std::int64_t row0 = sequence * in.tokens + chunk * kChunk;
  const int group = first_head / in.together;
  const std::int64_t partial_row = std::int64_t{head_blocks} * 2 * in.state;
  float* const partial_b = p.partial_bc + row0 * partial_row + std::int64_t{block} * 2 * in.state;
  float* const partial_c = partial_b + in.state;

  load_tile(c, layout.padded_state, in.c + row0 * in.row + group * in.state, in.row, 16 * tiles, valid, in.state);
  load_tile(b, layout.padded_state, in.b + row0 * in.row + group * in.state, in.row, 16 * tiles, valid, in.state);
  const auto x_of = [&](int h) { return shared + layout.x + (h & (layout.stages - 1)) * 2 * layout.rows * kStride; };
  const auto load_rows = [&](int h) {
    const int column = (first_head + h) * in.head_dim;
    unsigned char* const x = x_of(h);
    unsigned char* const dy = x + layout.rows * kStride;
    load_tile(x, kHeadDim, in.x + row0 * in.row + column, in.row, 16 * tiles, valid, in.head_dim);
    if (p.dy != nullptr) {
      load_tile(dy, kHeadDim, p.dy + row0 * in.width + column, in.width, 16 * tiles, valid, in.head_dim);
    } else {
      load_tile(dy, kHeadDim, in.x, 0, 16 * tiles, 0, in.head_dim);
    }
  };
  const auto find_steps = [&](int h) {  // one warp
    float* const to = sums + L::kSteps + (h & 1) * 3 * kChunk;
    warp_steps(in, sequence, chunk, first_head + h, to, to + kChunk, to + 2 * kChunk);
  };
  load_rows(0);
  attention::copy_commit();
  if (warp == 0) find_steps(0);

  for (int h = 0; h < p.head_block; ++h) {
    const int head = first_head + h;
    const float* const dt = sums + L::kSteps + (h & 1) * 3 * kChunk;
    const float* const decay = dt + kChunk;
    const float* const slope = decay + kChunk;
    const unsigned char* const x = x_of(h);
    const unsigned char* const dy = x + layout.rows * kStride;
    if (layout.stages == 2) {
      if (h + 1 < p.head_block) load_rows(h + 1);
    } else if (h > 0) {
      load_rows(h);
    }
    attention::copy_commit();
    if (thread < kChunk) direct[thread] = row_sums[thread] = sums_before[thread] = sums_after[thread] = 0.F;
    const std::int64_t state = ((sequence * in.chunks + chunk) * in.heads + head) * in.head_dim * in.state;
    float across = 0.F;  // <gradient of the state after, state before>
    if (has_before || has_after) {
      across = warp_sum(load_states({before, has_before ? p.ends.before + state : nullptr},
                                    {after, has_after ? p.ends.after + state : nullptr}, layout.padded_state, kHeadDim,
                                    in.head_dim, in.state));
    }
    if (lane == 0) warp_sums[warp] = across;
    if (layout.stages == 2) {
      attention::copy_wait<1>();
    } else {
      attention::copy_wait<0>();
    }
    __syncthreads();
    if (warp == kWarps - 1 && h + 1 < p.head_block) find_steps(h + 1);  // the warp with least to do

    const float total = decay[kChunk - 1];
    const float head_skip = in.head_skip(head);
    float trace = 0.F;  // of Theta: <dy, x>
    for (int slot = 0; slot < 2; ++slot) {
      const int tile = row_tile(slot, warp, kWarps, tiles);
      if (tile < 0) break;
      const int first = tile * 16;
      const int own_row = first + (lane >> 2);  // and own_row + 8
      const float own[2] = {decay[own_row], decay[own_row + 8]};
      const float size[2] = {dt[own_row], dt[own_row + 8]};
      float of_dt[2] = {0.F, 0.F};  // sums of V over i
      float dot[2];

      float dx[kHeadDim / 8][4] = {};
      if (has_before) {  // this tile as rows i
        const float factor[2] = {fast_exp2(own[0]), fast_exp2(own[1])};
        add_from_state<kHeadDim>(dy, before, stride, c, first, valid, layout.padded_state, factor, partial_c,
                                 partial_row, in.state, h == 0, dot);
        if ((lane & 3) == 0) {
          sums_before[own_row] = factor[0] * dot[0];
          sums_before[own_row + 8] = factor[1] * dot[1];
        }
      }
      if (has_after) {
        const float reach[2] = {fast_exp2(total - own[0]), fast_exp2(total - own[1])};
        const float factor[2] = {reach[0] * size[0], reach[1] * size[1]};
        add_from_state<kHeadDim>(x, after, stride, b, first, valid, layout.padded_state, factor, partial_b, partial_row,
                                 in.state, h == 0, dot);
        if ((lane & 3) == 0) {
          sums_after[own_row] = factor[0] * dot[0];
          sums_after[own_row + 8] = factor[1] * dot[1];
          direct[own_row] = reach[0] * dot[0];
          direct[own_row + 8] = reach[1] * dot[1];
        }
        multiply_state(dx, left_address(b, stride, first), right_address(after, stride, 0), stride, depth);
        scale_rows(dx, factor);
      }

      std::uint32_t values[kHeadDim / 16][4];  // x_j
      {
        const std::uint32_t left = left_address(x, kStride, first);
#pragma unroll
        for (int k = 0; k < kHeadDim / 16; ++k) {
          attention::load_matrices(left + static_cast<std::uint32_t>(k * 32), values[k]);
        }
      }
      const std::uint32_t left = left_address(b, stride, first);
      float later_tiles[2] = {0.F, 0.F};  // sums of V over i of later tiles
      for (int other = tile; other < tiles; ++other) {
        float key[2][4] = {}, theta[2][4] = {};  // [j, i]
        multiply_rows(key, left, right_address(c, stride, other * 16), depth);
        const std::uint32_t gradient = right_address(dy, kStride, other * 16);
#pragma unroll
        for (int k = 0; k < kHeadDim / 16; ++k) {
          std::uint32_t m[4];
          attention::load_matrices(gradient + static_cast<std::uint32_t>(k * 32), m);
          multiply(theta[0], theta[1], values[k], m);
        }
        float w[2][4], of_key[2][4];
        float row[2] = {0.F, 0.F};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int column = 8 * n + 2 * (lane & 3);
          const float2 theirs = *reinterpret_cast<const float2*>(decay + other * 16 + column);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int half = i >> 1;
            const int ahead = column + (i & 1) - (lane >> 2) - 8 * half;  // of i to j, in a tile of the diagonal
            // From the past to the future only; elsewhere the power would overflow.
            float decayed = fast_decay(((i & 1) != 0 ? theirs.y : theirs.x) - own[half]);
            if (other == tile && ahead < 0) decayed = 0.F;
            if (other == tile && ahead == 0) trace += theta[n][i];
            const float kept = key[n][i] * decayed;
            const float v = kept * theta[n][i];
            row[half] += v;
            w[n][i] = v * size[half];
            of_key[n][i] = decayed * size[half] * theta[n][i];
            key[n][i] = kept * size[half];
          }
        }
        multiply_values(dx, key, left_address(dy, kStride, other * 16));
        float4* const to = dk + tile_index(tile, other, tiles) * 64 + lane;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float4 value = make_float4(of_key[n][0], of_key[n][1], of_key[n][2], of_key[n][3]);
          if (h > 0) {
            const float4 old = to[32 * n];
            value = make_float4(old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w);
          }
          to[32 * n] = value;
        }
        if (other == tile) {
          suffix_after_diagonal(w, lane);
        } else {
          later_tiles[0] += row[0];
          later_tiles[1] += row[1];
        }
        of_dt[0] += row[0];
        of_dt[1] += row[1];
        const float columns[4] = {w[0][0] + w[0][2], w[0][1] + w[0][3], w[1][0] + w[1][2], w[1][1] + w[1][3]};
        const float column = column_sum(columns, lane);
        if ((lane & 4) == 0) {
          column_sums[tile * kChunk + other * 16 + 8 * (lane >> 4) + 2 * (lane & 3) + ((lane >> 3) & 1)] = column;
        }
        if (other != tile) {
          float sum = warp_sum<4>(column);
          sum += shuffle_xor(sum, 8);
          sum += shuffle_xor(sum, 16);
          if (lane == 0) tile_sums[tile * kMaxTiles + other] = sum;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float all = warp_sum<4>(of_dt[half]);
        const float later = warp_sum<4>(later_tiles[half]);
        if ((lane & 3) == 0) {
          direct[own_row + 8 * half] += all;
          row_sums[own_row + 8 * half] = later * size[half];
        }
      }
      if (p.dx != nullptr) {
        for_each_four(dx, [&](int in_tile, int column, const float(&sum)[4]) {
          const int step = first + in_tile;
          if (step >= valid || column >= in.head_dim) return;
          float value[4];
          tile_four(dy, kStride, step, column, value);
          bf16* const to = p.dx + (row0 + step) * in.row + head * in.head_dim + column;
          float old[4] = {};
          if (p.add_dx) load(to, old);
#pragma unroll
          for (int i = 0; i < 4; ++i) value[i] = old[i] + sum[i] + in.skip_of(head, column + i, head_skip) * value[i];
          store(to, value);
        });
      }
    }
    trace = warp_sum(trace);
    if (lane == 0) warp_sums[kMaxWarps + warp] = trace;
    __syncthreads();

    if (warp < kChunk / kWarp) {
      const int step = thread;
      const int tile = step / 16;
      float to_column = 0.F, between = 0.F;
      if (tile < tiles) {
        for (int earlier = 0; earlier < tile; ++earlier) {
          to_column += column_sums[earlier * kChunk + step];
          for (int later = tile + 1; later < tiles; ++later) between += tile_sums[earlier * kMaxTiles + later];
        }
      }
      float ds = lane_scan<false, 16>(to_column, lane) + between;
      const float rows = __shfl_up_sync(kFullWarp, lane_scan<true, 16>(row_sums[step], lane), 1, 16);
      if (lane % 16 != 0) ds += rows;
      if (tile < tiles) ds += column_sums[tile * kChunk + step];
      if (has_before) ds += sum_from(sums_before, step);
      if (has_after) ds += sum_before(sums_after, step);
      if (has_before && has_after) {
        float all = 0.F;
#pragma unroll
        for (int i = 0; i < kWarps; ++i) all += warp_sums[i];
        ds += fast_exp2(total) * all;
      }
      const float a = -expf(in.a_log[head]);
      const float draw = step < valid ? (direct[step] + a * ds) * slope[step] : 0.F;
      if (p.ddt != nullptr && step < valid) store_or_add(p.ddt + (row0 + step) * in.dt_row + head, p.add_ddt, draw);
      const float of_a = warp_sum(dt[step] * ds);  // steps after the last have size 0
      const float of_bias = warp_sum(draw);
      if (lane == 0) {
        warp_sums[2 * kMaxWarps + warp] = of_a;
        warp_sums[3 * kMaxWarps + warp] = of_bias;
      }
    }
    if (p.partial_skip != nullptr && in.channel_skip) {
      constexpr int kPairs = kHeadDim / 2;
      constexpr int kParts = kThreads / kPairs;
      float* const parts = column_sums;
      __syncthreads();  // column sums have been read
      float2 sum = {0.F, 0.F};
      for (int step = thread / kPairs; step < valid; step += kParts) {
        const float2 u = tile_pair(dy, kStride, step, thread % kPairs * 2);
        const float2 v = tile_pair(x, kStride, step, thread % kPairs * 2);
        sum = {sum.x + u.x * v.x, sum.y + u.y * v.y};
      }
      *reinterpret_cast<float2*>(parts + 2 * thread) = sum;
      __syncthreads();
      if (thread < in.head_dim) {
        float value = 0.F;
#pragma unroll
        for (int part = 0; part < kParts; ++part) value += parts[part * kHeadDim + thread];
        p.partial_skip[(sequence * in.chunks + chunk) * in.width + head * in.head_dim + thread] = value;
      }
    }
    __syncthreads();
    if (thread == 0) {
      float of_a = 0.F, of_bias = 0.F, of_skip = 0.F;
#pragma unroll
      for (int i = 0; i < kChunk / kWarp; ++i) {
        of_a += warp_sums[2 * kMaxWarps + i];
        of_bias += warp_sums[3 * kMaxWarps + i];
      }
#pragma unroll
      for (int i = 0; i < kWarps; ++i) of_skip += warp_sums[kMaxWarps + i];
      const std::int64_t at = (sequence * in.chunks + chunk) * 2 * in.heads + head;
      p.partial_heads[at] = of_a;
      p.partial_heads[at + in.heads] = of_bias;
      if (p.partial_skip != nullptr && !in.channel_skip) {
        p.partial_skip[(sequence * in.chunks + chunk) * in.heads + head] = of_skip;
      }
    }
  }

  // dB_j = sum_i dK_ij C_i, dC_i = sum_j dK_ij B_j
  for (int slot = 0; slot < 2; ++slot) {
    const int tile = row_tile(slot, warp, kWarps, tiles);
    if (tile < 0) break;
    for (int side = 0; side < 2; ++side) {
      const bool of_b = side == 0;
      float* const partial = of_b ? partial_b : partial_c;
      const bool add = of_b ? has_after : has_before;
      for (int n0 = 0; n0 < layout.padded_state; n0 += 32) {
        const bool wide = n0 + 16 < layout.padded_state;
        float sum[4][4] = {};
        const int begin = of_b ? tile : 0;
        const int end = of_b ? tiles : tile + 1;
        for (int other = begin; other < end; ++other) {
          const float4* const from = dk + (of_b ? tile_index(tile, other, tiles) : tile_index(other, tile, tiles)) * 64;
          const float4 low = from[lane], high = from[32 + lane];
          std::uint32_t a[4] = {Product::pack(low.x, low.y), Product::pack(low.z, low.w), Product::pack(high.x, high.y),
                                Product::pack(high.z, high.w)};
          if (!of_b) {
            const std::uint32_t upper = a[1];
            a[0] = transpose(a[0]);
            a[1] = transpose(a[2]);
            a[2] = transpose(upper);
            a[3] = transpose(a[3]);
          }
          multiply_columns(sum, a, left_address(of_b ? c : b, stride, other * 16) + static_cast<std::uint32_t>(n0 * 2),
                           wide);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = tile * 16 + (lane >> 2) + 8 * half;
            const int column = n0 + 8 * n + 2 * (lane & 3);
            if (row >= valid || column >= in.state) continue;
            auto* const to = reinterpret_cast<float2*>(partial + row * partial_row + column);
            float2 value = {sum[n][2 * half], sum[n][2 * half + 1]};
            if (add) value = {value.x + to->x, value.y + to->y};
            *to = value;
          }
        }
      }
    }
  }
}

template <int kHeadDim>
bool launch_gradients(cudaStream_t stream, const Gradients<bf16>& p, std::int64_t batch) {
  const Source<bf16>& in = p.in;
  GradientsLayout layout{};
  layout.p = p;
  layout.rows = rows_of(in);
  layout.padded_state = round_up(in.state, 16);
  const std::size_t limit = shared_limit();
  const std::size_t half =
      limit / 2 - 1024;  // of two blocks on a multiprocessor, which has a little of its own in each
  const std::size_t single = layout.place<kHeadDim>(1);
  if (single > limit) return false;
  std::size_t bytes = layout.place<kHeadDim>(p.head_block > 1 ? 2 : 1);
  if (bytes > (single <= half ? half : limit)) bytes = layout.place<kHeadDim>(1);
  const std::int64_t blocks = batch * in.chunks * (in.heads / p.head_block);
  if (bytes <= half) {
    launch(gradients_kernel<kHeadDim, 4, 2>, stream, blocks, 4 * kWarp, bytes, layout);
  } else {  // one block on a multiprocessor: more warps
    launch(gradients_kernel<kHeadDim, 8, 1>, stream, blocks, 8 * kWarp, bytes, layout);
  }
  return true;
}

}  // namespace

bool gradients_bf16(cudaStream_t stream, const Gradients<bf16>& p, std::int64_t batch) {
  const Source<bf16>& in = p.in;
  if (!fits_tiles(in) || in.z != nullptr || !is_aligned16(p.dy) || !is_aligned16(p.dx)) return false;
  return with_head_dim(in.head_dim, [&]<int kHeadDim>() { return launch_gradients<kHeadDim>(stream, p, batch); });
}

}  // namespace graft::cuda::ssd
