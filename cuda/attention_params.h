#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/attention.h"

namespace graft::cuda::attention {

/// What the attention kernels of all types get: the argument block with its views resolved.
struct Params {
  const void* qkv;
  const void* dy;
  void* y;
  float* lse;
  float* delta;
  void* dqkv;
  int tokens, heads, head_dim;
  int row;          // elements from a token's qkv to the next one's
  int head_stride;  // elements from a head's part of a row to the next one's
  int q_offset, k_offset, v_offset;
  int tiles;  // row tiles a head, one thread block each
  float scale;
  bool vector;      // every row of every head starts at a multiple of 16 bytes and fills them
  bool accumulate;  // dqkv: add
  bool wide;        // dqkv is float32 although qkv is bfloat16
};

/// Tensor-core kernels, head_dim up to 128. False, and nothing launched, if a thread block of this device has too
/// little shared memory.
bool forward_tf32(cudaStream_t stream, Params p, int batch);
bool backward_tf32(cudaStream_t stream, Params p, int batch);
bool forward_bf16(cudaStream_t stream, Params p, int batch);
bool backward_bf16(cudaStream_t stream, Params p, int batch);

/// Kernels of plain float32 arithmetic, any head_dim up to 256; bfloat16 storage if `bf16`.
void forward_plain(cudaStream_t stream, Params p, int batch, bool bf16);
void backward_plain(cudaStream_t stream, Params p, int batch, bool bf16);

}  // namespace graft::cuda::attention
