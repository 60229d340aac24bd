#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/squared_error.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBackwardThreads = 256;

__device__ __forceinline__ void finish(double sum, double count, float* loss, float* weight) {
  const double factor = count > 0 ? 1 / count : 0;
  *loss = static_cast<float>(sum * factor);
  if (weight != nullptr) *weight = static_cast<float>(factor);
}

/// A block sums a run of consecutive elements. A single block has the whole sum and finishes at once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* predictions, const float* targets, const std::uint8_t* mask, double* partial, float* loss,
                   float* weight, unsigned elements_a_block, const SquaredErrorLayout layout) {
  // the op made sure that 32 bits are enough, and 64-bit divisions would take longer than all the rest
  const auto columns = static_cast<unsigned>(layout.options.columns);
  const auto points = static_cast<unsigned>(layout.points);
  const unsigned elements = static_cast<unsigned>(layout.batch) * points * columns;
  const unsigned first = blockIdx.x * elements_a_block;
  const unsigned last = min(elements, first + elements_a_block);
  float sum = 0.F;  // few terms a thread; the threads' sums are added in double
  int count = 0;
#pragma unroll 4
  for (unsigned i = first + threadIdx.x; i < last; i += kThreads) {
    const unsigned position = i / columns;
    const unsigned column = i - position * columns;
    const unsigned prompt = position / points;
    const unsigned point = position - prompt * points;
    const float error = to_float(predictions[layout.prediction_at(prompt, point) + column]) -
                        targets[layout.target_at(position) + column];
    if (mask == nullptr || mask[position] != 0) {
      sum += error * error;
      count += column == 0 || !layout.options.sum_columns ? 1 : 0;
    }
  }
  const double block_total = block_sum<kThreads>(static_cast<double>(sum));
  const double block_count = block_sum<kThreads>(static_cast<double>(count));
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    finish(block_total, block_count, loss, weight);
  } else {
    partial[2 * blockIdx.x] = block_total;
    partial[2 * blockIdx.x + 1] = block_count;
  }
}

__global__ void __launch_bounds__(kWarp) finish_kernel(const double* partial, int blocks, float* loss, float* weight) {
  double sum = 0;
  double count = 0;
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += kWarp) {
    sum += partial[2 * block];
    count += partial[2 * block + 1];
  }
  sum = warp_sum(sum);
  count = warp_sum(count);
  if (threadIdx.x == 0) finish(sum, count, loss, weight);
}

/// A thread has one element of dpredictions, zero or not.
template <class T>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(const float* dloss, const float* weight, const T* predictions, const float* targets,
                    const std::uint8_t* mask, T* dpredictions, bool accumulate, const SquaredErrorLayout layout) {
  const auto stored = static_cast<unsigned>(layout.stored_columns);
  const auto tokens = static_cast<unsigned>(layout.tokens);
  const unsigned i = blockIdx.x * kBackwardThreads + threadIdx.x;
  if (i >= static_cast<unsigned>(layout.batch) * tokens * stored) return;
  const unsigned row = i / stored;
  // wraps around for columns before the first that counts, so that one comparison is enough
  const unsigned column = i - row * stored - static_cast<unsigned>(layout.options.first_column);
  float d = 0.F;
  if (column < layout.options.columns) {
    const unsigned prompt = row / tokens;
    const int point = layout.point_of(static_cast<int>(row - prompt * tokens));
    const std::int64_t position = prompt * layout.points + point;
    if (point >= 0 && (mask == nullptr || mask[position] != 0)) {
      d = 2.F * *dloss * *weight * (to_float(predictions[i]) - targets[layout.target_at(position) + column]);
    }
  }
  dpredictions[i] = from_float<T>(accumulate ? to_float(dpredictions[i]) + d : d);
}

void launch_forward(Stream& stream, const SquaredErrorForward& args) {
  const std::int64_t elements = args.layout.elements();
  const std::int64_t blocks = squared_error_blocks(elements);
  with_type(args.predictions.dtype, "squared_error_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    forward_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, handle(stream)>>>(
        args.predictions.as<T>(), args.targets.as<float>(), args.mask.as<std::uint8_t>(), args.partial.as<double>(),
        args.loss.as<float>(), args.weight.as<float>(), static_cast<unsigned>(ceil_div(elements, blocks)), args.layout);
  });
  check(cudaGetLastError());
  if (blocks == 1) return;
  finish_kernel<<<1, kWarp, 0, handle(stream)>>>(args.partial.as<double>(), static_cast<int>(blocks),
                                                 args.loss.as<float>(), args.weight.as<float>());
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const SquaredErrorBackward& args) {
  if (!args.dpredictions) return;
  with_type(args.predictions.dtype, "squared_error_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    backward_kernel<T>
        <<<blocks_for(args.predictions.shape.elements(), kBackwardThreads), kBackwardThreads, 0, handle(stream)>>>(
            args.dloss.as<float>(), args.weight.as<float>(), args.predictions.as<T>(), args.targets.as<float>(),
            args.mask.as<std::uint8_t>(), args.dpredictions.view.as<T>(), args.dpredictions.accumulate, args.layout);
  });
  check(cudaGetLastError());
}

const Register forward{squared_error_forward, Backend::Cuda, launch_forward};
const Register backward{squared_error_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
