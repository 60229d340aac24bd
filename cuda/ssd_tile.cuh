#pragma once
// Tiles of bfloat16 rows in shared memory for the tensor-core kernels of the state-space dual, and what a warp does
// with blocks of 16 rows of them. A row takes 2 * columns + 16 bytes, an odd number of 16-byte units, so that the 8
// rows of an ldmatrix lie in different banks. Fragment layouts: cuda/attention_mma.cuh.

#include <cstdint>

#include "cuda/attention_mma.cuh"
#include "cuda/ssd.cuh"

namespace graft::cuda::ssd {

using Product = attention::Bf16;

[[nodiscard]] __host__ __device__ __forceinline__ constexpr int tile_stride(int columns) { return 2 * columns + 16; }

/// Starts to fill rows [0, rows) from `from`, row 0's address; zeros from row `valid` and column `columns` on, up to
/// `padded`.
__device__ __forceinline__ void load_tile(unsigned char* tile, int padded, const bf16* from, std::int64_t row_stride,
                                          int rows, int valid, int columns) {
  const int units = padded / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < rows * units; i += static_cast<int>(blockDim.x)) {
    const int row = i / units;
    const int unit = i % units;
    const bool inside = row < valid && unit * 8 < columns;
    attention::copy_async_16(tile + row * tile_stride(padded) + unit * 16,
                             inside ? from + row * row_stride + unit * 8 : from, inside);
  }
}

/// A state [P, N] (null: not wanted) as a tile of `rows` rows and `padded` columns, rounded to bfloat16.
struct StateTile {
  unsigned char* tile;
  const float* from;
};

/// Fills two tiles. Returns this thread's part of the sum of the products of their elements, which are not rounded.
__device__ __forceinline__ float load_states(const StateTile& first, const StateTile& second, int padded, int rows,
                                             int head_dim, int state) {
  const int units = padded / 4;
  float dot = 0.F;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < rows * units; i += static_cast<int>(blockDim.x)) {
    const int p = i / units;
    const int n = i % units * 4;
    const bool inside = p < head_dim && n < state;
    const std::int64_t at = std::int64_t{p} * state + n;
    const int to = p * tile_stride(padded) + n * 2;
    float4 u = make_float4(0.F, 0.F, 0.F, 0.F), v = u;
    if (inside && first.from != nullptr) u = *reinterpret_cast<const float4*>(first.from + at);
    if (inside && second.from != nullptr) v = *reinterpret_cast<const float4*>(second.from + at);
    dot += u.x * v.x + u.y * v.y + u.z * v.z + u.w * v.w;
    if (first.from != nullptr) {
      *reinterpret_cast<uint2*>(first.tile + to) = make_uint2(Product::pack(u.x, u.y), Product::pack(u.z, u.w));
    }
    if (second.from != nullptr) {
      *reinterpret_cast<uint2*>(second.tile + to) = make_uint2(Product::pack(v.x, v.y), Product::pack(v.z, v.w));
    }
  }
  return dot;
}

/// This lane's ldmatrix address for rows [row, row + 16), columns [0, 16): as left factor without transposition, or
/// with it as right factor whose rows are summed over.
[[nodiscard]] __device__ __forceinline__ std::uint32_t left_address(const unsigned char* tile, int stride, int row) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  return attention::shared_address(tile) + static_cast<std::uint32_t>((row + (lane & 15)) * stride + (lane >> 4) * 16);
}
/// The same for a right factor whose rows are columns of the product.
[[nodiscard]] __device__ __forceinline__ std::uint32_t right_address(const unsigned char* tile, int stride, int row) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  return attention::shared_address(tile) +
         static_cast<std::uint32_t>((row + (lane & 7) + (lane >> 4) * 8) * stride + ((lane >> 3) & 1) * 16);
}

/// sum [16, 16] += left times the matrices of one ldmatrix.
__device__ __forceinline__ void multiply(float (&sum0)[4], float (&sum1)[4], const std::uint32_t (&left)[4],
                                         const std::uint32_t (&right)[4]) {
  Product::multiply(sum0, left, right[0], right[1]);
  Product::multiply(sum1, left, right[2], right[3]);
}

/// A [16, 16] product as the left factor of the next one.
__device__ __forceinline__ void pack_left(std::uint32_t (&left)[4], const float (&s)[2][4]) {
  left[0] = Product::pack(s[0][0], s[0][1]);
  left[1] = Product::pack(s[0][2], s[0][3]);
  left[2] = Product::pack(s[1][0], s[1][1]);
  left[3] = Product::pack(s[1][2], s[1][3]);
}

/// sum [16, 32] += left times columns [0, 32) of 16 rows, or their first half alone; right: left_address() of the rows.
__device__ __forceinline__ void multiply_columns(float (&sum)[4][4], const std::uint32_t (&left)[4],
                                                 std::uint32_t right, bool both) {
  std::uint32_t m[4];
  attention::load_matrices_transposed(right, m);
  multiply(sum[0], sum[1], left, m);
  if (both) {
    attention::load_matrices_transposed(right + 32, m);
    multiply(sum[2], sum[3], left, m);
  }
}

/// sum [16, 16] += left times right^T over 16 * depth columns, both 16 rows of tiles: the products of B and C.
__device__ __forceinline__ void multiply_rows(float (&sum)[2][4], std::uint32_t left, std::uint32_t right, int depth) {
  for (int k = 0; k < depth; ++k) {
    std::uint32_t a[4], m[4];
    attention::load_matrices(left + static_cast<std::uint32_t>(k * 32), a);
    attention::load_matrices(right + static_cast<std::uint32_t>(k * 32), m);
    multiply(sum[0], sum[1], a, m);
  }
}

/// sum [16, kTiles * 8] += left times the 16 rows of a tile; right: left_address() of the rows.
template <int kTiles>
__device__ __forceinline__ void multiply_values(float (&sum)[kTiles][4], const float (&left)[2][4],
                                                std::uint32_t right) {
  std::uint32_t a[4];
  pack_left(a, left);
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    std::uint32_t m[4];
    attention::load_matrices_transposed(right + static_cast<std::uint32_t>(n * 16), m);
    multiply(sum[n], sum[n + 1], a, m);
  }
}

/// sum [16, kTiles * 8] += left times a state [P, N] transposed, over its 16 * depth columns; right: right_address() of
/// the state's row 0, whose rows are `stride` bytes apart.
template <int kTiles>
__device__ __forceinline__ void multiply_state(float (&sum)[kTiles][4], std::uint32_t left, std::uint32_t right,
                                               int stride, int depth) {
  for (int k = 0; k < depth; ++k) {
    std::uint32_t a[4];
    attention::load_matrices(left + static_cast<std::uint32_t>(k * 32), a);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      std::uint32_t m[4];
      attention::load_matrices(right + static_cast<std::uint32_t>(n * 8 * stride + k * 32), m);
      multiply(sum[n], sum[n + 1], a, m);
    }
  }
}

/// The rows of a product times factors, of which a lane has those of its two rows.
template <int kTiles>
__device__ __forceinline__ void scale_rows(float (&sum)[kTiles][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] *= factor[i >> 1];
  }
}

/// The row blocks of a warp in a chunk of `tiles`: one each where there are enough warps, else one from each end,
/// so that rows that see much go together with rows that see little. Negative: none.
[[nodiscard]] __device__ __forceinline__ int row_tile(int slot, int warp, int warps, int tiles) {
  if (tiles <= warps) return slot == 0 && warp < tiles ? warp : -1;
  const int other = tiles - 1 - warp;
  if (slot == 0) return other >= warp ? warp : -1;
  return other > warp ? other : -1;
}

/// Calls body(row, column, four) for four consecutive columns of 16 rows at a time. Neighbouring lanes swap halves of
/// two column tiles first, so that four lanes have 16 columns of a row.
template <int kTiles, class Body>
__device__ __forceinline__ void for_each_four(const float (&sum)[kTiles][4], Body body) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const bool odd = (lane & 1) != 0;
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float x0 = sum[n][2 * half], x1 = sum[n][2 * half + 1];
      const float z0 = sum[n + 1][2 * half], z1 = sum[n + 1][2 * half + 1];
      const float r0 = __shfl_xor_sync(kFullWarp, odd ? x0 : z0, 1);
      const float r1 = __shfl_xor_sync(kFullWarp, odd ? x1 : z1, 1);
      const float four[4] = {odd ? r0 : x0, odd ? r1 : x1, odd ? z0 : r0, odd ? z1 : r1};
      body((lane >> 2) + 8 * half, 8 * n + 8 * (lane & 1) + 2 * (lane & 2), four);
    }
  }
}

/// The two values of a word of bfloat16.
[[nodiscard]] __device__ __forceinline__ float2 unpack(std::uint32_t word) {
  return {__uint_as_float(word << 16U), __uint_as_float(word & 0xffff0000U)};
}
[[nodiscard]] __device__ __forceinline__ float2 tile_pair(const unsigned char* tile, int stride, int row, int column) {
  return unpack(*reinterpret_cast<const std::uint32_t*>(tile + row * stride + column * 2));
}
__device__ __forceinline__ void tile_four(const unsigned char* tile, int stride, int row, int column, float (&to)[4]) {
  const uint2 words = *reinterpret_cast<const uint2*>(tile + row * stride + column * 2);
  const float2 low = unpack(words.x), high = unpack(words.y);
  to[0] = low.x;
  to[1] = low.y;
  to[2] = high.x;
  to[3] = high.y;
}

[[nodiscard]] constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

/// Whether all parts of the rows can be moved by 16-byte accesses and padded to what the kernels are compiled for.
[[nodiscard]] inline bool fits_tiles(const Source<bf16>& in) {
  return in.head_dim <= 128 && in.head_dim % 8 == 0 && in.state % 8 == 0 && in.row % 8 == 0 && is_aligned16(in.x) &&
         is_aligned16(in.b) && is_aligned16(in.c) && (in.z == nullptr || (in.z_row % 8 == 0 && is_aligned16(in.z)));
}

/// Rows of a chunk in shared memory: fewer for short sequences.
[[nodiscard]] inline int rows_of(const Source<bf16>& in) { return round_up(std::min(in.tokens, kChunk), 16); }

/// Calls body.operator()<padded head dimension>().
template <class Body>
bool with_head_dim(int head_dim, Body body) {
  if (head_dim <= 32) return body.template operator()<32>();
  if (head_dim <= 64) return body.template operator()<64>();
  return body.template operator()<128>();
}

}  // namespace graft::cuda::ssd
