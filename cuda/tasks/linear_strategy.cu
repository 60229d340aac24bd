#include "tasks/linear_strategy.h"

#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace graft::cuda {
namespace {

/// A warp draws a sequence.
struct WarpLanes {
  int lane;
  __device__ WarpLanes() : lane(static_cast<int>(threadIdx.x) % kWarp) {}
  [[nodiscard]] __device__ int first() const { return lane; }
  [[nodiscard]] __device__ int count() const { return kWarp; }
  template <class T>
  [[nodiscard]] __device__ T sum(T value) const {
    return warp_sum(value);
  }
  __device__ void sync() const { __syncwarp(); }
};

__global__ void rotation_kernel(SampleStrategy args) {
  draw_rotation(WarpLanes{}, args.law, args.state->seed, args.rotation.as<float>());
}

__global__ void sums_kernel(SampleStrategy args) { sum_slot(WarpLanes{}, args, blockIdx.x); }

/// One warp a block: a batch of evaluation has about as many sequences as a GPU has multiprocessors.
template <class T>
__global__ void sample_kernel(SampleStrategy args) {
  const WarpLanes lanes;
  const std::int64_t sequence = blockIdx.x;
  int position = -1;
  const StrategyRoom room = draw_sequence(lanes, args, sequence, &position);  // ends in step
  const int width = static_cast<int>(args.tokens.shape.columns());
  const int points = args.law.points;
  const int dim = args.law.dim;
  T* tokens = args.tokens.as<T>() + sequence * 2 * points * width;
  for (int e = lanes.first(); e < points * width; e += lanes.count()) {
    const int i = e / width;
    const int j = e % width;
    T* x = tokens + static_cast<std::int64_t>(2 * i) * width + j;
    x[0] = from_float<T>(j < dim ? room.xs[static_cast<std::int64_t>(i) * dim + j] : 0.F);
    x[width] = from_float<T>(j == 0 ? room.labels[i] : 0.F);
  }
  for (int i = lanes.first(); i < points; i += lanes.count()) {
    args.targets.as<float>()[sequence * points + i] = room.labels[i];
    if (args.mask) args.mask.as<std::uint8_t>()[sequence * points + i] = i == position ? 1 : 0;
  }
}

void launch_rotation(Stream& stream, const SampleStrategy& args) {
  rotation_kernel<<<1, kWarp, 0, handle(stream)>>>(args);
  check(cudaGetLastError());
}

void launch_sums(Stream& stream, const SampleStrategy& args) {
  const std::int64_t slots = args.sums.shape[0] * LinearStrategy::kGroup;
  sums_kernel<<<blocks_for(slots, 1), kWarp, 0, handle(stream)>>>(args);
  check(cudaGetLastError());
}

void launch_sample(Stream& stream, const SampleStrategy& args) {
  with_type(args.tokens.dtype, "sample_linear_strategy", [&](auto type) {
    using T = typename decltype(type)::type;
    sample_kernel<T><<<blocks_for(args.selection.batch, 1), kWarp, 0, handle(stream)>>>(args);
  });
  check(cudaGetLastError());
}

const Register rotation{draw_strategy_rotation, Backend::Cuda, launch_rotation};
const Register sums{sum_strategy_labels, Backend::Cuda, launch_sums};
const Register sampler{sample_linear_strategy, Backend::Cuda, launch_sample};

}  // namespace
}  // namespace graft::cuda
