#include <cstdint>

#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "ops/rotary.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

/// A block has a row. kStep columns a thread and turn: kGroup of them with kAligned, where a group's columns are all of
/// one half of one head, or all copied.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const RotaryArgs args) {
  constexpr int kStep = kAligned ? kGroup : 1;
  __shared__ float2 turns[kMaxRotaryPairs];  // cosine and sine of the row's angles
  const std::int64_t row = blockIdx.x;
  const int pairs = args.pairs;
  const std::int64_t start = args.start ? *args.start.as<std::int32_t>() : 0;
  const std::int64_t position = start + row % args.x.shape[1];
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads) {
    float sine, cosine;
    sincosf(static_cast<float>(rotary_angle(position, args.frequencies[i])), &sine, &cosine);
    turns[i] = {cosine, static_cast<float>(args.direction) * sine};
  }
  __syncthreads();
  const auto width = static_cast<int>(args.x.shape[2]);
  const T* const x = args.x.as<T>() + row * width;
  T* const y = args.y.view.as<T>() + row * width;
  for (int column = static_cast<int>(threadIdx.x) * kStep; column < width; column += kThreads * kStep) {
    const RotaryColumn place = rotary_column(args.layout, pairs, column);
    const int partner = place.second ? column - pairs : column + pairs;
    if constexpr (kAligned) {
      float values[kGroup];
      load_group<true>(x, column, width, values);
      if (place.pair >= 0) {
        float others[kGroup];
        load_group<true>(x, partner, width, others);
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const float2 turn = turns[place.pair + k];
          values[k] = values[k] * turn.x + (place.second ? others[k] : -others[k]) * turn.y;
        }
      }
      store_or_add_group<true>(y, args.y.accumulate, column, width, values);
    } else {
      float value = to_float(x[column]);
      if (place.pair >= 0) {
        const float2 turn = turns[place.pair];
        const float other = to_float(x[partner]);
        value = value * turn.x + (place.second ? other : -other) * turn.y;
      }
      y[column] = from_float<T>(args.y.accumulate ? to_float(y[column]) + value : value);
    }
  }
}

void launch(Stream& stream, const RotaryArgs& args) {
  if (!args.y) return;
  const AttentionLayout& layout = args.layout;
  const bool aligned = groups_aligned(args.x.shape[2], args.x.data, args.y.view.data) && args.pairs % kGroup == 0 &&
                       layout.q_offset % kGroup == 0 && layout.k_offset % kGroup == 0 &&
                       layout.head_stride % kGroup == 0;
  const unsigned blocks = blocks_for(args.x.shape.rows(), 1);
  with_type(args.x.dtype, "rotary", [&](auto type) {
    using T = typename decltype(type)::type;
    if (aligned) {
      rotate_kernel<T, true><<<blocks, kThreads, 0, handle(stream)>>>(args);
    } else {
      rotate_kernel<T, false><<<blocks, kThreads, 0, handle(stream)>>>(args);
    }
  });
  check(cudaGetLastError());
}

const Register forward{rotary_forward, Backend::Cuda, launch};
const Register backward{rotary_backward, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
