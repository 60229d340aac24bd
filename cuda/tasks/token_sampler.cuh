#pragma once

#include <cstdint>

#include "cuda/launch.cuh"
#include "tasks/token_sampler.h"

namespace graft::cuda {

/// Draws one sequence a block, its threads working together as the law says.
template <class Law>
__global__ void sample_tokens_kernel(SampleTokens<Law> args) {
  extern __shared__ __align__(16) unsigned char shared[];
  const std::int64_t example = blockIdx.x;
  const Threads threads{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  const TokenRow row = row_of(args, example);
  const StepState state = *args.state;
  static_cast<void>(args.law.draw(threads, draw_of(args.selection, state, example),
                                  reinterpret_cast<typename Law::Scratch*>(shared), row));
  threads.sync();  // the labels are there
  const std::int64_t count = args.positions.shape.columns();
  for (std::int64_t j = threads.rank; j < count; j += threads.count) {
    args.targets.template as<float>()[example * count + j] = static_cast<float>(row.labels[j]);
  }
}

/// CUDA kernel of a law's sampler; a task's .cu file registers it in one line.
template <class Law>
void sample_tokens(Stream& stream, const SampleTokens<Law>& args) {
  constexpr int kThreads = 256;
  if (args.targets.dtype != DType::F32) throw DeviceError("sample_tokens: float64 runs on the CPU only");
  const auto bytes = static_cast<std::size_t>(args.law.scratch(args.selection.domain)) * sizeof(typename Law::Scratch);
  allow_shared_memory(sample_tokens_kernel<Law>, bytes);
  sample_tokens_kernel<Law><<<blocks_for(args.selection.batch, 1), kThreads, bytes, handle(stream)>>>(args);
  check(cudaGetLastError());
}

}  // namespace graft::cuda
