#pragma once
// Means of a loss over the scored elements of predictions and targets, for losses that a function of one prediction
// and its target defines:
//   struct Loss {
//     __device__ float value(float prediction, float target) const;
//     __device__ float slope(float prediction, float target) const;  // the derivative to the prediction
//   };

#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/squared_error.h"

namespace graft::cuda::point_loss {

inline constexpr int kThreads = 512;
inline constexpr int kBackwardThreads = 256;

__device__ __forceinline__ void finish(double sum, double count, float* loss, float* weight) {
  const double factor = count > 0 ? 1 / count : 0;
  *loss = static_cast<float>(sum * factor);
  if (weight != nullptr) *weight = static_cast<float>(factor);
}

/// A block sums a run of consecutive elements. A single block has the whole sum and finishes at once.
template <class T, class Loss>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* predictions, const float* targets, const std::uint8_t* mask, double* partial, float* loss,
                   float* weight, unsigned elements_a_block, const SquaredErrorLayout layout, const Loss of) {
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
    const float prediction = to_float(predictions[layout.prediction_at(prompt, point) + column]);
    const float target = targets[position * layout.target_columns + column];
    if (mask == nullptr || mask[position] != 0) {
      sum += of.value(prediction, target);
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

static __global__ void __launch_bounds__(kWarp)
    finish_kernel(const double* partial, int blocks, float* loss, float* weight) {
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
template <class T, class Loss>
__global__ void __launch_bounds__(kBackwardThreads)
    backward_kernel(const float* dloss, const float* weight, const T* predictions, const float* targets,
                    const std::uint8_t* mask, T* dpredictions, bool accumulate, const SquaredErrorLayout layout,
                    const Loss of) {
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
      d = *dloss * *weight * of.slope(to_float(predictions[i]), targets[position * layout.target_columns + column]);
    }
  }
  dpredictions[i] = from_float<T>(accumulate ? to_float(dpredictions[i]) + d : d);
}

/// The targets from the first column that counts on: a pointer that the kernels need no register for.
template <class Args>
[[nodiscard]] const float* target_columns_of(const Args& args) {
  return args.targets.template as<float>() + args.layout.options.target_column;
}

/// `args` is SquaredErrorForward or a block with its fields.
template <class Args, class Loss>
void launch_forward(Stream& stream, const Args& args, const Loss& of, const char* kernel) {
  const std::int64_t elements = args.layout.elements();
  const std::int64_t blocks = squared_error_blocks(elements);
  with_type(args.predictions.dtype, kernel, [&](auto type) {
    using T = typename decltype(type)::type;
    forward_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, handle(stream)>>>(
        args.predictions.template as<T>(), target_columns_of(args), args.mask.template as<std::uint8_t>(),
        args.partial.template as<double>(), args.loss.template as<float>(), args.weight.template as<float>(),
        static_cast<unsigned>(ceil_div(elements, blocks)), args.layout, of);
  });
  check(cudaGetLastError());
  if (blocks == 1) return;
  finish_kernel<<<1, kWarp, 0, handle(stream)>>>(args.partial.template as<double>(), static_cast<int>(blocks),
                                                 args.loss.template as<float>(), args.weight.template as<float>());
  check(cudaGetLastError());
}

template <class Args, class Loss>
void launch_backward(Stream& stream, const Args& args, const Loss& of, const char* kernel) {
  if (!args.dpredictions) return;
  with_type(args.predictions.dtype, kernel, [&](auto type) {
    using T = typename decltype(type)::type;
    backward_kernel<T>
        <<<blocks_for(args.predictions.shape.elements(), kBackwardThreads), kBackwardThreads, 0, handle(stream)>>>(
            args.dloss.template as<float>(), args.weight.template as<float>(), args.predictions.template as<T>(),
            target_columns_of(args), args.mask.template as<std::uint8_t>(), args.dpredictions.view.template as<T>(),
            args.dpredictions.accumulate, args.layout, of);
  });
  check(cudaGetLastError());
}

}  // namespace graft::cuda::point_loss
