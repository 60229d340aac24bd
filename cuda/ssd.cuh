#pragma once
// What the kernels of the state-space dual share: arguments, step sizes and decays of a chunk, launches, and which
// path a call takes.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/exp2.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/silu_formula.h"
#include "ops/softplus_formula.h"
#include "ops/ssd.h"

namespace graft::cuda::ssd {

inline constexpr int kChunk = static_cast<int>(kSsdChunk);

/// SsdSource with its views resolved; x, b, c, dt and z point to their column 0 in row 0.
template <class T>
struct Source {
  const T* x;
  const T* b;
  const T* c;
  const T* dt;
  const T* z;  // null: no gate
  const float* a_log;
  const float* bias;
  const float* skip;
  std::int64_t row, dt_row, z_row, width;  // elements from a token to the next one: of x, b, c; dt; z; y
  int tokens, chunks, heads, head_dim, state;
  int together;       // heads of a group
  bool channel_skip;  // skip is [H, P]
  float dt_min, dt_max;

  [[nodiscard]] __device__ __forceinline__ int valid(int chunk) const { return min(kChunk, tokens - chunk * kChunk); }
  /// The skip weight of all channels of a head, unless each has its own.
  [[nodiscard]] __device__ __forceinline__ float head_skip(int head) const {
    return skip == nullptr || channel_skip ? 0.F : skip[head];
  }
  [[nodiscard]] __device__ __forceinline__ float skip_of(int head, int p, float of_head) const {
    return channel_skip ? skip[std::int64_t{head} * head_dim + p] : of_head;
  }
  /// log2(e) A of a head, so that decays are powers of two.
  [[nodiscard]] __device__ __forceinline__ float rate(int head) const { return -kLog2E * expf(a_log[head]); }
};

template <class T>
[[nodiscard]] Source<T> source_of(const SsdSource& in) {
  Source<T> s{};
  s.x = in.xbc.as<T>() + in.x_offset;
  s.b = in.xbc.as<T>() + in.b_offset;
  s.c = in.xbc.as<T>() + in.c_offset;
  s.dt = in.dt.as<T>() + in.dt_offset;
  s.z = in.z ? in.z.as<T>() + in.z_offset : nullptr;
  s.a_log = in.a_log.as<float>();
  s.bias = in.dt_bias.as<float>();
  s.skip = in.skip.as<float>();
  s.row = in.xbc.shape[2];
  s.dt_row = in.dt.shape[2];
  s.z_row = in.z ? in.z.shape[2] : 0;
  s.width = in.heads * in.head_dim;
  s.tokens = static_cast<int>(in.xbc.shape[1]);
  s.chunks = static_cast<int>(ssd_chunks(in.xbc.shape[1]));
  s.heads = static_cast<int>(in.heads);
  s.head_dim = static_cast<int>(in.head_dim);
  s.state = static_cast<int>(in.state);
  s.together = static_cast<int>(in.heads / in.groups);
  s.channel_skip = in.skip && in.skip.shape.rank() == 2;
  s.dt_min = static_cast<float>(in.dt_min);
  s.dt_max = static_cast<float>(in.dt_max);
  return s;
}

/// One warp: dt[i], the step sizes of a chunk, and decay[i], their inclusive sums times log2(e) A, for all kChunk steps
/// (16-byte aligned); steps after the last have size 0. slope[i], unless null: the derivative of dt to its raw value.
template <class T>
__device__ __forceinline__ void warp_steps(const Source<T>& in, std::int64_t sequence, int chunk, int head, float* dt,
                                           float* decay, float* slope) {
  constexpr int kSteps = kChunk / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = chunk * kChunk + lane * kSteps;
  const double rate = in.rate(head);
  const float bias = in.bias == nullptr ? 0.F : in.bias[head];
  float size[kSteps], sum[kSteps], derivative[kSteps];
  double exact[kSteps];  // a decay is a small difference of sums that may be large: they are rounded only once
  double running = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    size[i] = derivative[i] = 0.F;
    if (first + i < in.tokens) {
      const float raw = to_float(in.dt[(sequence * in.tokens + first + i) * in.dt_row + head]) + bias;
      const float value = softplus(raw);
      size[i] = clamped(value, in.dt_min, in.dt_max);
      derivative[i] = value < in.dt_min || value > in.dt_max ? 0.F : softplus_slope(raw);
    }
    running += size[i] * rate;
    exact[i] = running;
  }
  double before = running;  // inclusive over lanes
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const double other = __shfl_up_sync(kFullWarp, before, static_cast<unsigned>(step));
    if (lane >= step) before += other;
  }
  before = __shfl_up_sync(kFullWarp, before, 1);
  if (lane == 0) before = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) sum[i] = static_cast<float>(exact[i] + before);
  store(dt + lane * kSteps, size);
  store(decay + lane * kSteps, sum);
  if (slope != nullptr) store(slope + lane * kSteps, derivative);
}

/// Sums over a chunk that become a state [P, N]: forward sum_j exp(c_Q - c_j) dt_j x_j B_j^T, what the chunk adds to
/// the state; backward sum_i exp(c_i) dy_i C_i^T, what it adds to the gradient of the state before it.
template <class T>
struct StateSums {
  Source<T> in;
  const T* dy;           // backward
  float* to;             // [B, chunks, H, P, N]
  const float* carried;  // with one chunk: the state that enters, its gradient that leaves; null: zero
  bool backward;
  bool whole;       // one chunk: exp(c_Q) carried is added
  bool accumulate;  // add to what is there
  int unused;       // chunk whose sum nobody needs; negative: none
};

/// Where a chunk reads the states at its ends. Both [B, chunks, H, P, N].
struct StateEnds {
  const float* before;  // null: none
  const float* after;   // gradient; null: none
  bool first;           // whether `before` of the first chunk may be other than zero
  bool last;            // the same for `after` of the last chunk

  [[nodiscard]] __device__ __forceinline__ bool has_before(int chunk) const {
    return before != nullptr && (chunk > 0 || first);
  }
  [[nodiscard]] __device__ __forceinline__ bool has_after(int chunk, int chunks) const {
    return after != nullptr && (chunk + 1 < chunks || last);
  }
};

template <class T>
struct Outputs {
  Source<T> in;
  StateEnds ends;
  T* y;
};

template <class T>
struct Gradients {
  Source<T> in;
  StateEnds ends;
  const T* dy;           // null: zero
  float* partial_bc;     // [B, T, H / head_block, 2, N]
  float* partial_heads;  // [B, chunks, 2, H]
  float* partial_skip;   // [B, chunks, H] or [B, chunks, H P] as skip; null: not wanted
  T* dx;                 // column 0 of x in row 0; null: not wanted
  T* ddt;
  T* dz;
  bool add_dx, add_ddt, add_dz;
  int head_block;
};

template <class T>
__device__ __forceinline__ void store_or_add(T* to, bool accumulate, float value) {
  *to = from_float<T>(accumulate ? to_float(*to) + value : value);
}

[[nodiscard]] inline std::size_t shared_limit() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<std::size_t>(bytes);
}

template <class Parameters>
void launch(void (*kernel)(Parameters), cudaStream_t stream, std::int64_t blocks, int threads, std::size_t bytes,
            const Parameters& parameters) {
  allow_shared_memory(kernel, bytes);
  kernel<<<blocks_for(blocks, 1), static_cast<unsigned>(threads), bytes, stream>>>(parameters);
  check(cudaGetLastError());
}

/// Tensor-core kernels. They need states and head dimensions that are multiples of 8, rows whose parts start at
/// multiples of 16 bytes, and head dimensions up to 128; backward without a gate. False, and nothing launched, where
/// they do not fit this device.
bool states_bf16(cudaStream_t stream, const StateSums<bf16>& p, std::int64_t batch);
bool outputs_bf16(cudaStream_t stream, const Outputs<bf16>& p, std::int64_t batch);
bool gradients_bf16(cudaStream_t stream, const Gradients<bf16>& p, std::int64_t batch);

/// Kernels of float32 arithmetic for every shape.
template <class T>
void states_plain(cudaStream_t stream, const StateSums<T>& p, std::int64_t batch);
template <class T>
void outputs_plain(cudaStream_t stream, const Outputs<T>& p, std::int64_t batch);
template <class T>
void gradients_plain(cudaStream_t stream, const Gradients<T>& p, std::int64_t batch);

}  // namespace graft::cuda::ssd
