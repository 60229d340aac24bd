#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/clip.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const float* gradients, double* partial, std::int64_t elements, std::int64_t elements_a_block) {
  constexpr int kStep = kAligned ? kVector<float> : 1;
  const std::int64_t first = blockIdx.x * elements_a_block;
  const std::int64_t last = min(elements, first + elements_a_block);
  float sum = 0.F;  // some tens of squares a thread; the threads' sums are added in double
#pragma unroll 4
  for (std::int64_t i = first + threadIdx.x * kStep; i + kStep <= last; i += kThreads * kStep) {
    float g[kStep];
    load(gradients + i, g);
#pragma unroll
    for (const float value : g) sum += value * value;
  }
  const double total = block_sum<kThreads>(static_cast<double>(sum));
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

struct Min {
  [[nodiscard]] __device__ __forceinline__ long long operator()(long long a, long long b) const {
    return a < b ? a : b;
  }
};

/// The first gradient of the blocks whose sums are not finite that is not finite itself. Rare, so that one block of
/// threads looks for it, and a step where all is well pays nothing. All threads get the result.
__device__ __noinline__ std::int64_t find_bad(const double* partial, int blocks, const float* gradients,
                                              std::int64_t elements, std::int64_t elements_a_block) {
  constexpr long long kNone = 0x7fffffffffffffffLL;
  for (int block = 0; block < blocks; ++block) {
    if (squares_are_finite(partial[block], DType::F32)) continue;
    const std::int64_t last = min(elements, (block + 1) * elements_a_block);
    long long found = kNone;
    for (std::int64_t i = block * elements_a_block + threadIdx.x; i < last && found == kNone; i += kThreads) {
      const double g = gradients[i];
      if (!squares_are_finite(g * g, DType::F32)) found = i;
    }
    found = block_reduce<kThreads>(found, Min{});
    if (found != kNone) return found;
  }
  return kNormBad;
}

__global__ void __launch_bounds__(kThreads)
    finish_kernel(const double* partial, int blocks, const float* gradients, std::int64_t elements,
                  std::int64_t elements_a_block, ConstView loss, StepState* state, double max_norm) {
  double sum = 0;
#pragma unroll 4
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += kThreads) sum += partial[block];
  sum = block_sum<kThreads>(sum);
  std::int64_t first_bad = loss_is_finite(loss) ? kNothingBad : kLossBad;
  if (!squares_are_finite(sum, DType::F32)) {  // all threads agree
    first_bad = find_bad(partial, blocks, gradients, elements, elements_a_block);
  }
  if (threadIdx.x == 0) apply_norm(*state, sum, max_norm, first_bad);
}

void launch(Stream& stream, const ClipArgs& args) {
  const std::int64_t elements = args.gradients.shape.elements();
  const std::int64_t blocks = clip_blocks(elements);
  const std::int64_t elements_a_block = round_up(ceil_div(elements, blocks), kVector<float>);
  const auto* const gradients = args.gradients.as<float>();
  auto* const partial = args.partial.as<double>();
  if (elements % kVector<float> == 0 && is_aligned16(gradients)) {
    squares_kernel<true><<<static_cast<unsigned>(blocks), kThreads, 0, handle(stream)>>>(gradients, partial, elements,
                                                                                         elements_a_block);
  } else {
    squares_kernel<false><<<static_cast<unsigned>(blocks), kThreads, 0, handle(stream)>>>(gradients, partial, elements,
                                                                                          elements_a_block);
  }
  check(cudaGetLastError());
  finish_kernel<<<1, kThreads, 0, handle(stream)>>>(partial, static_cast<int>(blocks), gradients, elements,
                                                    elements_a_block, args.loss, args.state, args.max_norm);
  check(cudaGetLastError());
}

const Register clip{clip_norm, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
