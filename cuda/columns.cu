#include "cuda/launch.cuh"
#include "ops/columns.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void forward_kernel(const T* x, T* y, std::int64_t elements, std::int64_t from_width, std::int64_t to_width,
                               std::int64_t offset, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= elements) return;
  const std::int64_t column = i % to_width;
  y[i] = column < count ? x[i / to_width * from_width + offset + column] : from_float<T>(0.F);
}

template <class T>
__global__ void backward_kernel(const T* dy, T* dx, std::int64_t elements, std::int64_t from_width,
                                std::int64_t to_width, std::int64_t offset, std::int64_t count, bool accumulate) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= elements) return;
  const T value = dy[i / count * from_width + i % count];
  T& to = dx[i / count * to_width + offset + i % count];
  to = accumulate ? from_float<T>(to_float(to) + to_float(value)) : value;
}

void forward(Stream& stream, const ColumnsForward& args) {
  const std::int64_t elements = args.y.shape.elements();
  with_type(args.x.dtype, "columns_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    forward_kernel<T><<<blocks_for(elements, kThreads), kThreads, 0, handle(stream)>>>(
        args.x.as<T>(), args.y.as<T>(), elements, args.x.shape.columns(), args.y.shape.columns(), args.offset,
        args.count);
  });
  check(cudaGetLastError());
}

void backward(Stream& stream, const ColumnsBackward& args) {
  if (!args.dx) return;
  const std::int64_t elements = args.dy.shape.rows() * args.count;
  with_type(args.dy.dtype, "columns_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    backward_kernel<T><<<blocks_for(elements, kThreads), kThreads, 0, handle(stream)>>>(
        args.dy.as<T>(), args.dx.view.as<T>(), elements, args.dy.shape.columns(), args.dx.view.shape.columns(),
        args.offset, args.count, args.dx.accumulate);
  });
  check(cudaGetLastError());
}

const Register forward_registered{columns_forward, Backend::Cuda, forward};
const Register backward_registered{columns_backward, Backend::Cuda, backward};

}  // namespace
}  // namespace graft::cuda
