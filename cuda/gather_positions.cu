#include "cuda/launch.cuh"
#include "ops/gather_positions.h"

namespace graft::cuda {
namespace {

template <class T>
__global__ void gather_kernel(const T* x, float* y, std::int64_t elements, std::int64_t tokens, std::int64_t width,
                              std::int64_t count, std::int64_t columns, std::int64_t stride, std::int64_t offset) {
  const std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= elements) return;
  const std::int64_t c = e % columns;
  const std::int64_t i = e / columns % count;
  const std::int64_t b = e / columns / count;
  y[e] = to_float(x[(b * tokens + i * stride + offset) * width + c]);
}

void gather(Stream& stream, const GatherPositions& args) {
  constexpr int kThreads = 256;
  const std::int64_t elements = args.y.shape.elements();
  with_type(args.x.dtype, "gather_positions", [&](auto type) {
    using T = typename decltype(type)::type;
    gather_kernel<T><<<blocks_for(elements, kThreads), kThreads, 0, handle(stream)>>>(
        args.x.as<T>(), args.y.as<float>(), elements, args.x.shape[1], args.x.shape[2], args.y.shape[1],
        args.y.shape[2], args.stride, args.offset);
  });
  check(cudaGetLastError());
}

const Register registered{gather_positions_kernel, Backend::Cuda, gather};

}  // namespace
}  // namespace graft::cuda
