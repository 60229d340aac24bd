#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "ops/decode_conv1d.h"
#include "ops/silu_formula.h"

// A thread has one channel of one sequence. It reads the state before it writes any of it, and nobody else does.

namespace graft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAhead = 8;  // tokens whose loads are under way together

template <class T>
struct Extension {
  const T* x;  // at the first of the channels
  const void* weight;
  const void* bias;  // null: none
  T* state;
  T* y;
  std::int64_t row;  // of x
  std::int64_t threads;
  int tokens, channels;
  bool weight_is_bf16, bias_is_bf16, silu;
};

[[nodiscard]] __device__ __forceinline__ float read(const void* data, bool is_bf16, std::int64_t i) {
  return is_bf16 ? to_float(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) extend_kernel(const Extension<T> p) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= p.threads) return;
  const std::int64_t sequence = index / p.channels;
  const auto channel = static_cast<int>(index - sequence * p.channels);
  const T* const x = p.x + sequence * p.tokens * p.row + channel;
  T* const y = p.y + sequence * p.tokens * p.channels + channel;
  T* const state = p.state + sequence * (kWidth - 1) * p.channels + channel;

  T inputs[kWidth - 1 + kAhead];  // those before token t, then tokens t ... t + kAhead - 1
  float weight[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth - 1; ++j) inputs[j] = state[std::int64_t{j} * p.channels];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) weight[j] = read(p.weight, p.weight_is_bf16, std::int64_t{channel} * kWidth + j);
  const float bias = p.bias == nullptr ? 0.F : read(p.bias, p.bias_is_bf16, channel);

  for (int t = 0; t < p.tokens; t += kAhead) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (t + u < p.tokens) inputs[kWidth - 1 + u] = x[(t + u) * p.row];
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (t + u >= p.tokens) break;
      float v = bias;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) v += weight[j] * to_float(inputs[u + j]);
      if (p.silu) v = silu(v);
      y[std::int64_t{t + u} * p.channels] = from_float<T>(v);
      if (t + u + 1 == p.tokens) {
#pragma unroll
        for (int j = 0; j < kWidth - 1; ++j) state[std::int64_t{j} * p.channels] = inputs[u + 1 + j];
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth - 1; ++j) inputs[j] = inputs[kAhead + j];
  }
}

void launch(Stream& stream, const CausalConv1dExtension& args) {
  with_type(args.x.dtype, "causal_conv1d_extension", [&](auto type) {
    using T = typename decltype(type)::type;
    const std::int64_t channels = args.weight.shape[0];
    const Extension<T> p{args.x.as<T>() + args.offset,
                         args.weight.data,
                         args.bias.data,
                         args.state.as<T>(),
                         args.y.as<T>(),
                         args.x.shape[2],
                         args.x.shape[0] * channels,
                         static_cast<int>(args.x.shape[1]),
                         static_cast<int>(channels),
                         args.weight.dtype == DType::BF16,
                         args.bias.dtype == DType::BF16,
                         args.silu};
    const unsigned blocks = blocks_for(p.threads, kThreads);
    switch (args.weight.shape[1]) {
      case 2:
        extend_kernel<T, 2><<<blocks, kThreads, 0, handle(stream)>>>(p);
        return;
      case 3:
        extend_kernel<T, 3><<<blocks, kThreads, 0, handle(stream)>>>(p);
        return;
      default:
        extend_kernel<T, 4><<<blocks, kThreads, 0, handle(stream)>>>(p);
    }
  });
  check(cudaGetLastError());
}

const Register registered{causal_conv1d_extension, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
