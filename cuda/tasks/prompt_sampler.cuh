#pragma once

#include <cstdint>

#include "cuda/launch.cuh"
#include "tasks/prompt_sampler.h"

namespace graft::cuda {

/// Both tokens and the target of an outlier: x [dim] in shared memory, the y-token and the target in global memory.
template <class T, class Law>
__device__ void write_outlier(const Law& law, const Draw& draw, const float* parameters, int i, float* x, T* y_token,
                              int width, float* targets) {
  const typename Law::Outlier outlier = law.outlier(draw, i);
  for (int j = 0; j < law.dim; ++j) x[j] = law.outlier_x(parameters, outlier, j);
  for (int j = 0; j < width; ++j) {
    y_token[j] = from_float<T>(j < law.dim ? law.outlier_y(parameters, outlier, j) : 0.F);
  }
  targets[i] = law.outlier_y(parameters, outlier, 0);
}

/// Fills the tokens and targets of one prompt a block. The prompt's parameters are drawn once into shared memory;
/// inputs are drawn four at a time into shared memory, a tile of points at once, then labelled by one thread a point.
template <class T, class Law>
__global__ void sample_prompts_kernel(SamplePrompts<Law> args, int tile_points) {
  extern __shared__ float shared[];
  const int parameter_count = args.law.parameters();
  float* parameters = shared;                              // [parameters]
  float* inputs = shared + (parameter_count + 3) / 4 * 4;  // [tile_points, dim], up to 3 more at either end
  const std::int64_t example = blockIdx.x;
  const StepState state = *args.state;
  const Draw draw = draw_of(args.selection, state, example);
  const int dim = args.law.dim;
  const int active = active_dims(args.selection, args.dims, state, dim);
  const int width = static_cast<int>(args.tokens.shape.columns());
  T* tokens = args.tokens.template as<T>() + example * 2 * args.points * width;
  float* targets = args.targets.template as<float>() + example * args.points;

  for (int j = static_cast<int>(threadIdx.x); j < parameter_count; j += static_cast<int>(blockDim.x)) {
    parameters[j] = args.law.parameter(draw, j);
  }
  if constexpr (SettlesParameters<Law>) {
    __syncthreads();
    if (threadIdx.x == 0) args.law.settle(draw, active, parameters);  // the tiles begin with a barrier
  }
  for (std::int64_t first = 0; first < args.points; first += tile_points) {
    const int points = static_cast<int>(args.points - first < tile_points ? args.points - first : tile_points);
    const int first_element = static_cast<int>(first) * dim;  // a multiple of 4: tiles are multiples of 4 points
    __syncthreads();
    for (int block = static_cast<int>(threadIdx.x); block * 4 < points * dim; block += static_cast<int>(blockDim.x)) {
      args.law.inputs4(draw, first_element / 4 + block, inputs + 4 * block);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < points; i += static_cast<int>(blockDim.x)) {
      float* x = inputs + i * dim;
      T* y_token = tokens + (2 * (first + i) + 1) * width;
      if constexpr (HasOutliers<Law>) {
        const bool outlier = args.law.is_outlier(draw, static_cast<int>(first) + i);
        args.mask.template as<std::uint8_t>()[example * args.points + first + i] = outlier ? 0 : 1;
        if (outlier) {
          write_outlier(args.law, draw, parameters, static_cast<int>(first) + i, x, y_token, width, targets);
          continue;
        }
      }
      for (int j = active; j < dim; ++j) x[j] = 0.F;
      const float y = args.law.label(parameters, x);
      targets[first + i] = y;
      for (int j = 0; j < width; ++j) y_token[j] = from_float<T>(j == 0 ? y : 0.F);
    }
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < points * width; e += static_cast<int>(blockDim.x)) {
      const int i = e / width;
      const int j = e % width;
      tokens[2 * (first + i) * width + j] = from_float<T>(j < dim ? inputs[i * dim + j] : 0.F);
    }
  }
}

/// CUDA kernel of a law's sampler; a task's .cu file registers it in one line.
template <class Law>
void sample_prompts(Stream& stream, const SamplePrompts<Law>& args) {
  constexpr int kThreads = 128;
  constexpr std::size_t kInputFloats = 8192;
  const auto dim = static_cast<std::size_t>(args.law.dim);
  std::size_t tile = kInputFloats / dim / 4 * 4;
  if (tile < 4) tile = 4;
  const auto parameters = static_cast<std::size_t>((args.law.parameters() + 3) / 4 * 4);
  const std::size_t bytes = (parameters + tile * dim + 4) * sizeof(float);
  with_type(args.tokens.dtype, "sample_prompts", [&](auto type) {
    using T = typename decltype(type)::type;
    allow_shared_memory(sample_prompts_kernel<T, Law>, bytes);
    sample_prompts_kernel<T, Law>
        <<<blocks_for(args.selection.batch, 1), kThreads, bytes, handle(stream)>>>(args, static_cast<int>(tile));
  });
  check(cudaGetLastError());
}

}  // namespace graft::cuda
