#include <cstdint>

#include "cuda/launch.cuh"
#include "ops/advance_length.h"

namespace graft::cuda {
namespace {

__global__ void advance_kernel(std::int32_t* length, std::int32_t tokens) { *length += tokens; }

void advance(Stream& stream, const AdvanceLength& args) {
  advance_kernel<<<1, 1, 0, handle(stream)>>>(args.length.as<std::int32_t>(), args.tokens);
  check(cudaGetLastError());
}

const Register registered{advance_length_kernel, Backend::Cuda, advance};

}  // namespace
}  // namespace graft::cuda
