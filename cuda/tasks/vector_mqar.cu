#include <cstdint>

#include "cuda/launch.cuh"
#include "tasks/vector_mqar.h"

namespace graft::cuda {
namespace {

/// One example a block: the queries are chosen together, then a thread writes one vector at a time.
template <class T>
__global__ void sample_kernel(const SampleVectors args) {
  extern __shared__ __align__(16) unsigned char shared[];
  const VectorRetrieval& law = args.law;
  auto* order = reinterpret_cast<double*>(shared);
  const VectorRetrieval::Scratch scratch{order, reinterpret_cast<std::int32_t*>(order + law.scratch_doubles())};
  const Threads threads{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  const std::int64_t at = blockIdx.x;
  const StepState state = *args.state;
  const VectorExample example = vector_example(args.order, args.selection, state, at);
  law.choose(threads, example.draw, scratch);

  const std::int64_t width = args.tokens.shape.columns();
  const int points = law.points();
  T* tokens = args.tokens.as<T>() + at * law.tokens() * width;
  float* targets = args.targets.as<float>() + at * points * law.dim;
  law.write(
      threads, example.draw, scratch.asked,
      [=](int t, int j, float value) {
        tokens[t * width + j] = from_float<T>(value);
        if (j == law.dim - 1) {
          for (std::int64_t pad = law.dim; pad < width; ++pad) tokens[t * width + pad] = from_float<T>(0.F);
        }
      },
      [=](int i, int j, float value) { targets[static_cast<std::int64_t>(i) * law.dim + j] = value; });
  if (!args.mask) return;
  for (int i = threads.rank; i < points; i += threads.count) {
    args.mask.as<std::uint8_t>()[at * points + i] = !example.missing && scratch.asked[i] >= 0 ? 1 : 0;
  }
}

void sample(Stream& stream, const SampleVectors& args) {
  constexpr int kThreads = 128;
  const auto bytes = static_cast<std::size_t>(args.law.scratch_doubles()) * sizeof(double) +
                     static_cast<std::size_t>(args.law.scratch_integers()) * sizeof(std::int32_t);
  with_type(args.tokens.dtype, "sample_vectors", [&](auto type) {
    using T = typename decltype(type)::type;
    allow_shared_memory(sample_kernel<T>, bytes);
    sample_kernel<T><<<blocks_for(args.selection.batch, 1), kThreads, bytes, handle(stream)>>>(args);
  });
  check(cudaGetLastError());
}

const Register registered{sample_vectors, Backend::Cuda, sample};

}  // namespace
}  // namespace graft::cuda
