#include <cstdint>

#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "ops/glu.h"
#include "ops/silu_formula.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread has kGroup columns of the output, and the same columns of both halves of the input.
struct Place {
  std::int64_t row;
  int column;
};
[[nodiscard]] __device__ __forceinline__ Place place(std::int64_t rows, int half) {
  const auto groups = static_cast<unsigned>((half + kGroup - 1) / kGroup);
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = i / groups;
  return {row < rows ? row : -1, static_cast<int>(i - row * groups) * kGroup};
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* x, T* y, std::int64_t rows, int half) {
  const Place here = place(rows, half);
  if (here.row < 0) return;
  float a[kGroup], b[kGroup];
  load_group<kAligned>(x + here.row * 2 * half, here.column, half, a);
  load_group<kAligned>(x + here.row * 2 * half + half, here.column, half, b);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) a[i] *= sigmoid(b[i]);
  store_group<kAligned>(y + here.row * half, here.column, half, a);
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* dy, const T* x, T* dx, bool accumulate, std::int64_t rows, int half) {
  const Place here = place(rows, half);
  if (here.row < 0) return;
  float a[kGroup], b[kGroup], d[kGroup];
  load_group<kAligned>(x + here.row * 2 * half, here.column, half, a);
  load_group<kAligned>(x + here.row * 2 * half + half, here.column, half, b);
  load_group<kAligned>(dy + here.row * half, here.column, half, d);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const float gate = sigmoid(b[i]);
    b[i] = d[i] * a[i] * gate * (1.F - gate);
    a[i] = d[i] * gate;
  }
  store_or_add_group<kAligned>(dx + here.row * 2 * half, accumulate, here.column, half, a);
  store_or_add_group<kAligned>(dx + here.row * 2 * half + half, accumulate, here.column, half, b);
}

void launch_forward(Stream& stream, const GluForward& args) {
  const std::int64_t rows = args.y.shape.rows();
  const int half = static_cast<int>(args.y.shape.columns());
  const unsigned blocks = blocks_for(rows * ceil_div(half, kGroup), kThreads);
  with_type(args.x.dtype, "glu_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    if (groups_aligned(half, args.x.data, args.y.data)) {
      forward_kernel<T, true><<<blocks, kThreads, 0, handle(stream)>>>(args.x.as<T>(), args.y.as<T>(), rows, half);
    } else {
      forward_kernel<T, false><<<blocks, kThreads, 0, handle(stream)>>>(args.x.as<T>(), args.y.as<T>(), rows, half);
    }
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const GluBackward& args) {
  if (!args.dx) return;
  const std::int64_t rows = args.dy.shape.rows();
  const int half = static_cast<int>(args.dy.shape.columns());
  const unsigned blocks = blocks_for(rows * ceil_div(half, kGroup), kThreads);
  with_type(args.x.dtype, "glu_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    if (groups_aligned(half, args.x.data, args.dy.data, args.dx.view.data)) {
      backward_kernel<T, true><<<blocks, kThreads, 0, handle(stream)>>>(
          args.dy.as<T>(), args.x.as<T>(), args.dx.view.as<T>(), args.dx.accumulate, rows, half);
    } else {
      backward_kernel<T, false><<<blocks, kThreads, 0, handle(stream)>>>(
          args.dy.as<T>(), args.x.as<T>(), args.dx.view.as<T>(), args.dx.accumulate, rows, half);
    }
  });
  check(cudaGetLastError());
}

const Register forward{glu_forward, Backend::Cuda, launch_forward};
const Register backward{glu_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
