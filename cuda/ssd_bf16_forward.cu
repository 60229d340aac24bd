#include <cstdint>

#include "cuda/ssd_tile.cuh"

// Forward on tensor cores: as in attention without a softmax. A block has one head of one chunk in shared memory; a
// warp takes 16 rows i at a time and walks the 16 x 16 tiles of the rows j <= i: C B^T, weighted by the decay between i
// and j and the step size of j, is the left factor of the product with x.

namespace graft::cuda::ssd {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

// ---- sums that become states

[[nodiscard]] std::size_t states_bytes(int rows, int padded_head, int padded_state) {
  return static_cast<std::size_t>(rows * (tile_stride(padded_head) + tile_stride(padded_state))) +
         2 * kChunk * sizeof(float);
}

struct StatesLayout {
  StateSums<bf16> p;
  int rows, padded_head, padded_state;
};

/// Warps share the [16, 32] tiles of the state.
__global__ void __launch_bounds__(kThreads) states_kernel(const StatesLayout layout) {
  extern __shared__ __align__(128) unsigned char shared[];
  const StateSums<bf16>& p = layout.p;
  const Source<bf16>& in = p.in;
  const int head = static_cast<int>(blockIdx.x) % in.heads;
  const int chunk = static_cast<int>(blockIdx.x) / in.heads % in.chunks;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / in.heads / in.chunks;
  if (chunk == p.unused) return;
  const int warp = attention::warp_index();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int valid = in.valid(chunk);
  const int tiles = (valid + 15) / 16;
  const int row_stride = tile_stride(layout.padded_head), column_stride = tile_stride(layout.padded_state);
  unsigned char* const rows = shared;                              // x or dy
  unsigned char* const columns = rows + layout.rows * row_stride;  // B or C
  float* const dt = reinterpret_cast<float*>(columns + layout.rows * column_stride);
  float* const decay = dt + kChunk;

  const std::int64_t row0 = sequence * in.tokens + chunk * kChunk;
  const int group = head / in.together;
  if (p.backward) {
    load_tile(rows, layout.padded_head, p.dy + row0 * in.width + head * in.head_dim, in.width, 16 * tiles, valid,
              in.head_dim);
  } else {
    load_tile(rows, layout.padded_head, in.x + row0 * in.row + head * in.head_dim, in.row, 16 * tiles, valid,
              in.head_dim);
  }
  load_tile(columns, layout.padded_state, (p.backward ? in.c : in.b) + row0 * in.row + group * in.state, in.row,
            16 * tiles, valid, in.state);
  attention::copy_commit();
  if (warp == 0) {
    warp_steps(in, sequence, chunk, head, dt, decay, nullptr);
    __syncwarp();
    const float total = decay[kChunk - 1];
    __syncwarp();
    for (int i = lane; i < kChunk; i += kWarp) {  // dt becomes the weight of a step; 0 for those after the last
      dt[i] = p.backward ? (i < valid ? fast_exp2(decay[i]) : 0.F) : fast_exp2(total - decay[i]) * dt[i];
    }
  }
  attention::copy_wait<0>();
  __syncthreads();

  const float kept = fast_exp2(decay[kChunk - 1]);
  const int blocks = (layout.padded_state + 31) / 32;
  const std::int64_t at = ((sequence * in.chunks + chunk) * in.heads + head) * std::int64_t{in.head_dim} * in.state;
  for (int item = warp; item < layout.padded_head / 16 * blocks; item += kWarps) {
    const int p0 = item / blocks * 16;
    const int n0 = item % blocks * 32;
    const bool wide = n0 + 16 < layout.padded_state;
    // x^T: matrices of steps 0-7 and channels 0-7, 8-15, then of steps 8-15
    const std::uint32_t left =
        attention::shared_address(rows) +
        static_cast<std::uint32_t>(((lane & 7) + (lane >> 4) * 8) * row_stride + (p0 + ((lane >> 3) & 1) * 8) * 2);
    const std::uint32_t right = left_address(columns, column_stride, 0) + static_cast<std::uint32_t>(n0 * 2);
    float sum[4][4] = {};
    for (int tile = 0; tile < tiles; ++tile) {
      std::uint32_t a[4];
      attention::load_matrices_transposed(left + static_cast<std::uint32_t>(tile * 16 * row_stride), a);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 weight = *reinterpret_cast<const float2*>(dt + tile * 16 + (i >> 1) * 8 + (lane & 3) * 2);
        const float2 v = unpack(a[i]);
        a[i] = Product::pack(v.x * weight.x, v.y * weight.y);
      }
      multiply_columns(sum, a, right + static_cast<std::uint32_t>(tile * 16 * column_stride), wide);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int channel = p0 + (lane >> 2) + 8 * half;
        const int column = n0 + 8 * n + 2 * (lane & 3);
        if (channel >= in.head_dim || column >= in.state) continue;
        const std::int64_t i = at + std::int64_t{channel} * in.state + column;
        float2 value = {sum[n][2 * half], sum[n][2 * half + 1]};
        if (p.whole && p.carried != nullptr) {
          const float2 carried = *reinterpret_cast<const float2*>(p.carried + i);
          value = {value.x + kept * carried.x, value.y + kept * carried.y};
        }
        auto* const to = reinterpret_cast<float2*>(p.to + i);
        if (p.accumulate) value = {value.x + to->x, value.y + to->y};
        *to = value;
      }
    }
  }
}

// ---- outputs

struct OutputsLayout {
  Outputs<bf16> p;
  int rows, padded_state;
};

template <int kHeadDim>
[[nodiscard]] std::size_t outputs_bytes(int rows, int padded_state, bool states) {
  return static_cast<std::size_t>(2 * rows + (states ? kHeadDim : 0)) * tile_stride(padded_state) +
         static_cast<std::size_t>(rows) * tile_stride(kHeadDim) + 2 * kChunk * sizeof(float);
}

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, kHeadDim <= 64 ? 4 : 2) outputs_kernel(const OutputsLayout layout) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int kStride = tile_stride(kHeadDim);
  const Outputs<bf16>& p = layout.p;
  const Source<bf16>& in = p.in;
  const int head = static_cast<int>(blockIdx.x) % in.heads;
  const int chunk = static_cast<int>(blockIdx.x) / in.heads % in.chunks;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / in.heads / in.chunks;
  const int warp = attention::warp_index();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int valid = in.valid(chunk);
  const int tiles = (valid + 15) / 16;
  const int stride = tile_stride(layout.padded_state);
  const bool has_state = p.ends.has_before(chunk);
  unsigned char* const c = shared;
  unsigned char* const b = c + layout.rows * stride;
  unsigned char* const x = b + layout.rows * stride;
  float* const dt = reinterpret_cast<float*>(x + layout.rows * kStride);
  float* const decay = dt + kChunk;
  unsigned char* const state = reinterpret_cast<unsigned char*>(decay + kChunk);  // [P, N]

  const std::int64_t row0 = sequence * in.tokens + chunk * kChunk;
  const int group = head / in.together;
  load_tile(c, layout.padded_state, in.c + row0 * in.row + group * in.state, in.row, 16 * tiles, valid, in.state);
  load_tile(b, layout.padded_state, in.b + row0 * in.row + group * in.state, in.row, 16 * tiles, valid, in.state);
  load_tile(x, kHeadDim, in.x + row0 * in.row + head * in.head_dim, in.row, 16 * tiles, valid, in.head_dim);
  attention::copy_commit();
  if (has_state) {
    const std::int64_t at = (sequence * in.chunks + chunk) * in.heads + head;
    load_states({state, p.ends.before + at * in.head_dim * in.state}, {}, layout.padded_state, kHeadDim, in.head_dim,
                in.state);
  }
  if (warp == 0) warp_steps(in, sequence, chunk, head, dt, decay, nullptr);
  attention::copy_wait<0>();
  __syncthreads();

  const int depth = layout.padded_state / 16;
  const float head_skip = in.head_skip(head);
  for (int slot = 0; slot < 2; ++slot) {
    const int tile = row_tile(slot, warp, kWarps, tiles);
    if (tile < 0) break;
    const std::uint32_t left = left_address(c, stride, tile * 16);
    const float own[2] = {decay[tile * 16 + (lane >> 2)], decay[tile * 16 + (lane >> 2) + 8]};
    float y[kHeadDim / 8][4] = {};
    if (has_state) {
      multiply_state(y, left, right_address(state, stride, 0), stride, depth);
      scale_rows(y, {fast_exp2(own[0]), fast_exp2(own[1])});
    }
    for (int other = 0; other <= tile; ++other) {
      float s[2][4] = {};
      multiply_rows(s, left, right_address(b, stride, other * 16), depth);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int column = 8 * n + 2 * (lane & 3);
        const float2 size = *reinterpret_cast<const float2*>(dt + other * 16 + column);
        const float2 theirs = *reinterpret_cast<const float2*>(decay + other * 16 + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Decays to the future would overflow: the exponent is kept from being positive, the weight is 0.
          const float exponent = own[i >> 1] - ((i & 1) != 0 ? theirs.y : theirs.x);
          const float weight = fast_decay(exponent) * ((i & 1) != 0 ? size.y : size.x);
          const bool later = other == tile && column + (i & 1) > (lane >> 2) + 8 * (i >> 1);
          s[n][i] = later ? 0.F : s[n][i] * weight;
        }
      }
      multiply_values(y, s, left_address(x, kStride, other * 16));
    }
    for_each_four(y, [&](int row, int column, const float(&sum)[4]) {
      const int step = tile * 16 + row;
      if (step >= valid || column >= in.head_dim) return;
      float value[4], gate[4];
      tile_four(x, kStride, step, column, value);
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = sum[i] + in.skip_of(head, column + i, head_skip) * value[i];
      if (in.z != nullptr) {
        load(in.z + (row0 + step) * in.z_row + head * in.head_dim + column, gate);
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] *= silu(gate[i]);
      }
      store(p.y + (row0 + step) * in.width + head * in.head_dim + column, value);
    });
  }
}

}  // namespace

bool states_bf16(cudaStream_t stream, const StateSums<bf16>& p, std::int64_t batch) {
  const Source<bf16>& in = p.in;
  if (!fits_tiles(in) || (p.backward && (in.z != nullptr || p.dy == nullptr || !is_aligned16(p.dy)))) return false;
  const StatesLayout layout{p, rows_of(in), round_up(in.head_dim, 16), round_up(in.state, 16)};
  const std::size_t bytes = states_bytes(layout.rows, layout.padded_head, layout.padded_state);
  if (bytes > shared_limit()) return false;
  launch(states_kernel, stream, batch * in.chunks * in.heads, kThreads, bytes, layout);
  return true;
}

bool outputs_bf16(cudaStream_t stream, const Outputs<bf16>& p, std::int64_t batch) {
  const Source<bf16>& in = p.in;
  if (!fits_tiles(in) || !is_aligned16(p.y)) return false;
  return with_head_dim(in.head_dim, [&]<int kHeadDim>() {
    const OutputsLayout layout{p, rows_of(in), round_up(in.state, 16)};
    const std::size_t bytes = outputs_bytes<kHeadDim>(layout.rows, layout.padded_state, p.ends.before != nullptr);
    if (bytes > shared_limit()) return false;
    launch(outputs_kernel<kHeadDim>, stream, batch * in.chunks * in.heads, kThreads, bytes, layout);
    return true;
  });
}

}  // namespace graft::cuda::ssd
