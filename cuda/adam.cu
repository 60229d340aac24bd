#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "ops/adam.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAccesses = 2;  // of 16 bytes a thread and buffer, all in flight before the first is used
constexpr int kSpan = kThreads * kVector<float>;

/// What all elements of a step share, rounded to float once.
struct Factors {
  float clip, rate, root_scale, decay;
};

struct Adam {
  const float* gradients;
  float* weights;
  float* first_moments;
  float* second_moments;
  bf16* compute_copy;               // or null
  const std::uint8_t* decay_flags;  // or null
  const StepState* state;
  std::int64_t elements;
  float beta1, rest1, beta2, rest2, eps;
  double weight_decay;
};

__device__ __forceinline__ void update(const Adam& p, const Factors& f, float decay, float g, float& w, float& m,
                                       float& v) {
  g *= f.clip;
  m = p.beta1 * m + p.rest1 * g;
  v = p.beta2 * v + p.rest2 * g * g;
  w -= decay * w;
  w -= f.rate * m / (sqrtf(v) * f.root_scale + p.eps);
}

__global__ void __launch_bounds__(kThreads) adam_kernel(const Adam p) {
  const std::int64_t base = std::int64_t{blockIdx.x} * kSpan * kAccesses + threadIdx.x * kVector<float>;
  float g[kAccesses][kVector<float>], w[kAccesses][kVector<float>], m[kAccesses][kVector<float>],
      v[kAccesses][kVector<float>];
  bool decays[kAccesses] = {};
#pragma unroll
  for (int k = 0; k < kAccesses; ++k) {
    const std::int64_t i = base + k * kSpan;
    if (i >= p.elements) continue;
    load(p.gradients + i, g[k]);
    load(p.weights + i, w[k]);
    load(p.first_moments + i, m[k]);
    load(p.second_moments + i, v[k]);
    decays[k] = p.decay_flags != nullptr && p.decay_flags[i / ParameterStore::kAlignment] != 0;
  }
  // one thread divides and takes the root in double, while the loads of all are under way
  __shared__ Factors shared;
  __shared__ bool skip;
  if (threadIdx.x == 0) {
    const StepState state = *p.state;
    shared.clip = static_cast<float>(state.clip_scale);
    shared.rate = static_cast<float>(state.learning_rate / state.bias_correction1);
    shared.root_scale = static_cast<float>(1 / sqrt(state.bias_correction2));
    shared.decay = static_cast<float>(state.learning_rate * p.weight_decay);
    skip = state.skip != 0;
  }
  __syncthreads();
  if (skip) return;
  const Factors f = shared;
#pragma unroll
  for (int k = 0; k < kAccesses; ++k) {
    const std::int64_t i = base + k * kSpan;
    if (i >= p.elements) continue;
    const float decay = decays[k] ? f.decay : 0.F;
#pragma unroll
    for (int j = 0; j < kVector<float>; ++j) update(p, f, decay, g[k][j], w[k][j], m[k][j], v[k][j]);
    store(p.weights + i, w[k]);
    store(p.first_moments + i, m[k]);
    store(p.second_moments + i, v[k]);
    if (p.compute_copy != nullptr) store(p.compute_copy + i, w[k]);
  }
}

void launch(Stream& stream, const AdamArgs& args) {
  const std::int64_t elements = args.weights.shape.elements();
  if (elements % kVector<float> != 0 || !is_aligned16(args.weights.data) || !is_aligned16(args.gradients.data) ||
      !is_aligned16(args.first_moments.data) || !is_aligned16(args.second_moments.data) ||
      !is_aligned16(args.compute_copy.data)) {
    throw DeviceError("adam: the flat buffers are not aligned to 16 bytes");
  }
  const AdamOptions& options = args.options;
  const Adam p{args.gradients.as<float>(),
               args.weights.as<float>(),
               args.first_moments.as<float>(),
               args.second_moments.as<float>(),
               args.compute_copy.as<bf16>(),
               args.decay_flags.as<std::uint8_t>(),
               args.state,
               elements,
               static_cast<float>(options.beta1),
               static_cast<float>(1 - options.beta1),
               static_cast<float>(options.beta2),
               static_cast<float>(1 - options.beta2),
               static_cast<float>(options.eps),
               options.weight_decay};
  adam_kernel<<<blocks_for(elements, kSpan * kAccesses), kThreads, 0, handle(stream)>>>(p);
  check(cudaGetLastError());
}

const Register adam_registered{adam_update, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
