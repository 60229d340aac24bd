#include <cstdint>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "ops/value_summary.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    summary_kernel(const T* values, ValueSummary* partial, std::int64_t elements, std::int64_t elements_a_block) {
  const std::int64_t last = min(elements, (blockIdx.x + std::int64_t{1}) * elements_a_block);
  ValueSummary part;
  for (std::int64_t i = blockIdx.x * elements_a_block + threadIdx.x; i < last; i += kThreads) {
    part.count(static_cast<double>(to_float(values[i])), i);
  }
  // shared memory cannot be initialised, so that its type has no constructor
  __shared__ alignas(ValueSummary) unsigned char storage[kThreads * sizeof(ValueSummary)];
  auto* const parts = reinterpret_cast<ValueSummary*>(storage);
  parts[threadIdx.x] = part;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) parts[threadIdx.x].merge(parts[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) partial[blockIdx.x] = parts[0];
}

void summarize(Stream& stream, const ValueSummaryArgs& args) {
  const std::int64_t elements = args.values.shape.elements();
  const std::int64_t blocks = summary_blocks(elements);
  const std::int64_t elements_a_block = (elements + blocks - 1) / blocks;
  with_type(args.values.dtype, "value_summary", [&](auto type) {
    using T = typename decltype(type)::type;
    summary_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, handle(stream)>>>(args.values.as<T>(), args.partial,
                                                                                      elements, elements_a_block);
  });
  check(cudaGetLastError());
}

template <class T>
__global__ void poison_kernel(const PoisonArgs args) {
  if (args.state->step < args.first_step || args.state->step > args.last_step) return;
  if constexpr (std::is_same_v<T, double>) {
    args.target.as<T>()[args.element] = args.value;
  } else {
    args.target.as<T>()[args.element] = from_float<T>(static_cast<float>(args.value));
  }
}

void write_poison(Stream& stream, const PoisonArgs& args) {
  if (args.target.dtype == DType::F64) {  // partial sums
    poison_kernel<double><<<1, 1, 0, handle(stream)>>>(args);
    check(cudaGetLastError());
    return;
  }
  with_type(args.target.dtype, "poison", [&](auto type) {
    using T = typename decltype(type)::type;
    poison_kernel<T><<<1, 1, 0, handle(stream)>>>(args);
  });
  check(cudaGetLastError());
}

const Register summary_registered{value_summary_kernel, Backend::Cuda, summarize};
const Register poison_registered{poison, Backend::Cuda, write_poison};

}  // namespace
}  // namespace graft::cuda
