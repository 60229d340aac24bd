#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <utility>

#include "cuda/check.h"
#include "cuda/stream.h"
#include "cuda/vec.cuh"
#include "engine/dtype.h"
#include "engine/error.h"

namespace graft::cuda {

/// Blocks that cover `n` items, `per_block` each. Throws DeviceError where a grid cannot be that large.
[[nodiscard]] inline unsigned blocks_for(std::int64_t n, std::int64_t per_block) {
  const std::int64_t blocks = (n + per_block - 1) / per_block;
  if (blocks > 0x7fffffff) throw DeviceError("a grid of " + std::to_string(blocks) + " blocks is too large to launch");
  return static_cast<unsigned>(blocks);
}

template <class T>
struct Type {
  using type = T;
};

/// Calls body(Type<T>{}) with the device type of a float32 or bfloat16 dtype. `kernel` names the caller
/// in the DeviceError that any other dtype gets.
///   with_type(args.x.dtype, "activation", [&](auto type) { using T = typename decltype(type)::type; ... });
template <class Body>
void with_type(DType dtype, const char* kernel, Body&& body) {
  switch (dtype) {
    case DType::F32:
      return std::forward<Body>(body)(Type<float>{});
    case DType::BF16:
      return std::forward<Body>(body)(Type<bf16>{});
    default:
      throw DeviceError(std::string(kernel) + ": dtype is " + name_of(dtype) +
                        ", expected float32 or bfloat16 (float64 runs on the CPU only)");
  }
}

/// Lets `kernel` use `bytes` of dynamic shared memory; needed above 48 KiB. Legal while capturing.
template <class KernelFunction>
void allow_shared_memory(KernelFunction* kernel, std::size_t bytes) {
  if (bytes > 48U * 1024U) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
}

}  // namespace graft::cuda
