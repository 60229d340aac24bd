#include <algorithm>
#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/decode_s4d.h"
#include "ops/silu_formula.h"

// A channel's modes lie in the registers of kLanes neighbouring threads, kModes each. What the next token needs is
// asked for while this one is worked on.

namespace graft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kModes = 4;

template <class T>
struct Extension {
  const T* u;
  const T* gate;  // null: none
  const float* table;
  const float* skip;
  float2* state;
  T* y;
  S4dLayout layout;
  int channel_blocks;
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) extend_kernel(const Extension<T> p) {
  const S4dLayout& layout = p.layout;
  const auto channels = static_cast<int>(layout.channels);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t sequence = blockIdx.x / static_cast<unsigned>(p.channel_blocks);
  const int place =
      static_cast<int>(blockIdx.x) % p.channel_blocks * (kThreads / kLanes) + static_cast<int>(threadIdx.x) / kLanes;
  const bool present = place < channels;
  const int channel = min(place, channels - 1);  // spare threads repeat the last channel and write nothing

  float2* const state = p.state + (sequence * channels + channel) * layout.modes;
  float2 x[kModes], decay[kModes], output[kModes];
#pragma unroll
  for (int m = 0; m < kModes; ++m) {
    const int mode = lane * kModes + m;
    const bool exists = mode < layout.modes;
    const float* const row = p.table + std::int64_t{mode} * kS4dTableRows * channels + channel;
    x[m] = exists ? state[mode] : float2{0.F, 0.F};
    decay[m] = exists ? float2{row[kS4dDecayRe * channels], row[kS4dDecayIm * channels]} : float2{0.F, 0.F};
    output[m] = exists ? float2{row[kS4dOutputRe * channels], row[kS4dOutputIm * channels]} : float2{0.F, 0.F};
  }
  const float skip = p.skip[channel];
  const T* const u = p.u + layout.first(sequence, channel);
  const T* const gate = p.gate == nullptr ? nullptr : p.gate + layout.gate_first(sequence, channel);
  T* const y = p.y + layout.first(sequence, channel);
  const auto tokens = static_cast<int>(layout.tokens);

  const T one = from_float<T>(1.F);
  T next_u = u[0];
  T next_gate = gate == nullptr ? one : gate[0];
  for (int t = 0; t < tokens; ++t) {
    const float input = to_float(next_u);
    const float factor = to_float(next_gate);
    if (t + 1 < tokens) {
      next_u = u[(t + 1) * layout.channels];
      if (gate != nullptr) next_gate = gate[(t + 1) * layout.gate_row];
    }
    float sum = 0.F;
#pragma unroll
    for (int m = 0; m < kModes; ++m) {
      const float re = fmaf(-decay[m].y, x[m].y, fmaf(decay[m].x, x[m].x, input));
      x[m].y = fmaf(decay[m].x, x[m].y, decay[m].y * x[m].x);
      x[m].x = re;
      sum += output[m].x * re - output[m].y * x[m].y;
    }
    sum = warp_sum<kLanes>(sum);
    if (present && lane == 0) {
      const float v = 2.F * sum + skip * input;
      y[t * layout.channels] =
          from_float<T>(v * (layout.activation == S4dGateActivation::Silu ? silu(factor) : factor));
    }
  }
  if (!present) return;
#pragma unroll
  for (int m = 0; m < kModes; ++m) {
    if (lane * kModes + m < layout.modes) state[lane * kModes + m] = x[m];
  }
}

template <class T, int kLanes>
void run(cudaStream_t stream, Extension<T> p) {
  p.channel_blocks = static_cast<int>(ceil_div(p.layout.channels, kThreads / kLanes));
  extend_kernel<T, kLanes><<<blocks_for(p.layout.batch * p.channel_blocks, 1), kThreads, 0, stream>>>(p);
}

void launch(Stream& stream, const S4dExtension& args) {
  with_type(args.y.dtype, "s4d_extension", [&](auto type) {
    using T = typename decltype(type)::type;
    const Extension<T> p{args.u.as<T>(),
                         args.gate.as<T>(),
                         args.table.as<float>(),
                         args.skip.as<float>(),
                         args.state.as<float2>(),
                         args.y.as<T>(),
                         args.layout,
                         0};
    const cudaStream_t to = handle(stream);
    if (args.layout.modes <= 2 * kModes) return run<T, 2>(to, p);
    if (args.layout.modes <= 4 * kModes) return run<T, 4>(to, p);
    return run<T, 16>(to, p);
  });
  check(cudaGetLastError());
}

const Register registered{s4d_extension, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
