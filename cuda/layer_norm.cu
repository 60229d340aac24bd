#include <cstdint>
#include <string>

#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/layer_norm.h"

// A row stays in registers: `kLanes` threads (a warp, or a block of 256) hold kVectors groups of four columns each,
// group v of lane l being columns 4 * (v * kLanes + l) ... + 3. With kAligned, groups are moved by one access and never
// straddle the end of a row; without it, element by element.

namespace graft::cuda {
namespace {

constexpr int kWideLanes = 256;

template <int kLanes, class T>
__device__ __forceinline__ T row_sum(T value) {
  if constexpr (kLanes == kWarp) {
    return warp_sum(value);
  } else {
    return block_sum<kLanes>(value);
  }
}

// ---- forward

template <class X, class Y>
struct Forward {
  const X* x;
  const void* branch;
  const float* gain;
  const float* bias;
  X* sum;
  Y* y;
  float* mean;
  float* rstd;
  std::int64_t rows;
  int width;
  float eps;
  bool float_branch;  // else of type Y
};

constexpr int kForwardThreads = 128;  // of a block where a warp has a row

template <class X, class Y, int kLanes, int kVectors, bool kAligned>
__global__ void __launch_bounds__(kLanes == kWarp ? kForwardThreads : kLanes) forward_kernel(const Forward<X, Y> p) {
  constexpr int kRows = kLanes == kWarp ? kForwardThreads / kWarp : 1;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRows + threadIdx.x / kLanes;
  if (row >= p.rows) return;  // whole warps (kLanes == 32) or nobody (one row a block)
  const std::int64_t start = row * p.width;

  float x[kVectors][kGroup];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) load_group<kAligned>(p.x + start, (v * kLanes + lane) * kGroup, p.width, x[v]);
  if (p.branch != nullptr) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int column = (v * kLanes + lane) * kGroup;
      float branch[kGroup];
      if (p.float_branch) {
        load_group<kAligned>(static_cast<const float*>(p.branch) + start, column, p.width, branch);
      } else {
        load_group<kAligned>(static_cast<const Y*>(p.branch) + start, column, p.width, branch);
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) x[v][j] += branch[j];
    }
    if (p.sum != nullptr) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        store_group<kAligned>(p.sum + start, (v * kLanes + lane) * kGroup, p.width, x[v]);
      }
    }
  }

  // small rows: ask for gain and bias before the reductions, whose latency then hides theirs
  constexpr bool kEarly = kVectors <= 4;
  float gain[kEarly ? kVectors : 1][kGroup], bias[kEarly ? kVectors : 1][kGroup];
  if constexpr (kEarly) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      load_group<kAligned>(p.gain, (v * kLanes + lane) * kGroup, p.width, gain[v]);
      load_group<kAligned>(p.bias, (v * kLanes + lane) * kGroup, p.width, bias[v]);
    }
  }

  const float inverse_width = 1.F / static_cast<float>(p.width);
  float total = 0.F;  // columns beyond the row were loaded as zeros
#pragma unroll
  for (int v = 0; v < kVectors; ++v) total += (x[v][0] + x[v][1]) + (x[v][2] + x[v][3]);
  const float mean = row_sum<kLanes>(total) * inverse_width;
  float squares = 0.F;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float centred = x[v][j] - mean;
      if ((v * kLanes + lane) * kGroup + j < p.width) squares += centred * centred;
    }
  }
  const float rstd = rsqrtf(row_sum<kLanes>(squares) * inverse_width + p.eps);
  if (lane == 0 && p.mean != nullptr) {
    p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = (v * kLanes + lane) * kGroup;
    constexpr int kLast = kEarly ? kVectors - 1 : 0;
    if constexpr (!kEarly) {
      load_group<kAligned>(p.gain, column, p.width, gain[0]);
      load_group<kAligned>(p.bias, column, p.width, bias[0]);
    }
    float y[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      y[j] = (x[v][j] - mean) * rstd * gain[v < kLast ? v : kLast][j] + bias[v < kLast ? v : kLast][j];
    }
    store_group<kAligned>(p.y + start, column, p.width, y);
  }
}

// ---- backward

template <class X, class Y>
struct Backward {
  const X* dsum;
  const Y* dy;
  const X* x;
  const float* gain;
  const float* mean;
  const float* rstd;
  float* partial;
  X* dx;
  bf16* dbranch;
  std::int64_t rows;
  std::int64_t rows_a_block;
  int width;
  bool accumulate_dx;
  bool accumulate_dbranch;
};

constexpr int kBackwardThreads = 384;  // of a block where a warp has a row: two blocks of 80 registers a multiprocessor

template <class X, class Y, int kLanes, int kVectors, bool kAligned>
__global__ void __launch_bounds__(kLanes == kWarp ? kBackwardThreads : kLanes, kLanes == kWarp && kVectors <= 2 ? 2 : 1)
    backward_kernel(const Backward<X, Y> p) {
  constexpr int kRows = kLanes == kWarp ? kBackwardThreads / kWarp : 1;  // rows at a time
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const std::int64_t first = std::int64_t{blockIdx.x} * p.rows_a_block;
  const std::int64_t last = min(p.rows, first + p.rows_a_block);
  const float inverse_width = 1.F / static_cast<float>(p.width);

  float dgain[kVectors][kGroup] = {}, dbias[kVectors][kGroup] = {};  // of this thread's columns, over its rows
  for (std::int64_t row = first + group; row < last; row += kRows) {
    const std::int64_t start = row * p.width;
    float d[kVectors][kGroup] = {};
    if (p.dy != nullptr) {
      float x[kVectors][kGroup], dy[kVectors][kGroup];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int column = (v * kLanes + lane) * kGroup;
        load_group<kAligned>(p.dy + start, column, p.width, dy[v]);
        load_group<kAligned>(p.x + start, column, p.width, x[v]);
      }
      if (p.dsum != nullptr) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          load_group<kAligned>(p.dsum + start, (v * kLanes + lane) * kGroup, p.width, d[v]);
        }
      }
      const float mean = p.mean[row];
      const float rstd = p.rstd[row];
      float2 along{0.F, 0.F};  // dxhat along the constant vector and along xhat
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float gain[kGroup];
        load_group<kAligned>(p.gain, (v * kLanes + lane) * kGroup, p.width, gain);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          x[v][j] = (x[v][j] - mean) * rstd;
          dgain[v][j] += dy[v][j] * x[v][j];
          dbias[v][j] += dy[v][j];
          dy[v][j] *= gain[j];  // zero beyond the row
          along.x += dy[v][j];
          along.y += dy[v][j] * x[v][j];
        }
      }
      along = row_sum<kLanes>(along);
      along.x *= inverse_width;
      along.y *= inverse_width;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) d[v][j] += rstd * (dy[v][j] - along.x - x[v][j] * along.y);
      }
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        load_group<kAligned>(p.dsum + start, (v * kLanes + lane) * kGroup, p.width, d[v]);
      }
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int column = (v * kLanes + lane) * kGroup;
      if (p.dx != nullptr) store_or_add_group<kAligned>(p.dx + start, p.accumulate_dx, column, p.width, d[v]);
      if (p.dbranch != nullptr) {
        store_or_add_group<kAligned>(p.dbranch + start, p.accumulate_dbranch, column, p.width, d[v]);
      }
    }
  }
  if (p.partial == nullptr) return;

  float* const partial = p.partial + std::int64_t{blockIdx.x} * 2 * p.width;  // [2, D] of this block
  if constexpr (kRows == 1) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int column = (v * kLanes + lane) * kGroup;
      store_group<kAligned>(partial, column, p.width, dgain[v]);
      store_group<kAligned>(partial + p.width, column, p.width, dbias[v]);
    }
  } else {
    constexpr int kSpan = kWarp * kGroup;  // columns of one group of all lanes
    __shared__ float4 parts[kRows][2][kWarp];
    const float* const flat = &parts[0][0][0].x;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v > 0) __syncthreads();
      parts[group][0][lane] = make_float4(dgain[v][0], dgain[v][1], dgain[v][2], dgain[v][3]);
      parts[group][1][lane] = make_float4(dbias[v][0], dbias[v][1], dbias[v][2], dbias[v][3]);
      __syncthreads();
      const int i = static_cast<int>(threadIdx.x);
      const int column = v * kSpan + i % kSpan;
      if (i < 2 * kSpan && column < p.width) {
        float total = 0.F;
#pragma unroll
        for (int part = 0; part < kRows; ++part) total += flat[part * 2 * kSpan + i];
        partial[i / kSpan * p.width + column] = total;
      }
    }
  }
}

/// Adds the partial sums of all row blocks: dgain and dbias, one column a thread of the first dimension.
__global__ void __launch_bounds__(kWarp* kWarp)
    finish_kernel(const float* partial, int blocks, int width, float* dgain, bool accumulate_dgain, float* dbias,
                  bool accumulate_dbias) {
  __shared__ float parts[kWarp][kWarp + 1];
  const int lane = static_cast<int>(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.y);
  const int columns = 2 * width;  // gain's, then bias's
  const int mine = static_cast<int>(blockIdx.x) * kWarp + lane;
  float total = 0.F;
  if (mine < columns) {
#pragma unroll 8
    for (int block = warp; block < blocks; block += kWarp) {
      total += partial[static_cast<std::int64_t>(block) * columns + mine];
    }
  }
  parts[warp][lane] = total;
  __syncthreads();
  total = warp_sum(parts[lane][warp]);
  const int column = static_cast<int>(blockIdx.x) * kWarp + warp;
  if (lane != 0 || column >= columns) return;
  const bool is_gain = column < width;
  float* const to = is_gain ? dgain : dbias;
  if (to == nullptr) return;
  const int i = is_gain ? column : column - width;
  to[i] = (is_gain ? accumulate_dgain : accumulate_dbias) ? to[i] + total : total;
}

// ---- launchers

template <int kLanes_, int kVectors_, bool kAligned_>
struct Layout {
  static constexpr int kLanes = kLanes_;
  static constexpr int kVectors = kVectors_;
  static constexpr bool kAligned = kAligned_;
};

template <class T, class U>
struct Types {
  using X = T;
  using Y = U;
};

/// Calls body(Types<X, Y>{}) for the stream dtype X and compute dtype Y of the arguments.
template <class Body>
void with_types(DType x, DType y, const char* kernel, Body&& body) {
  if (x == DType::F32 && y == DType::F32) return body(Types<float, float>{});
  if (x == DType::F32 && y == DType::BF16) return body(Types<float, bf16>{});
  if (x == DType::BF16 && y == DType::BF16) return body(Types<bf16, bf16>{});
  throw DeviceError(std::string(kernel) + ": x is " + name_of(x) + " and y is " + name_of(y) +
                    ", expected float32 or bfloat16 (float64 runs on the CPU only)");
}

void launch_forward(Stream& stream, const LayerNormForward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const int width = static_cast<int>(args.x.shape.columns());
  const bool vectors =
      groups_aligned(width, args.x.data, args.branch.data, args.gain.data, args.bias.data, args.sum.data, args.y.data);
  with_types(args.x.dtype, args.y.dtype, "layer_norm_forward", [&](auto types) {
    using X = typename decltype(types)::X;
    using Y = typename decltype(types)::Y;
    const Forward<X, Y> p{args.x.as<X>(),
                          args.branch.data,
                          args.gain.as<float>(),
                          args.bias.as<float>(),
                          args.sum.as<X>(),
                          args.y.as<Y>(),
                          args.mean.as<float>(),
                          args.rstd.as<float>(),
                          rows,
                          width,
                          static_cast<float>(args.eps),
                          args.branch.dtype == DType::F32};
    const auto run = [&](auto layout) {
      using L = decltype(layout);
      constexpr bool kNarrow = L::kLanes == kWarp;
      forward_kernel<X, Y, L::kLanes, L::kVectors, L::kAligned>
          <<<blocks_for(rows, kNarrow ? kForwardThreads / kWarp : 1), kNarrow ? kForwardThreads : L::kLanes, 0,
             handle(stream)>>>(p);
    };
    if (!vectors) {
      if (width <= 512) return run(Layout<kWarp, 4, false>{});
      return run(Layout<kWideLanes, 8, false>{});
    }
    if (width <= 128) return run(Layout<kWarp, 1, true>{});
    if (width <= 256) return run(Layout<kWarp, 2, true>{});
    if (width <= 512) return run(Layout<kWarp, 4, true>{});
    if (width <= 1024) return run(Layout<kWarp, 8, true>{});
    if (width <= 2048) return run(Layout<kWideLanes, 2, true>{});
    return run(Layout<kWideLanes, 8, true>{});
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const LayerNormBackward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const int width = static_cast<int>(args.x.shape.columns());
  const std::int64_t blocks = layer_norm_row_blocks(rows);
  if ((args.dx && args.dx.view.dtype != args.x.dtype) || (args.dbranch && args.dbranch.view.dtype != DType::BF16)) {
    throw DeviceError("layer_norm_backward: gradients are not of the dtypes of x and of a bfloat16 branch");
  }
  const bool vectors = groups_aligned(width, args.dsum.data, args.dy.data, args.x.data, args.gain.data,
                                      args.partial.data, args.dx.view.data, args.dbranch.view.data);
  const DType y = args.dy ? args.dy.dtype : args.x.dtype;
  with_types(args.x.dtype, y, "layer_norm_backward", [&](auto types) {
    using X = typename decltype(types)::X;
    using Y = typename decltype(types)::Y;
    const Backward<X, Y> p{args.dsum.as<X>(),
                           args.dy.as<Y>(),
                           args.x.as<X>(),
                           args.gain.as<float>(),
                           args.mean.as<float>(),
                           args.rstd.as<float>(),
                           args.partial.as<float>(),
                           args.dx.view.as<X>(),
                           args.dbranch.view.as<bf16>(),
                           rows,
                           ceil_div(rows, blocks),
                           width,
                           args.dx.accumulate,
                           args.dbranch.accumulate};
    const auto run = [&](auto layout) {
      using L = decltype(layout);
      backward_kernel<X, Y, L::kLanes, L::kVectors, L::kAligned>
          <<<static_cast<unsigned>(blocks), L::kLanes == kWarp ? kBackwardThreads : L::kLanes, 0, handle(stream)>>>(p);
    };
    if (!vectors) {
      if (width <= 512) return run(Layout<kWarp, 4, false>{});
      return run(Layout<kWideLanes, 8, false>{});
    }
    if (width <= 128) return run(Layout<kWarp, 1, true>{});
    if (width <= 256) return run(Layout<kWarp, 2, true>{});
    if (width <= 512) return run(Layout<kWarp, 4, true>{});
    if (width <= 1024) return run(Layout<kWideLanes, 1, true>{});
    if (width <= 2048) return run(Layout<kWideLanes, 2, true>{});
    return run(Layout<kWideLanes, 8, true>{});
  });
  check(cudaGetLastError());
  if (!args.partial) return;
  finish_kernel<<<blocks_for(2 * width, kWarp), dim3(kWarp, kWarp), 0, handle(stream)>>>(
      args.partial.as<float>(), static_cast<int>(blocks), width, args.dgain.view.as<float>(), args.dgain.accumulate,
      args.dbias.view.as<float>(), args.dbias.accumulate);
  check(cudaGetLastError());
}

const Register forward{layer_norm_forward, Backend::Cuda, launch_forward};
const Register backward{layer_norm_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
