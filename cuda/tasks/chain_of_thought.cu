#include <cstdint>

#include "cuda/launch.cuh"
#include "tasks/chain_of_thought.h"
#include "tasks/prompt_sampler.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 32;  // points in shared memory at a time
constexpr int kTokensPerPoint = 3;

/// One prompt a block. Its network is drawn once into shared memory; then, a tile of points at a time, inputs four at
/// once, hidden values by one thread each, labels by one thread a point, and tokens column by column.
template <class T>
__global__ void sample_kernel(const SampleChains args) {
  extern __shared__ float shared[];
  const ChainOfThought& law = args.law;
  const int stored_dim = law.stored_dim();
  const int hidden = law.hidden;
  float* parameters = shared;                 // [parameters]
  float* xs = parameters + law.parameters();  // [tile, stored_dim]
  float* hiddens = xs + kTile * stored_dim;   // [tile, hidden]
  float* ys = hiddens + kTile * hidden;       // [tile]
  const StepState state = *args.state;
  const Draw draw = draw_of(args.selection, state, blockIdx.x);
  const int active = active_dims(args.selection, args.dims, state, law.dim);
  const int width = static_cast<int>(args.tokens.shape.columns());
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t prompt = blockIdx.x * args.points;
  T* tokens = args.tokens.as<T>() + kTokensPerPoint * prompt * width;
  float* targets = args.targets.as<float>() + prompt * (hidden + 1);

  for (int j = thread; j < law.parameters(); j += kThreads) parameters[j] = law.parameter(draw, j);
  for (std::int64_t first = 0; first < args.points; first += kTile) {
    const int points = static_cast<int>(args.points - first < kTile ? args.points - first : kTile);
    const int blocks = stored_dim / 4;
    for (int e = thread; e < points * blocks; e += kThreads) {
      law.inputs4(draw, static_cast<int>(first) + e / blocks, e % blocks, active, xs + 4 * e);
    }
    __syncthreads();
    for (int e = thread; e < points * hidden; e += kThreads) {
      hiddens[e] = law.hidden_value(parameters, xs + e / hidden * stored_dim, e % hidden);
    }
    __syncthreads();
    for (int i = thread; i < points; i += kThreads) ys[i] = law.label(parameters, hiddens + i * hidden);
    __syncthreads();
    for (int e = thread; e < points * kTokensPerPoint * width; e += kThreads) {
      const int token = e / width;
      const int i = token / kTokensPerPoint;
      tokens[kTokensPerPoint * first * width + e] = from_float<T>(
          law.column(token % kTokensPerPoint, e % width, xs + i * stored_dim, hiddens + i * hidden, ys[i]));
    }
    for (int e = thread; e < points * (hidden + 1); e += kThreads) {
      const int i = e / (hidden + 1);
      const int k = e % (hidden + 1);
      targets[first * (hidden + 1) + e] = k < hidden ? hiddens[i * hidden + k] : ys[i];
    }
    __syncthreads();
  }
}

/// A thread copies one element.
template <class T>
__global__ void __launch_bounds__(kThreads) feed_back_kernel(const FeedBack args) {
  const std::int64_t length = args.fed.shape[1];
  const std::int64_t width = args.fed.shape.columns();
  const std::int64_t e = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= args.fed.shape.elements()) return;
  const std::int64_t c = e % width;
  const std::int64_t token = e / width % length;
  const std::int64_t sequence = e / width / length;
  const std::int64_t point = args.first + sequence % args.count;
  const std::int64_t source = sequence / args.count * args.tokens.shape[1];
  const std::int64_t k = c - args.law.hidden_column();
  const bool own = token == kTokensPerPoint * point + 1 && k >= 0 && k < args.law.hidden;
  args.fed.as<T>()[e] = own ? args.outputs.as<T>()[(source + token - 1) * args.outputs.shape.columns() + k]
                            : args.tokens.as<T>()[(source + token) * width + c];
}

template <class T>
__global__ void __launch_bounds__(kThreads) collect_labels_kernel(const CollectLabels args) {
  const std::int64_t sequence = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (sequence >= args.outputs.shape[0]) return;
  const std::int64_t point = args.first + sequence % args.count;
  const std::int64_t token = sequence * args.outputs.shape[1] + kTokensPerPoint * point + 1;
  args.predictions.as<float>()[sequence / args.count * args.predictions.shape[1] + point] =
      to_float(args.outputs.as<T>()[token * args.outputs.shape.columns() + args.law.hidden]);
}

void sample(Stream& stream, const SampleChains& args) {
  const ChainOfThought& law = args.law;
  const auto floats = static_cast<std::size_t>(law.parameters() + kTile * (law.stored_dim() + law.hidden + 1));
  with_type(args.tokens.dtype, "sample_chains", [&](auto type) {
    using T = typename decltype(type)::type;
    allow_shared_memory(sample_kernel<T>, floats * sizeof(float));
    sample_kernel<T><<<blocks_for(args.selection.batch, 1), kThreads, floats * sizeof(float), handle(stream)>>>(args);
  });
  check(cudaGetLastError());
}

void feed(Stream& stream, const FeedBack& args) {
  with_type(args.tokens.dtype, "feed_back", [&](auto type) {
    using T = typename decltype(type)::type;
    feed_back_kernel<T><<<blocks_for(args.fed.shape.elements(), kThreads), kThreads, 0, handle(stream)>>>(args);
  });
  check(cudaGetLastError());
}

void collect(Stream& stream, const CollectLabels& args) {
  with_type(args.outputs.dtype, "collect_labels", [&](auto type) {
    using T = typename decltype(type)::type;
    collect_labels_kernel<T><<<blocks_for(args.outputs.shape[0], kThreads), kThreads, 0, handle(stream)>>>(args);
  });
  check(cudaGetLastError());
}

const Register sampler{sample_chains, Backend::Cuda, sample};
const Register feeder{feed_back, Backend::Cuda, feed};
const Register labels{collect_labels, Backend::Cuda, collect};

}  // namespace
}  // namespace graft::cuda
