#include <cstdint>

#include "cuda/ssd_plain.cuh"

// Forward in float32 arithmetic, for every shape and alignment.

namespace graft::cuda::ssd {
namespace {

template <class T>
__global__ void __launch_bounds__(kPlainThreads) states_kernel(const StateSums<T> p) {
  __shared__ __align__(16) Panels panels;
  __shared__ __align__(16) float dt[kChunk];
  __shared__ __align__(16) float decay[kChunk];
  const Source<T>& in = p.in;
  const int state_blocks = (in.state + kBlock - 1) / kBlock;
  const int blocks = (in.head_dim + kBlock - 1) / kBlock * state_blocks;
  const int block = static_cast<int>(blockIdx.x) % blocks;
  const int head = static_cast<int>(blockIdx.x) / blocks % in.heads;
  const int chunk = static_cast<int>(blockIdx.x) / blocks / in.heads % in.chunks;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / blocks / in.heads / in.chunks;
  if (chunk == p.unused) return;
  const int p0 = block / state_blocks * kBlock;
  const int n0 = block % state_blocks * kBlock;
  const ChunkReader<T> at(in, sequence, chunk, head);
  if (threadIdx.x < kWarp) warp_steps(in, sequence, chunk, head, dt, decay, nullptr);
  __syncthreads();
  const float total = decay[kChunk - 1];

  Elements sum = {};  // [P, N]
  if (p.backward) {
    multiply_add<true, true>(
        sum, panels, at.valid, [&](int row, int k) { return fast_exp2(decay[k]) * at.dy(p.dy, k, p0 + row); },
        [&](int k, int column) { return at.c(k, n0 + column); });
  } else {
    multiply_add<true, true>(
        sum, panels, at.valid, [&](int row, int k) { return fast_exp2(total - decay[k]) * dt[k] * at.x(k, p0 + row); },
        [&](int k, int column) { return at.b(k, n0 + column); });
  }
  const std::int64_t first = ((sequence * in.chunks + chunk) * in.heads + head) * in.head_dim * in.state;
  for_each_element([&](int r, int c, int row, int column) {
    if (p0 + row >= in.head_dim || n0 + column >= in.state) return;
    const std::int64_t i = first + std::int64_t{p0 + row} * in.state + n0 + column;
    float value = sum[r][c];
    if (p.whole && p.carried != nullptr) value += fast_exp2(total) * p.carried[i];
    store_or_add(p.to + i, p.accumulate, value);
  });
}

template <class T>
__global__ void __launch_bounds__(kPlainThreads) outputs_kernel(const Outputs<T> p) {
  __shared__ __align__(16) Panels panels;
  __shared__ Square weights;
  __shared__ __align__(16) float dt[kChunk];
  __shared__ __align__(16) float decay[kChunk];
  const Source<T>& in = p.in;
  const int head_blocks = (in.head_dim + kBlock - 1) / kBlock;
  const int p0 = static_cast<int>(blockIdx.x) % head_blocks * kBlock;
  const int block = static_cast<int>(blockIdx.x) / head_blocks % kChunkBlocks;
  const int unit = static_cast<int>(blockIdx.x) / head_blocks / kChunkBlocks;
  const int head = unit % in.heads;
  const int chunk = unit / in.heads % in.chunks;
  const std::int64_t sequence = unit / in.heads / in.chunks;
  const ChunkReader<T> at(in, sequence, chunk, head);
  if (block * kBlock >= at.valid) return;
  if (threadIdx.x < kWarp) warp_steps(in, sequence, chunk, head, dt, decay, nullptr);
  __syncthreads();
  const float* const state =
      p.ends.has_before(chunk)
          ? p.ends.before + ((sequence * in.chunks + chunk) * in.heads + head) * in.head_dim * in.state
          : nullptr;

  Elements y = {};
  add_outputs(y, panels, weights, at, dt, decay, state, block, p0);
  for_each_element([&](int r, int c, int row, int column) {
    const int step = block * kBlock + row;
    const int channel = p0 + column;
    if (step >= at.valid || channel >= in.head_dim) return;
    float value = y[r][c] + in.skip_of(head, channel, in.head_skip(head)) * at.x(step, channel);
    if (in.z != nullptr) value *= silu(at.z(step, channel));
    p.y[(at.row0 + step) * in.width + std::int64_t{head} * in.head_dim + channel] = from_float<T>(value);
  });
}

}  // namespace

template <class T>
void states_plain(cudaStream_t stream, const StateSums<T>& p, std::int64_t batch) {
  const std::int64_t blocks =
      std::int64_t{(p.in.head_dim + kBlock - 1) / kBlock} * ((p.in.state + kBlock - 1) / kBlock);
  launch(states_kernel<T>, stream, batch * p.in.chunks * p.in.heads * blocks, kPlainThreads, 0, p);
}
template void states_plain(cudaStream_t, const StateSums<float>&, std::int64_t);
template void states_plain(cudaStream_t, const StateSums<bf16>&, std::int64_t);

template <class T>
void outputs_plain(cudaStream_t stream, const Outputs<T>& p, std::int64_t batch) {
  const std::int64_t blocks = std::int64_t{(p.in.head_dim + kBlock - 1) / kBlock} * kChunkBlocks;
  launch(outputs_kernel<T>, stream, batch * p.in.chunks * p.in.heads * blocks, kPlainThreads, 0, p);
}
template void outputs_plain(cudaStream_t, const Outputs<float>&, std::int64_t);
template void outputs_plain(cudaStream_t, const Outputs<bf16>&, std::int64_t);

}  // namespace graft::cuda::ssd
