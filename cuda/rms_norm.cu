#include <cstdint>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/row_layout.cuh"
#include "ops/rms_norm.h"

namespace graft::cuda {
namespace {

static_assert(kRmsNormMaxWidth <= kWidestRow);

// ---- forward

template <class X, class Y>
struct Forward {
  const X* x;
  AnyRows branch;
  const float* weight;
  X* sum;
  Y* y;
  float* rstd;
  std::int64_t rows;
  int width;
  float eps;
};

template <class X, class Y, class L>
__global__ void __launch_bounds__(L::kThreads) forward_kernel(const Forward<X, Y> p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * L::kRows + L::row();
  if (row >= p.rows) return;  // whole warps, or nobody where a block has one row
  const std::int64_t start = row * p.width;

  float x[L::kVectors][kGroup];
  L::load(p.x + start, p.width, x);
  if (p.branch.data != nullptr) {
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      float branch[kGroup];
      p.branch.template load<L::kAligned>(start, L::column(v), p.width, branch);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) x[v][j] += branch[j];
    }
    if (p.sum != nullptr) {
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) store_group<L::kAligned>(p.sum + start, L::column(v), p.width, x[v]);
    }
  }

  // small rows: ask for the weight before the reduction, whose latency then hides its own
  constexpr bool kEarly = L::kVectors <= 4;
  float weight[kEarly ? L::kVectors : 1][kGroup];
  if constexpr (kEarly) L::load(p.weight, p.width, weight);

  float squares = 0.F;  // columns beyond the row were loaded as zeros
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) {
    squares += (x[v][0] * x[v][0] + x[v][1] * x[v][1]) + (x[v][2] * x[v][2] + x[v][3] * x[v][3]);
  }
  const float rstd = rsqrtf(L::sum(squares) / static_cast<float>(p.width) + p.eps);
  if (L::lane() == 0 && p.rstd != nullptr) p.rstd[row] = rstd;
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) {
    if constexpr (!kEarly) load_group<L::kAligned>(p.weight, L::column(v), p.width, weight[0]);
    float y[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) y[j] = x[v][j] * rstd * weight[kEarly ? v : 0][j];
    store_group<L::kAligned>(p.y + start, L::column(v), p.width, y);
  }
}

// ---- backward

template <class X, class Y>
struct Backward {
  const X* dsum;
  const Y* dy;
  const X* x;
  const float* weight;
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

template <class X, class Y, class L>
__global__ void __launch_bounds__(L::kThreads, L::kVectors <= 2 ? 2 : 1) backward_kernel(const Backward<X, Y> p) {
  const std::int64_t first = std::int64_t{blockIdx.x} * p.rows_a_block;
  const std::int64_t last = min(p.rows, first + p.rows_a_block);

  float dweight[L::kVectors][kGroup] = {};  // of this thread's columns, over its rows
  for (std::int64_t row = first + L::row(); row < last; row += L::kRows) {
    const std::int64_t start = row * p.width;
    float d[L::kVectors][kGroup] = {};
    if (p.dsum != nullptr) L::load(p.dsum + start, p.width, d);
    if (p.dy != nullptr) {
      float x[L::kVectors][kGroup], dy[L::kVectors][kGroup];
      L::load(p.dy + start, p.width, dy);
      L::load(p.x + start, p.width, x);
      const float rstd = p.rstd[row];
      float along = 0.F;  // dxhat along xhat
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        float weight[kGroup];
        load_group<L::kAligned>(p.weight, L::column(v), p.width, weight);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          x[v][j] *= rstd;
          dweight[v][j] += dy[v][j] * x[v][j];
          dy[v][j] *= weight[j];  // zero beyond the row
          along += dy[v][j] * x[v][j];
        }
      }
      along = L::sum(along) / static_cast<float>(p.width);
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) d[v][j] += rstd * (dy[v][j] - x[v][j] * along);
      }
    }
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      const int column = L::column(v);
      if (p.dx != nullptr) store_or_add_group<L::kAligned>(p.dx + start, p.accumulate_dx, column, p.width, d[v]);
      if (p.dbranch != nullptr) {
        store_or_add_group<L::kAligned>(p.dbranch + start, p.accumulate_dbranch, column, p.width, d[v]);
      }
    }
  }
  if (p.partial != nullptr) L::store_sum_of_rows(dweight, p.partial + std::int64_t{blockIdx.x} * p.width, p.width);
}

__global__ void __launch_bounds__(kWarp* kWarp)
    finish_kernel(const float* partial, int blocks, int width, ParameterGradient dweight) {
  const auto [column, total] = column_total(partial, blocks, width);
  if (column >= 0) dweight.put(column, total);
}

// ---- launchers

template <class T, class U>
struct Types {
  using X = T;
  using Y = U;
};

/// Calls body(Types<X, Y>{}) for the dtypes X of the stream and Y of activations.
template <class Body>
void with_types(DType x, DType y, const char* kernel, Body&& body) {
  if (x == DType::F32 && y == DType::F32) return body(Types<float, float>{});
  if (x == DType::F32 && y == DType::BF16) return body(Types<float, bf16>{});
  if (x == DType::BF16 && y == DType::BF16) return body(Types<bf16, bf16>{});
  throw DeviceError(std::string(kernel) + ": x is " + name_of(x) + " and y is " + name_of(y) +
                    ", expected float32 or bfloat16 (float64 runs on the CPU only)");
}

void launch_forward(Stream& stream, const RmsNormForward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const int width = static_cast<int>(args.x.shape.columns());
  const bool aligned =
      groups_aligned(width, args.x.data, args.branch.data, args.weight.data, args.sum.data, args.y.data);
  with_types(args.x.dtype, args.y.dtype, "rms_norm_forward", [&](auto types) {
    using X = typename decltype(types)::X;
    using Y = typename decltype(types)::Y;
    const Forward<X, Y> p{args.x.as<X>(),
                          {const_cast<void*>(args.branch.data), args.branch.dtype == DType::BF16},
                          args.weight.as<float>(),
                          args.sum.as<X>(),
                          args.y.as<Y>(),
                          args.rstd.as<float>(),
                          rows,
                          width,
                          static_cast<float>(args.eps)};
    with_row_layout<128, 1024>(width, aligned, [&](auto layout) {
      using L = decltype(layout);
      forward_kernel<X, Y, L><<<blocks_for(rows, L::kRows), L::kThreads, 0, handle(stream)>>>(p);
    });
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const RmsNormBackward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const int width = static_cast<int>(args.x.shape.columns());
  const std::int64_t blocks = rms_norm_row_blocks(rows);
  if ((args.dx && args.dx.view.dtype != args.x.dtype) || (args.dbranch && args.dbranch.view.dtype != DType::BF16)) {
    throw DeviceError("rms_norm_backward: gradients are not of the dtypes of x and of a bfloat16 branch");
  }
  const bool aligned = groups_aligned(width, args.dsum.data, args.dy.data, args.x.data, args.weight.data,
                                      args.partial.data, args.dx.view.data, args.dbranch.view.data);
  const DType y = args.dy ? args.dy.dtype : args.x.dtype;
  with_types(args.x.dtype, y, "rms_norm_backward", [&](auto types) {
    using X = typename decltype(types)::X;
    using Y = typename decltype(types)::Y;
    const Backward<X, Y> p{args.dsum.as<X>(),
                           args.dy.as<Y>(),
                           args.x.as<X>(),
                           args.weight.as<float>(),
                           args.rstd.as<float>(),
                           args.partial.as<float>(),
                           args.dx.view.as<X>(),
                           args.dbranch.view.as<bf16>(),
                           rows,
                           ceil_div(rows, blocks),
                           width,
                           args.dx.accumulate,
                           args.dbranch.accumulate};
    with_row_layout<384, 512>(width, aligned, [&](auto layout) {
      using L = decltype(layout);
      backward_kernel<X, Y, L><<<static_cast<unsigned>(blocks), L::kThreads, 0, handle(stream)>>>(p);
    });
  });
  check(cudaGetLastError());
  if (!args.partial) return;
  finish_kernel<<<blocks_for(width, kWarp), dim3(kWarp, kWarp), 0, handle(stream)>>>(
      args.partial.as<float>(), static_cast<int>(blocks), width, parameter_gradient(args.dweight, "rms_norm_backward"));
  check(cudaGetLastError());
}

const Register forward{rms_norm_forward, Backend::Cuda, launch_forward};
const Register backward{rms_norm_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
