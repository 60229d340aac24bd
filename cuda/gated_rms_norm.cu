#include <cstdint>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/row_layout.cuh"
#include "ops/gated_rms_norm.h"
#include "ops/silu_formula.h"

// What stays in registers is one group of one row.

namespace graft::cuda {
namespace {

static_assert(kGatedRmsNormMaxGroup <= kWidestRow);

// ---- forward

template <class T>
struct Forward {
  const T* x;
  const T* z;  // at the first of the gate's columns
  const float* weight;
  T* y;
  float* rstd;
  std::int64_t pieces;  // rows * groups
  std::int64_t z_row;
  int groups;
  int width;  // of a group
  float eps;
  bool norm_before_gate;
};

template <class T, class L>
__global__ void __launch_bounds__(L::kThreads) forward_kernel(const Forward<T> p) {
  const std::int64_t piece = std::int64_t{blockIdx.x} * L::kRows + L::row();
  if (piece >= p.pieces) return;  // whole warps, or nobody where a block has one piece
  const std::int64_t row = piece / p.groups;
  const std::int64_t start = (piece - row * p.groups) * p.width;  // columns before the group
  const T* const x_row = p.x + row * p.groups * p.width + start;
  const T* const z_row = p.z + row * p.z_row + start;
  T* const y_row = p.y + row * p.groups * p.width + start;

  float x[L::kVectors][kGroup], gate[L::kVectors][kGroup];
  L::load(x_row, p.width, x);
  L::load(z_row, p.width, gate);
  float squares = 0.F;  // columns beyond the group were loaded as zeros
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      gate[v][j] = silu(gate[v][j]);
      if (!p.norm_before_gate) x[v][j] *= gate[v][j];
      squares += x[v][j] * x[v][j];
    }
  }
  const float rstd = rsqrtf(L::sum(squares) / static_cast<float>(p.width) + p.eps);
  if (L::lane() == 0 && p.rstd != nullptr) p.rstd[piece] = rstd;
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) {
    float y[kGroup];
    load_group<L::kAligned>(p.weight + start, L::column(v), p.width, y);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      y[j] *= x[v][j] * rstd;
      if (p.norm_before_gate) y[j] *= gate[v][j];
    }
    store_group<L::kAligned>(y_row, L::column(v), p.width, y);
  }
}

// ---- backward

template <class T>
struct Backward {
  const T* dy;
  const T* x;
  const T* z;  // at the first of the gate's columns
  const float* weight;
  const float* rstd;
  float* partial;  // [row blocks, groups * width] or null
  T* dx;
  T* dz;  // at the first of the gate's columns, or null
  std::int64_t rows;
  std::int64_t rows_a_block;
  std::int64_t z_row;
  int groups;
  int width;  // of a group
  bool norm_before_gate;
  bool accumulate_dx;
  bool accumulate_dz;
};

/// A block has one group of consecutive rows.
template <class T, class L>
__global__ void __launch_bounds__(L::kThreads, L::kLanes == kWideLanes && L::kVectors <= 2 ? 3 : 1)
    backward_kernel(const Backward<T> p) {
  const std::int64_t row_block = blockIdx.x / p.groups;
  const std::int64_t start = std::int64_t{static_cast<int>(blockIdx.x) % p.groups} * p.width;  // columns before
  const std::int64_t row_width = std::int64_t{p.groups} * p.width;
  const std::int64_t last = min(p.rows, (row_block + 1) * p.rows_a_block);
  const float inverse_width = 1.F / static_cast<float>(p.width);

  float dweight[L::kVectors][kGroup] = {};  // of this thread's columns, over its rows
  for (std::int64_t row = row_block * p.rows_a_block + L::row(); row < last; row += L::kRows) {
    const std::int64_t at = row * row_width + start;
    const std::int64_t z_at = row * p.z_row + start;
    float x[L::kVectors][kGroup], z[L::kVectors][kGroup], dy[L::kVectors][kGroup];
    L::load(p.x + at, p.width, x);
    L::load(p.z + z_at, p.width, z);
    L::load(p.dy + at, p.width, dy);
    const float rstd = p.rstd[row * p.groups + start / p.width];
    float along = 0.F;  // gradient of what the weight multiplies, along it
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      float weight[kGroup];
      load_group<L::kAligned>(p.weight + start, L::column(v), p.width, weight);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float product = dy[v][j] * x[v][j] * rstd * silu(z[v][j]);  // dy * y / weight, whichever the order
        dweight[v][j] += product;
        along += product * weight[j];
      }
    }
    along = L::sum(along) * inverse_width;
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      const int column = L::column(v);
      float weight[kGroup];
      load_group<L::kAligned>(p.weight + start, column, p.width, weight);
      float dx[kGroup], dz[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float sigmoid_z = sigmoid(z[v][j]);
        const float gate = z[v][j] * sigmoid_z;
        const float slope = silu_slope(z[v][j], sigmoid_z);
        const float weighted = dy[v][j] * weight[j];
        if (p.norm_before_gate) {
          const float xhat = x[v][j] * rstd;
          dx[j] = rstd * (weighted * gate - xhat * along);
          dz[j] = weighted * xhat * slope;
        } else {
          const float du = rstd * (weighted - x[v][j] * gate * rstd * along);  // u = x * gate
          dx[j] = du * gate;
          dz[j] = du * x[v][j] * slope;
        }
      }
      if (p.dx != nullptr) store_or_add_group<L::kAligned>(p.dx + at, p.accumulate_dx, column, p.width, dx);
      if (p.dz != nullptr) store_or_add_group<L::kAligned>(p.dz + z_at, p.accumulate_dz, column, p.width, dz);
    }
  }
  if (p.partial != nullptr) L::store_sum_of_rows(dweight, p.partial + row_block * row_width + start, p.width);
}

__global__ void __launch_bounds__(kWarp* kWarp)
    finish_kernel(const float* partial, int blocks, std::int64_t width, ParameterGradient dweight) {
  const auto [column, total] = column_total(partial, blocks, width);
  if (column >= 0) dweight.put(column, total);
}

// ---- launchers

void launch_forward(Stream& stream, const GatedRmsNormForward& args) {
  const std::int64_t width = args.group_size;
  const std::int64_t groups = args.x.shape.columns() / width;
  const std::int64_t z_row = args.z.shape.columns();
  const bool aligned = z_row % kGroup == 0 && args.z_offset % kGroup == 0 &&
                       groups_aligned(width, args.x.data, args.z.data, args.weight.data, args.y.data);
  with_type(args.x.dtype, "gated_rms_norm_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    const Forward<T> p{args.x.as<T>(),
                       args.z.as<T>() + args.z_offset,
                       args.weight.as<float>(),
                       args.y.as<T>(),
                       args.rstd.as<float>(),
                       args.x.shape.rows() * groups,
                       z_row,
                       static_cast<int>(groups),
                       static_cast<int>(width),
                       static_cast<float>(args.eps),
                       args.norm_before_gate};
    with_row_layout<128, 512>(width, aligned, [&](auto layout) {
      using L = decltype(layout);
      forward_kernel<T, L><<<blocks_for(p.pieces, L::kRows), L::kThreads, 0, handle(stream)>>>(p);
    });
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const GatedRmsNormBackward& args) {
  const std::int64_t rows = args.x.shape.rows();
  const std::int64_t width = args.group_size;
  const std::int64_t groups = args.x.shape.columns() / width;
  const std::int64_t z_row = args.z.shape.columns();
  const std::int64_t blocks = gated_rms_norm_row_blocks(rows);
  if ((args.dx && args.dx.view.dtype != args.x.dtype) || (args.dz && args.dz.view.dtype != args.x.dtype)) {
    throw DeviceError("gated_rms_norm_backward: gradients of x and z are not of their dtype");
  }
  const bool aligned = z_row % kGroup == 0 && args.z_offset % kGroup == 0 &&
                       groups_aligned(width, args.dy.data, args.x.data, args.z.data, args.weight.data,
                                      args.partial.data, args.dx.view.data, args.dz.view.data);
  with_type(args.x.dtype, "gated_rms_norm_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    const Backward<T> p{args.dy.as<T>(),
                        args.x.as<T>(),
                        args.z.as<T>() + args.z_offset,
                        args.weight.as<float>(),
                        args.rstd.as<float>(),
                        args.partial.as<float>(),
                        args.dx.view.as<T>(),
                        args.dz ? args.dz.view.as<T>() + args.z_offset : nullptr,
                        rows,
                        ceil_div(rows, blocks),
                        z_row,
                        static_cast<int>(groups),
                        static_cast<int>(width),
                        args.norm_before_gate,
                        args.dx.accumulate,
                        args.dz.accumulate};
    with_row_layout<256, 512>(width, aligned, [&](auto layout) {
      using L = decltype(layout);
      backward_kernel<T, L><<<blocks_for(blocks * groups, 1), L::kThreads, 0, handle(stream)>>>(p);
    });
  });
  check(cudaGetLastError());
  if (!args.partial) return;
  finish_kernel<<<blocks_for(groups * width, kWarp), dim3(kWarp, kWarp), 0, handle(stream)>>>(
      args.partial.as<float>(), static_cast<int>(blocks), groups * width,
      parameter_gradient(args.dweight, "gated_rms_norm_backward"));
  check(cudaGetLastError());
}

const Register forward{gated_rms_norm_forward, Backend::Cuda, launch_forward};
const Register backward{gated_rms_norm_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
