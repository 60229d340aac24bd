#include <cmath>
#include <cstdint>

#include "cuda/exp2.cuh"
#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "ops/decode_attention.h"

// A block has one query. Eight neighbouring threads share a key, each with every eighth group of four columns, and walk
// over every kStreams-th key with a softmax of their own (largest score, sum of weights, weighted values); these are
// brought together at the end. The cache is read once. With one token a call, what attention is for here, the block
// also stores its key and value; with more, a kernel before it stores them all, since queries read each other's keys.

namespace graft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 8;                       // threads that share a key
constexpr int kStreams = kThreads / kLanes;     // keys that a block looks at together
constexpr int kGroupColumns = kLanes * kGroup;  // columns of one group of all lanes

template <class T>
struct Extension {
  const T* qkv;
  const std::int32_t* length;
  T* keys;
  T* values;
  T* y;
  AttentionLayout layout;
  std::int64_t row;
  float scale;  // of scores in base 2
  int tokens, capacity, head_dim;
};

/// The position of a block's token in its sequence; whether the cache has room for it.
struct Position {
  int value;
  bool fits;
};
template <class T>
[[nodiscard]] __device__ __forceinline__ Position position_of(const Extension<T>& p, int token) {
  const std::int64_t position = std::int64_t{*p.length} + token;
  return {static_cast<int>(position), position >= 0 && position < p.capacity};
}

/// Stores keys and values of all tokens; a thread has one column of both.
template <class T>
__global__ void __launch_bounds__(kThreads) append_kernel(const Extension<T> p, std::int64_t elements) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= elements) return;
  const auto column = static_cast<int>(index % p.head_dim);
  const std::int64_t rest = index / p.head_dim;
  const auto token = static_cast<int>(rest % p.tokens);
  const std::int64_t head = rest / p.tokens;  // of all batch entries
  const Position position = position_of(p, token);
  if (!position.fits) return;
  const std::int64_t batch = head / p.layout.heads;
  const T* const from =
      p.qkv + (batch * p.tokens + token) * p.row + head % p.layout.heads * p.layout.head_stride + column;
  const std::int64_t to = (head * p.capacity + position.value) * p.head_dim + column;
  p.keys[to] = from[p.layout.k_offset];
  p.values[to] = from[p.layout.v_offset];
}

/// kGroups groups of columns a thread: head dims up to 32 * kGroups.
template <class T, int kGroups, bool kAligned>
__global__ void __launch_bounds__(kThreads) attend_kernel(const Extension<T> p) {
  constexpr int kAhead = kGroups <= 2 ? 4 : (kGroups == 4 ? 2 : 1);  // keys of a stream whose loads are under way
  constexpr int kWarps = kThreads / kWarp;
  __shared__ float parts[kWarps][kGroups * kGroupColumns];
  __shared__ float sums[kWarps];
  const auto thread = static_cast<int>(threadIdx.x);
  const auto token = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.tokens));
  const std::int64_t head = blockIdx.x / static_cast<unsigned>(p.tokens);  // of all batch entries
  const std::int64_t batch = head / p.layout.heads;
  const auto head_of_batch = static_cast<int>(head - batch * p.layout.heads);
  const std::int64_t row = batch * p.tokens + token;
  const T* const from = p.qkv + row * p.row + head_of_batch * p.layout.head_stride;
  T* const y = p.y + row * p.layout.width() + head_of_batch * p.head_dim;
  T* const keys = p.keys + head * p.capacity * p.head_dim;
  T* const values = p.values + head * p.capacity * p.head_dim;

  const Position position = position_of(p, token);
  if (!position.fits) {  // for the whole block
    for (int c = thread; c < p.head_dim; c += kThreads) y[c] = from_float<T>(__int_as_float(0x7fc00000));
    return;
  }
  if (p.tokens == 1) {
    const std::int64_t to = std::int64_t{position.value} * p.head_dim;
    for (int c = thread; c < p.head_dim; c += kThreads) {
      keys[to + c] = from[p.layout.k_offset + c];
      values[to + c] = from[p.layout.v_offset + c];
    }
    __syncthreads();
  }

  const int lane = thread % kLanes;
  const int stream = thread / kLanes;
  const auto column = [lane](int g) { return (g * kLanes + lane) * kGroup; };
  float query[kGroups][kGroup], result[kGroups][kGroup] = {};
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    load_group<false>(from + p.layout.q_offset, column(g), p.head_dim, query[g]);
#pragma unroll
    for (int e = 0; e < kGroup; ++e) query[g][e] *= p.scale;
  }
  float largest = -INFINITY, sum = 0.F;
  const int seen = position.value + 1;
  for (int base = 0; base < seen; base += kStreams * kAhead) {
    float score[kAhead], value[kAhead][kGroups][kGroup];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const std::int64_t at = std::int64_t{min(base + a * kStreams + stream, seen - 1)} * p.head_dim;
      score[a] = 0.F;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        float key[kGroup];
        load_group<kAligned>(keys + at, column(g), p.head_dim, key);
        load_group<kAligned>(values + at, column(g), p.head_dim, value[a][g]);
#pragma unroll
        for (int e = 0; e < kGroup; ++e) score[a] = fmaf(query[g][e], key[e], score[a]);
      }
    }
    float next = largest;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      score[a] = warp_sum<kLanes>(score[a]);
      if (base + a * kStreams + stream >= seen) score[a] = -INFINITY;
      next = fmaxf(next, score[a]);
    }
    const float reference = next == -INFINITY ? 0.F : next;  // a stream without a key yet
    const float factor = exp2f(largest - reference);
    sum *= factor;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int e = 0; e < kGroup; ++e) result[g][e] *= factor;
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const float weight = exp2f(score[a] - reference);
      sum += weight;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int e = 0; e < kGroup; ++e) result[g][e] = fmaf(weight, value[a][g][e], result[g][e]);
      }
    }
    largest = next;
  }

  const float of_all = block_reduce<kThreads>(largest, Max{});
  const float factor = largest == -INFINITY ? 0.F : exp2f(largest - of_all);
  sum *= factor;
  // from here on over the streams of a warp, then over the warps
#pragma unroll
  for (int mask = kLanes; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
  const int warp = thread / kWarp;
  if (thread % kWarp == 0) sums[warp] = sum;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      float part = result[g][e] * factor;
#pragma unroll
      for (int mask = kLanes; mask < kWarp; mask *= 2) part += shuffle_xor(part, mask);
      if (thread % kWarp < kLanes) parts[warp][column(g) + e] = part;
    }
  }
  __syncthreads();
  float total = 0.F;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w];
  for (int c = thread; c < p.head_dim; c += kThreads) {
    float part = 0.F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) part += parts[w][c];
    y[c] = from_float<T>(part / total);
  }
}

template <class T, int kGroups>
void attend(cudaStream_t stream, const Extension<T>& p, unsigned blocks, bool aligned) {
  if (aligned) {
    attend_kernel<T, kGroups, true><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    attend_kernel<T, 8, false><<<blocks, kThreads, 0, stream>>>(p);
  }
}

void launch(Stream& stream, const AttentionExtension& args) {
  with_type(args.qkv.dtype, "attention_extension", [&](auto type) {
    using T = typename decltype(type)::type;
    const Extension<T> p{args.qkv.as<T>(),
                         args.length.as<std::int32_t>(),
                         args.keys.as<T>(),
                         args.values.as<T>(),
                         args.y.as<T>(),
                         args.layout,
                         args.qkv.shape[2],
                         static_cast<float>(args.scale) * kLog2E,
                         static_cast<int>(args.qkv.shape[1]),
                         static_cast<int>(args.keys.shape[2]),
                         args.layout.head_dim};
    const cudaStream_t to = handle(stream);
    const std::int64_t queries = args.qkv.shape[0] * args.layout.heads * p.tokens;
    if (p.tokens > 1) {
      const std::int64_t elements = queries * p.head_dim;
      append_kernel<T><<<blocks_for(elements, kThreads), kThreads, 0, to>>>(p, elements);
      check(cudaGetLastError());
    }
    const unsigned blocks = blocks_for(queries, 1);
    const bool aligned = groups_aligned(p.head_dim, p.keys, p.values);
    if (p.head_dim <= 32) return attend<T, 1>(to, p, blocks, aligned);
    if (p.head_dim <= 64) return attend<T, 2>(to, p, blocks, aligned);
    if (p.head_dim <= 128) return attend<T, 4>(to, p, blocks, aligned);
    return attend<T, 8>(to, p, blocks, aligned);
  });
  check(cudaGetLastError());
}

const Register registered{attention_extension, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
