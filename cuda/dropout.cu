#include <cstdint>

#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "ops/dropout.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 16;  // of a mask shared over time that one thread takes, its draws made once

/// A thread has four draws, which are one Philox block, and applies them to up to kTokens repeats. blockIdx.y counts
/// these pieces of the repeats.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const StepState* state, const T* x, T* y, bool accumulate, const DropoutMask mask) {
  const std::int64_t groups = (mask.draws + 3) / 4;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= mask.examples * groups) return;
  const std::int64_t example = i / groups;
  const std::int64_t group = i - example * groups;
  const Words4 words = mask.words(*state, example, group);
  const auto scale = static_cast<float>(mask.scale);
  const float factors[kGroup] = {words.x < mask.threshold ? 0.F : scale, words.y < mask.threshold ? 0.F : scale,
                                 words.z < mask.threshold ? 0.F : scale, words.w < mask.threshold ? 0.F : scale};
  const std::int64_t draw = 4 * group;
  const int count = static_cast<int>(min(std::int64_t{4}, mask.draws - draw));
  const std::int64_t first = std::int64_t{blockIdx.y} * kTokens;
  const std::int64_t last = min(first + kTokens, mask.repeats);
#pragma unroll 4
  for (std::int64_t repeat = first; repeat < last; ++repeat) {
    const std::int64_t at = (example * mask.repeats + repeat) * mask.draws + draw;
    float values[kGroup];
    load_group<kAligned>(x + at, 0, count, values);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) values[k] *= factors[k];
    store_or_add_group<kAligned>(y + at, accumulate, 0, count, values);
  }
}

void launch(Stream& stream, const DropoutArgs& args) {
  if (!args.y) return;
  const DropoutMask& mask = args.mask;
  const dim3 grid(blocks_for(mask.examples * ceil_div(mask.draws, 4), kThreads), blocks_for(mask.repeats, kTokens), 1);
  with_type(args.x.dtype, "dropout", [&](auto type) {
    using T = typename decltype(type)::type;
    if (groups_aligned(mask.draws, args.x.data, args.y.view.data)) {
      apply_kernel<T, true><<<grid, kThreads, 0, handle(stream)>>>(args.state, args.x.as<T>(), args.y.view.as<T>(),
                                                                   args.y.accumulate, mask);
    } else {
      apply_kernel<T, false><<<grid, kThreads, 0, handle(stream)>>>(args.state, args.x.as<T>(), args.y.view.as<T>(),
                                                                    args.y.accumulate, mask);
    }
  });
  check(cudaGetLastError());
}

const Register forward{dropout_forward, Backend::Cuda, launch};
const Register backward{dropout_backward, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
