#include <cmath>
#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/cross_entropy.h"

namespace graft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRowThreads = kWarps * kWarp;
constexpr int kSumThreads = 1024;

/// A warp has a row. Maximum and sum come from one pass: the sum is rescaled when a lane's maximum grows.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    rows_kernel(const T* logits, const std::int32_t* labels, float* log_sum, float* row_loss, std::int64_t rows,
                std::int64_t columns, std::int64_t stored) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const T* const values = logits + row * stored;
  float largest = -INFINITY;
  float sum = 0.F;
  for (std::int64_t c = lane; c < columns; c += kWarp) {
    const float value = to_float(values[c]);
    if (value > largest) {
      sum = sum * expf(largest - value) + 1.F;
      largest = value;
    } else {
      sum += expf(value - largest);
    }
  }
  const float row_largest = warp_max(largest);
  const float row_sum = warp_sum(largest == -INFINITY ? sum : sum * expf(largest - row_largest));
  if (lane != 0) return;
  const float result = row_largest + logf(row_sum);
  log_sum[row] = result;
  const std::int32_t label = labels[row];
  float loss = 0.F;
  if (label != kIgnoredLabel) {
    loss = label >= 0 && label < columns ? result - to_float(values[label]) : __int_as_float(0x7fc00000);
  }
  row_loss[row] = loss;
}

/// One block adds the rows' losses, each thread its own rows in order.
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const float* row_loss, const std::int32_t* labels, float* loss, float* weight, std::int64_t rows) {
  double sum = 0;
  double count = 0;
#pragma unroll 4
  for (std::int64_t row = threadIdx.x; row < rows; row += kSumThreads) {
    sum += static_cast<double>(row_loss[row]);
    count += labels[row] != kIgnoredLabel ? 1 : 0;
  }
  sum = block_sum<kSumThreads>(sum);
  count = block_sum<kSumThreads>(count);
  if (threadIdx.x != 0) return;
  const double factor = count > 0 ? 1 / count : 0;
  *loss = static_cast<float>(sum * factor);
  *weight = static_cast<float>(factor);
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    backward_kernel(const float* dloss, const float* weight, const T* logits, const std::int32_t* labels,
                    const float* log_sum, T* dlogits, bool accumulate, std::int64_t rows, std::int64_t columns,
                    std::int64_t stored) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int32_t label = labels[row];
  const float scale = *dloss * *weight;
  const float shift = log_sum[row];
  for (std::int64_t c = lane; c < stored; c += kWarp) {
    const std::int64_t i = row * stored + c;
    float d = 0.F;
    if (label != kIgnoredLabel && c < columns)
      d = scale * (expf(to_float(logits[i]) - shift) - (c == label ? 1.F : 0.F));
    dlogits[i] = from_float<T>(accumulate ? to_float(dlogits[i]) + d : d);
  }
}

void launch_forward(Stream& stream, const CrossEntropyForward& args) {
  const std::int64_t rows = args.logits.shape.rows();
  with_type(args.logits.dtype, "cross_entropy_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    rows_kernel<T><<<blocks_for(rows, kWarps), kRowThreads, 0, handle(stream)>>>(
        args.logits.as<T>(), args.labels.as<std::int32_t>(), args.log_sum.as<float>(), args.row_loss.as<float>(), rows,
        args.columns, args.logits.shape.columns());
  });
  check(cudaGetLastError());
  sum_kernel<<<1, kSumThreads, 0, handle(stream)>>>(args.row_loss.as<float>(), args.labels.as<std::int32_t>(),
                                                    args.loss.as<float>(), args.weight.as<float>(), rows);
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const CrossEntropyBackward& args) {
  if (!args.dlogits) return;
  const std::int64_t rows = args.logits.shape.rows();
  with_type(args.logits.dtype, "cross_entropy_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    backward_kernel<T><<<blocks_for(rows, kWarps), kRowThreads, 0, handle(stream)>>>(
        args.dloss.as<float>(), args.weight.as<float>(), args.logits.as<T>(), args.labels.as<std::int32_t>(),
        args.log_sum.as<float>(), args.dlogits.view.as<T>(), args.dlogits.accumulate, rows, args.columns,
        args.logits.shape.columns());
  });
  check(cudaGetLastError());
}

const Register forward{cross_entropy_forward, Backend::Cuda, launch_forward};
const Register backward{cross_entropy_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
