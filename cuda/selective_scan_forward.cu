#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/selective_scan.cuh"

// A channel's states lie in the registers of kLanes neighbouring threads, kStates each: group j of four states of lane
// l is states 4 * (j * kLanes + l) ... + 3, so that the lanes read neighbouring 16 bytes of B and C. Time is walked in
// groups of kGroup steps. What a step needs once a channel (step size, gate, output) is the work of one lane, which
// owns kGroup / kLanes steps of every group and hands the step size to the others.

namespace graft::cuda::scan {
namespace {

template <class T>
struct Forward {
  Source<T> in;
  T* y;
  float* checkpoints;  // may be null
  float* final_state;  // may be null
};

template <int kLanes, int kStates>
__device__ __forceinline__ void store_states(float* row, const float (&h)[kStates], int lane, int state) {
#pragma unroll
  for (int j = 0; j < kStates / 4; ++j) {
    const int n = (j * kLanes + lane) * 4;
    if (state % 4 == 0) {
      if (n < state) *reinterpret_cast<float4*>(row + n) = {h[4 * j], h[4 * j + 1], h[4 * j + 2], h[4 * j + 3]};
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n + i < state) row[n + i] = h[4 * j + i];
      }
    }
  }
}

/// Blocks that a multiprocessor shall hold: the compiler would spend more registers than the latencies are worth.
template <int kPadded>
constexpr int kMinimumBlocks = kPadded <= 16 ? 4 : (kPadded <= 64 ? 3 : 2);

template <class T, int kLanes, int kStates>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks<kLanes * kStates>) forward_kernel(const Forward<T> p) {
  constexpr int kPadded = kLanes * kStates;
  constexpr int kGroup = kLanes < 4 ? 4 : kLanes;
  constexpr int kOwn = kGroup / kLanes;            // steps of a group that a lane owns
  constexpr int kBuffers = kPadded <= 64 ? 2 : 1;  // static shared memory is 48 KiB
  static_assert(kTile % kGroup == 0 && kStates % 4 == 0);
  __shared__ float4 columns[kBuffers][kTile][2][kPadded / 4];  // B, C of a tile of steps

  const Source<T>& in = p.in;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t sequence = blockIdx.x / static_cast<unsigned>(in.channel_blocks);
  const int block = static_cast<int>(blockIdx.x) % in.channel_blocks;
  const int channel = block * (kThreads / kLanes) + static_cast<int>(threadIdx.x) / kLanes;
  const bool present = channel < in.width;
  const std::int64_t first = sequence * in.tokens;  // row of step 0

  float rate[kStates], h[kStates];
#pragma unroll
  for (int s = 0; s < kStates; ++s) {
    rate[s] = decay_rate(in, channel, (s / 4 * kLanes + lane) * 4 + s % 4);
    h[s] = 0.F;
  }
  const float skip = present && in.skip != nullptr ? in.skip[channel] : 0.F;
  const float bias = present && in.bias != nullptr ? in.bias[channel] : 0.F;

  T raw_u[kOwn], raw_delta[kOwn], raw_z[kOwn];  // of the next group
  const auto load_group = [&](int start) {
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      const int t = start + lane * kOwn + o;
      const bool inside = present && t < in.tokens;
      const std::int64_t at = (first + t) * in.width + channel;
      raw_u[o] = inside ? in.u[at] : from_float<T>(0.F);
      raw_delta[o] = inside ? in.delta[at] : from_float<T>(0.F);
      raw_z[o] = inside && in.z != nullptr ? in.z[(first + t) * in.z_row + channel] : from_float<T>(0.F);
    }
  };

  ColumnTile<T, kPadded> next;
  next.load(in, sequence, 0, static_cast<int>(threadIdx.x));
  load_group(0);
  next.store(reinterpret_cast<float*>(columns[0]));
  __syncthreads();
  for (int start = 0, buffer = 0; start < in.tokens; start += kTile) {
    const bool more = start + kTile < in.tokens;
    if (kBuffers == 2 && more) next.load(in, sequence, start + kTile, static_cast<int>(threadIdx.x));
    if (start > 0 && p.checkpoints != nullptr && present) {
      const std::int64_t tiles = (in.tokens - 1) / kTile;
      store_states<kLanes>(p.checkpoints + ((sequence * tiles + start / kTile - 1) * in.width + channel) * in.state, h,
                           lane, in.state);
    }

    for (int group = start; group < start + kTile && group < in.tokens; group += kGroup) {
      float u[kOwn], dt[kOwn], z[kOwn];
#pragma unroll
      for (int o = 0; o < kOwn; ++o) {
        u[o] = to_float(raw_u[o]);
        z[o] = to_float(raw_z[o]);
        // steps after the last leave the state as it is
        dt[o] = group + lane * kOwn + o < in.tokens ? step_size(in, to_float(raw_delta[o]) + bias) : 0.F;
      }
      load_group(group + kGroup);

      float y[kGroup];
      const float4(*const column)[2][kPadded / 4] = &columns[buffer][group - start];
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        float step = dt[k % kOwn];
        float input = dt[k % kOwn] * u[k % kOwn];
        if constexpr (kLanes > 1) {
          step = __shfl_sync(kFullWarp, step, k / kOwn, kLanes);
          input = __shfl_sync(kFullWarp, input, k / kOwn, kLanes);
        }
        y[k] = 0.F;
#pragma unroll
        for (int j = 0; j < kStates / 4; ++j) {
          const float4 b4 = column[k][0][j * kLanes + lane];
          const float4 c4 = column[k][1][j * kLanes + lane];
          const float b[4] = {b4.x, b4.y, b4.z, b4.w};
          const float c[4] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& state = h[4 * j + i];
            state = fast_exp2(step * rate[4 * j + i]) * state + input * b[i];
            y[k] += c[i] * state;
          }
        }
      }
      reduce_scatter<kGroup, kLanes / 2, 1>(y, lane);  // lane l: steps l * kOwn ...
#pragma unroll
      for (int o = 0; o < kOwn; ++o) {
        const int t = group + lane * kOwn + o;
        if (!present || t >= in.tokens) continue;
        float out = y[o] + skip * u[o];
        if (in.z != nullptr) out *= z[o] * sigmoid(z[o]);
        p.y[(first + t) * in.width + channel] = from_float<T>(out);
      }
    }

    if constexpr (kBuffers == 1) {
      if (more) next.load(in, sequence, start + kTile, static_cast<int>(threadIdx.x));
      __syncthreads();
    }
    buffer = (buffer + 1) % kBuffers;
    if (more) next.store(reinterpret_cast<float*>(columns[buffer]));
    __syncthreads();
  }
  if (p.final_state != nullptr && present) {
    store_states<kLanes>(p.final_state + (sequence * in.width + channel) * in.state, h, lane, in.state);
  }
}

// ---- launchers

template <class T, int kLanes, int kStates>
void run_forward(cudaStream_t stream, const SelectiveScanForward& args) {
  const Forward<T> p{source_of<T>(args.in, kThreads / kLanes), args.y.as<T>(), args.checkpoints.as<float>(),
                     args.final_state.as<float>()};
  const std::int64_t blocks = args.in.u.shape[0] * p.in.channel_blocks;
  forward_kernel<T, kLanes, kStates><<<blocks_for(blocks, 1), kThreads, 0, stream>>>(p);
}

void launch_forward(Stream& stream, const SelectiveScanForward& args) {
  const std::int64_t state = args.in.a_log.shape[1];
  const std::int64_t scans = args.in.u.shape[0] * args.in.u.shape[2];
  with_type(args.y.dtype, "selective_scan_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    const cudaStream_t to = handle(stream);
    if (state <= 4) return run_forward<T, 1, 4>(to, args);
    if (state <= 16) {
      // with few channels, more threads a channel: a multiprocessor wants 16 warps or so
      if (scans >= 65536) return run_forward<T, 1, 16>(to, args);
      if (scans >= 24576) return run_forward<T, 2, 8>(to, args);
      return run_forward<T, 4, 4>(to, args);
    }
    if (state <= 32) return run_forward<T, 2, 16>(to, args);
    if (state <= 64) return run_forward<T, 4, 16>(to, args);
    return run_forward<T, 16, 16>(to, args);
  });
  check(cudaGetLastError());
}

const Register forward{selective_scan_forward, Backend::Cuda, launch_forward};

}  // namespace
}  // namespace graft::cuda::scan
