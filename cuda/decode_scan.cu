#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/selective_scan.cuh"
#include "ops/decode_scan.h"
#include "ops/softplus_formula.h"

// A channel's states lie in the registers of kLanes neighbouring threads, kStates each: group j of four states of lane
// l is states 4 * (j * kLanes + l) ... + 3, so that a warp reads and writes neighbouring 16 bytes. What the next token
// needs is asked for while this one is worked on.

namespace graft::cuda::scan {
namespace {

template <class T>
struct Extension {
  const T* x;  // each at its first column in row 0
  const T* dt;
  const T* b;
  const T* c;
  const T* z;  // null: no gate
  const float* a_log;
  const float* bias;
  const float* skip;
  float* state;
  T* y;
  std::int64_t x_row, dt_row, bc_row, z_row;
  int tokens, channels, states, channel_blocks;
  int head_dim, group, skip_share;
  float dt_min, dt_max;
  bool softplus;
};

/// What one lane reads of a token.
template <class T, int kLanes, int kStates>
struct Token {
  T x, dt, z, b[kStates], c[kStates];

  __device__ __forceinline__ void load(const Extension<T>& p, std::int64_t row, int channel, int lane) {
    x = p.x[row * p.x_row + channel];
    dt = p.dt[row * p.dt_row + channel / p.head_dim];
    z = p.z == nullptr ? from_float<T>(0.F) : p.z[row * p.z_row + channel];
    const std::int64_t first = row * p.bc_row + std::int64_t{channel / p.group} * p.states;
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      const int n = (s / 4 * kLanes + lane) * 4 + s % 4;
      b[s] = n < p.states ? p.b[first + n] : from_float<T>(0.F);
      c[s] = n < p.states ? p.c[first + n] : from_float<T>(0.F);
    }
  }
};

/// The states of a lane, in pieces of 16 bytes where rows allow; zeros for those that do not exist.
template <int kLanes, int kStates>
__device__ __forceinline__ void load_states(const float* row, float (&h)[kStates], int lane, int states) {
#pragma unroll
  for (int j = 0; j < kStates / 4; ++j) {
    const int n = (j * kLanes + lane) * 4;
    float4 four = {0.F, 0.F, 0.F, 0.F};
    if (states % 4 == 0) {
      if (n < states) four = *reinterpret_cast<const float4*>(row + n);
    } else {
      if (n < states) four.x = row[n];
      if (n + 1 < states) four.y = row[n + 1];
      if (n + 2 < states) four.z = row[n + 2];
      if (n + 3 < states) four.w = row[n + 3];
    }
    h[4 * j] = four.x;
    h[4 * j + 1] = four.y;
    h[4 * j + 2] = four.z;
    h[4 * j + 3] = four.w;
  }
}

template <int kLanes, int kStates>
__device__ __forceinline__ void store_states(float* row, const float (&h)[kStates], int lane, int states) {
#pragma unroll
  for (int j = 0; j < kStates / 4; ++j) {
    const int n = (j * kLanes + lane) * 4;
    if (states % 4 == 0) {
      if (n < states) *reinterpret_cast<float4*>(row + n) = {h[4 * j], h[4 * j + 1], h[4 * j + 2], h[4 * j + 3]};
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n + i < states) row[n + i] = h[4 * j + i];
      }
    }
  }
}

template <class T, int kLanes, int kStates, bool kDecayAState>
__global__ void __launch_bounds__(kThreads) extend_kernel(const Extension<T> p) {
  constexpr int kRates = kDecayAState ? kStates : 1;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t sequence = blockIdx.x / static_cast<unsigned>(p.channel_blocks);
  const int place =
      static_cast<int>(blockIdx.x) % p.channel_blocks * (kThreads / kLanes) + static_cast<int>(threadIdx.x) / kLanes;
  const bool present = place < p.channels;
  const int channel = min(place, p.channels - 1);  // spare threads repeat the last channel and write nothing
  const int head = channel / p.head_dim;
  const std::int64_t first = sequence * p.tokens;  // row of the first token

  float* const state = p.state + (sequence * p.channels + channel) * p.states;
  float h[kStates], rate[kRates];  // rate: log2(e) A, so that a step's decay is 2^(dt * rate)
  load_states<kLanes>(state, h, lane, p.states);
#pragma unroll
  for (int s = 0; s < kRates; ++s) {
    const int n = (s / 4 * kLanes + lane) * 4 + s % 4;
    if constexpr (kDecayAState) {
      rate[s] = n < p.states ? -kLog2E * expf(p.a_log[std::int64_t{channel} * p.states + n]) : 0.F;
    } else {
      rate[s] = -kLog2E * expf(p.a_log[head]);
    }
  }
  const float bias = p.bias == nullptr ? 0.F : p.bias[head];
  const float skip = p.skip == nullptr ? 0.F : p.skip[channel / p.skip_share];

  Token<T, kLanes, kStates> token;
  token.load(p, first, channel, lane);
  for (int t = 0; t < p.tokens; ++t) {
    const Token<T, kLanes, kStates> now = token;
    if (t + 1 < p.tokens) token.load(p, first + t + 1, channel, lane);
    const float x = to_float(now.x);
    float step = to_float(now.dt) + bias;
    if (p.softplus) step = softplus(step);
    step = clamped(step, p.dt_min, p.dt_max);
    const float input = step * x;
    const float shared_decay = kDecayAState ? 0.F : fast_exp2(step * rate[0]);
    float sum = 0.F;
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      const float decay = kDecayAState ? fast_exp2(step * rate[kDecayAState ? s : 0]) : shared_decay;
      h[s] = decay * h[s] + input * to_float(now.b[s]);
      sum += to_float(now.c[s]) * h[s];
    }
    sum = warp_sum<kLanes>(sum);
    if (present && lane == 0) {
      float y = sum + skip * x;
      if (p.z != nullptr) {
        const float z = to_float(now.z);
        y *= z * sigmoid(z);
      }
      p.y[(first + t) * p.channels + channel] = from_float<T>(y);
    }
  }
  if (present) store_states<kLanes>(state, h, lane, p.states);
}

template <class T, int kLanes, int kStates>
void run(cudaStream_t stream, Extension<T> p, std::int64_t batch, bool decay_a_state) {
  p.channel_blocks = static_cast<int>(ceil_div(p.channels, kThreads / kLanes));
  const unsigned blocks = blocks_for(batch * p.channel_blocks, 1);
  if (decay_a_state) {
    extend_kernel<T, kLanes, kStates, true><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    extend_kernel<T, kLanes, kStates, false><<<blocks, kThreads, 0, stream>>>(p);
  }
}

void launch(Stream& stream, const ScanExtension& args) {
  with_type(args.y.dtype, "scan_extension", [&](auto type) {
    using T = typename decltype(type)::type;
    Extension<T> p{};
    p.x = args.x.as<T>() + args.x_offset;
    p.dt = args.dt.as<T>() + args.dt_offset;
    p.b = args.bc.as<T>() + args.b_offset;
    p.c = args.bc.as<T>() + args.c_offset;
    p.z = args.z ? args.z.as<T>() + args.z_offset : nullptr;
    p.a_log = args.a_log.as<float>();
    p.bias = args.bias.as<float>();
    p.skip = args.skip.as<float>();
    p.state = args.state.as<float>();
    p.y = args.y.as<T>();
    p.x_row = args.x.shape[2];
    p.dt_row = args.dt.shape[2];
    p.bc_row = args.bc.shape[2];
    p.z_row = args.z ? args.z.shape[2] : 0;
    p.tokens = static_cast<int>(args.y.shape[1]);
    p.channels = static_cast<int>(args.channels());
    p.states = static_cast<int>(args.states());
    p.head_dim = static_cast<int>(args.head_dim);
    p.group = static_cast<int>(args.group);
    p.skip_share = static_cast<int>(args.skip_share);
    p.dt_min = static_cast<float>(args.dt_min);
    p.dt_max = static_cast<float>(args.dt_max);
    p.softplus = args.softplus;
    const std::int64_t batch = args.y.shape[0];
    const bool decay_a_state = args.decay_a_state();
    const cudaStream_t to = handle(stream);
    if (p.states <= 16) return run<T, 4, 4>(to, p, batch, decay_a_state);
    if (p.states <= 64) return run<T, 16, 4>(to, p, batch, decay_a_state);
    if (p.states <= 128) return run<T, 32, 4>(to, p, batch, decay_a_state);
    return run<T, 32, 8>(to, p, batch, decay_a_state);
  });
  check(cudaGetLastError());
}

const Register registered{scan_extension, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda::scan
