#include "cuda/launch.cuh"
#include "train/metrics.h"

namespace graft::cuda {
namespace {

__global__ void write_metrics_kernel(const float* loss, const StepState* state, MetricsRow* ring,
                                     std::int64_t capacity) {
  ring[state->step % static_cast<std::uint64_t>(capacity)] = metrics_row(*state, static_cast<double>(*loss));
}

void write(Stream& stream, const WriteMetrics& args) {
  write_metrics_kernel<<<1, 1, 0, handle(stream)>>>(args.loss.as<float>(), args.state, args.ring, args.capacity);
  check(cudaGetLastError());
}

__global__ void place_rows_kernel(const float* from, float* to, std::int64_t elements, const StepState* state) {
  const std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e < elements) to[static_cast<std::int64_t>(state->step) * elements + e] = from[e];
}

void place(Stream& stream, const PlaceRows& args) {
  constexpr int kThreads = 256;
  const std::int64_t elements = args.from.shape.elements();
  place_rows_kernel<<<blocks_for(elements, kThreads), kThreads, 0, handle(stream)>>>(
      args.from.as<float>(), args.to.as<float>(), elements, args.state);
  check(cudaGetLastError());
}

const Register write_registered{write_metrics, Backend::Cuda, write};
const Register place_registered{place_rows, Backend::Cuda, place};

}  // namespace
}  // namespace graft::cuda
