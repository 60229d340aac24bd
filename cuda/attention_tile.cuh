#pragma once
// Tiles of rows in shared memory and their products, for one warp that owns kRowTiles blocks of 16 rows.

#include <cstdint>

#include "cuda/attention_mma.cuh"
#include "cuda/attention_params.h"

namespace graft::cuda::attention {

/// Rows of kColumns values in shared memory. The 16 bytes of padding make a row an odd number of 16-byte
/// units, so that ldmatrix (8 rows) and word loads (rows 2t, columns g) touch every bank once.
template <class Mma, int kColumns>
struct Tile {
  using Storage = typename Mma::Storage;
  static constexpr int kVector = 16 / sizeof(Storage);
  static constexpr int kChunks = kColumns / kVector;
  static constexpr int kStride = kColumns * sizeof(Storage) + 16;  // bytes
  static constexpr int kSteps = kColumns / Mma::kDepth;            // products along a row

  // Threads of a row's chunks: a power of two, so that a thread keeps its column and whole rows are strides apart.
  static constexpr int kLanes = kChunks <= 2 ? 2 : kChunks <= 4 ? 4 : kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;

  /// Starts to fill rows [0, rows) from `source` (row 0's address); those from `valid` on become zero, and so do
  /// columns past the head dimension.
  __device__ static void load(unsigned char* tile, const Storage* source, int row_stride, int rows, int valid,
                              const Params& p) {
    const int first = threadIdx.x / kLanes;
    const int chunk = threadIdx.x % kLanes;
    const int step = blockDim.x / kLanes;
    if (kChunks < kLanes && chunk >= kChunks) return;
    const Storage* from = source + static_cast<std::int64_t>(first) * row_stride + chunk * kVector;
    const std::int64_t advance = static_cast<std::int64_t>(step) * row_stride;
    unsigned char* to = tile + first * kStride + chunk * 16;
    if (p.vector) {
      const int inside = chunk * kVector < p.head_dim ? valid : 0;  // rows
#pragma unroll 4
      for (int row = first; row < rows; row += step, from += advance, to += step * kStride) {
        copy_async_16(to, row < inside ? from : source, row < inside);
      }
    } else {
#pragma unroll 1
      for (int row = first; row < rows; row += step, from += advance, to += step * kStride) {
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          const bool inside = row < valid && chunk * kVector + e < p.head_dim;
          reinterpret_cast<Storage*>(to)[e] = inside ? from[e] : Storage(0.f);
        }
      }
    }
  }

  /// Rounds what this thread copied in load(); its copies must have arrived.
  __device__ static void round(unsigned char* tile, int rows) {
    if constexpr (Mma::kRounds) {
      const int chunk = threadIdx.x % kLanes;
      if (kChunks < kLanes && chunk >= kChunks) return;
#pragma unroll 4
      for (int row = threadIdx.x / kLanes; row < rows; row += blockDim.x / kLanes) {
        auto* at = reinterpret_cast<float4*>(tile + row * kStride + chunk * 16);
        const float4 x = *at;
        *at = make_float4(Mma::rounded(x.x), Mma::rounded(x.y), Mma::rounded(x.z), Mma::rounded(x.w));
      }
    }
  }
};

/// The left factor of a product: 16 * kRowTiles rows of a tile, kept in registers or loaded when needed.
template <class Mma, int kColumns, int kRowTiles, bool kKeep>
struct LeftFactor {
  using T = Tile<Mma, kColumns>;

  __device__ LeftFactor(const unsigned char* tile, int first_row) {
    const int lane = threadIdx.x & 31;
    // Matrices: rows 0-7 and 8-15 of the first 16 bytes of k, then of the second.
    address_ = shared_address(tile) + (first_row + (lane & 15)) * T::kStride + (lane >> 4) * 16;
    if constexpr (kKeep) {
#pragma unroll
      for (int step = 0; step < T::kSteps; ++step) load(step, kept_[step]);
    }
  }
  __device__ void get(int step, std::uint32_t (&a)[kRowTiles][4]) const {
    if constexpr (kKeep) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = kept_[step][m][i];
      }
    } else {
      load(step, a);
    }
  }

 private:
  __device__ void load(int step, std::uint32_t (&a)[kRowTiles][4]) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) load_matrices(address_ + m * 16 * T::kStride + step * 32, a[m]);
  }

  std::uint32_t address_;
  std::uint32_t kept_[kKeep ? T::kSteps : 1][kRowTiles][4];
};

/// out[m][n] = left rows times the transpose of tile rows [first_row, first_row + 8 * kColumnTiles).
template <class Mma, int kColumns, int kRowTiles, bool kKeep, int kColumnTiles>
__device__ void multiply_transposed(float (&out)[kRowTiles][kColumnTiles][4],
                                    const LeftFactor<Mma, kColumns, kRowTiles, kKeep>& left, const unsigned char* tile,
                                    int first_row) {
  using T = Tile<Mma, kColumns>;
  static_assert(kColumnTiles % 2 == 0);
  const int lane = threadIdx.x & 31;
  // Matrices: both halves of k for rows 0-7, then for rows 8-15.
  const std::uint32_t address =
      shared_address(tile) + (first_row + (lane & 7) + (lane >> 4) * 8) * T::kStride + ((lane >> 3) & 1) * 16;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] = 0.f;
    }
  }
#pragma unroll
  for (int step = 0; step < T::kSteps; ++step) {
    std::uint32_t a[kRowTiles][4];
    left.get(step, a);
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      std::uint32_t b[4];
      load_matrices(address + n * 8 * T::kStride + step * 32, b);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        Mma::multiply(out[m][n], a[m], b[0], b[1]);
        Mma::multiply(out[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/// sum[m][n] += weights[m] (16 rows, one column a tile row) times tile rows [first_row, first_row + 8 * kTileRows8).
/// The weights are the result of a product, still in its layout. For tf32 the order of the 8 summed rows is chosen to
/// suit it: k index t is row 2t, k index t + 4 is row 2t + 1.
template <class Mma, int kColumns, int kRowTiles, int kTileRows8>
__device__ void multiply_add(float (&sum)[kRowTiles][kColumns / 8][4], const float (&weights)[kRowTiles][kTileRows8][4],
                             const unsigned char* tile, int first_row) {
  using T = Tile<Mma, kColumns>;
  const int lane = threadIdx.x & 31;
  if constexpr (Mma::kDepth == 8) {
    const std::uint32_t address =
        shared_address(tile) + (first_row + 2 * (lane & 3)) * T::kStride + (lane >> 2) * sizeof(float);
#pragma unroll
    for (int k = 0; k < kTileRows8; ++k) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const float(&w)[4] = weights[m][k];
        a[m][0] = __float_as_uint(Mma::rounded(w[0]));
        a[m][1] = __float_as_uint(Mma::rounded(w[2]));
        a[m][2] = __float_as_uint(Mma::rounded(w[1]));
        a[m][3] = __float_as_uint(Mma::rounded(w[3]));
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const std::uint32_t word = address + k * 8 * T::kStride + n * 32;
        const std::uint32_t b0 = load_word(word);
        const std::uint32_t b1 = load_word(word + T::kStride);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) Mma::multiply(sum[m][n], a[m], b0, b1);
      }
    }
  } else {
    static_assert(kTileRows8 % 2 == 0);
    // Matrices: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
    const std::uint32_t address = shared_address(tile) + (first_row + (lane & 15)) * T::kStride + (lane >> 4) * 16;
#pragma unroll
    for (int k = 0; k < kTileRows8; k += 2) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const float(&low)[4] = weights[m][k];
        const float(&high)[4] = weights[m][k + 1];
        a[m][0] = Mma::pack(low[0], low[1]);
        a[m][1] = Mma::pack(low[2], low[3]);
        a[m][2] = Mma::pack(high[0], high[1]);
        a[m][3] = Mma::pack(high[2], high[3]);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
        std::uint32_t b[4];
        load_matrices_transposed(address + k * 8 * T::kStride + n * 16, b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          Mma::multiply(sum[m][n], a[m], b[0], b[1]);
          Mma::multiply(sum[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
}

/// Hides scores of keys (columns if kKeysInColumns, else rows) that come after the query. `column` and `row` are the
/// positions of the block's first column and row.
template <bool kKeysInColumns, int kRowTiles, int kColumnTiles>
__device__ void hide_later_keys(float (&s)[kRowTiles][kColumnTiles][4], int row, int column) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int own = row + 16 * m + (lane >> 2) + 8 * (i >> 1);
        const int other = column + 8 * n + 2 * (lane & 3) + (i & 1);
        if (kKeysInColumns ? other > own : own > other) s[m][n][i] = -INFINITY;
      }
    }
  }
}

/// Sum and maximum over the four lanes that share a row of a product.
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffU, x, 1);
  return x + __shfl_xor_sync(0xffffffffU, x, 2);
}
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffU, x, 2));
}

__device__ inline void store_four(float* to, const float (&x)[4], bool accumulate) {
  float4 v = make_float4(x[0], x[1], x[2], x[3]);
  if (accumulate) {
    const float4 old = *reinterpret_cast<const float4*>(to);
    v = make_float4(v.x + old.x, v.y + old.y, v.z + old.z, v.w + old.w);
  }
  *reinterpret_cast<float4*>(to) = v;
}
__device__ inline void store_four(__nv_bfloat16* to, const float (&x)[4], bool accumulate) {
  float v[4] = {x[0], x[1], x[2], x[3]};
  if (accumulate) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] += __bfloat162float(to[i]);
  }
  uint2 packed;
  packed.x = Bf16::pack(v[0], v[1]);
  packed.y = Bf16::pack(v[2], v[3]);
  *reinterpret_cast<uint2*>(to) = packed;
}

/// Writes 16 rows of a product: `low` times rows g, `high` times rows g + 8; only rows below `rows`, and columns of
/// the head. Neighbouring lanes swap halves of two column tiles first, so that each stores four consecutive columns.
template <class Out, int kColumnTiles>
__device__ void store_rows(Out* to, std::int64_t row_stride, const float (&sum)[kColumnTiles][4], float low, float high,
                           int rows, const Params& p, bool accumulate) {
  const int lane = threadIdx.x & 31;
  const bool odd = lane & 1;
  to += (lane >> 2) * row_stride + 8 * (lane & 1) + 2 * (lane & 2);
  const int head_dim = p.head_dim - 8 * (lane & 1) - 2 * (lane & 2);
  // One loop for each way to store, so that what surrounds the swaps is free of branches that lanes may take apart.
  const auto each_four = [&](auto store) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = half == 0 ? low : high;
        const float x0 = sum[n][2 * half] * factor;
        const float x1 = sum[n][2 * half + 1] * factor;
        const float z0 = sum[n + 1][2 * half] * factor;
        const float z1 = sum[n + 1][2 * half + 1] * factor;
        const float r0 = __shfl_xor_sync(0xffffffffU, odd ? x0 : z0, 1);
        const float r1 = __shfl_xor_sync(0xffffffffU, odd ? x1 : z1, 1);
        const float four[4] = {odd ? r0 : x0, odd ? r1 : x1, odd ? z0 : r0, odd ? z1 : r1};
        const int columns = (lane >> 2) + 8 * half < rows ? head_dim - 8 * n : 0;  // that are left to store
        store(to + 8 * half * row_stride + 8 * n, four, columns);
      }
    }
  };
  if (p.vector && !accumulate) {
    each_four([](Out* out, const float(&x)[4], int columns) {
      if (columns > 0) store_four(out, x, false);
    });
  } else if (p.vector) {
    each_four([](Out* out, const float(&x)[4], int columns) {
      if (columns > 0) store_four(out, x, true);
    });
  } else {
    each_four([accumulate](Out* out, const float(&x)[4], int columns) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < columns) out[i] = Out(x[i] + (accumulate ? static_cast<float>(out[i]) : 0.f));
      }
    });
  }
}

}  // namespace graft::cuda::attention
