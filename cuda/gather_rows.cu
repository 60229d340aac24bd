#include <cstdint>
#include <string>

#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "ops/gather_rows.h"

namespace graft::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

AnyRows rows_of(const ConstView& view, const char* kernel) {
  if (view.dtype != DType::F32 && view.dtype != DType::BF16) {
    throw DeviceError(std::string(kernel) + ": dtype is " + name_of(view.dtype) +
                      ", expected float32 or bfloat16 (float64 runs on the CPU only)");
  }
  return {const_cast<void*>(view.data), view.dtype == DType::BF16};
}

struct Gather {
  AnyRows x;  // dx in backward
  AnyRows y;  // dy in backward
  const std::int32_t* positions;
  std::int64_t rows;  // of y; of dx in backward
  std::int64_t tokens;
  int count;  // positions a sequence
  int width;
  bool accumulate;
};

/// A warp copies a row.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Gather p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= p.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t position = p.positions[row];
  const bool known = position >= 0 && position < p.tokens;
  const std::int64_t source = (row / p.count * p.tokens + position) * p.width;
#pragma unroll 2
  for (int column = lane * kGroup; column < p.width; column += kWarp * kGroup) {
    float value[kGroup];
    if (known) {
      p.x.load<kAligned>(source, column, p.width, value);
    } else {
      for (float& v : value) v = __int_as_float(0x7fc00000);
    }
    p.y.store_or_add<kAligned>(false, row * p.width, column, p.width, value);
  }
}

/// A warp owns a row of dx and looks for its token among the positions of the sequence. Most rows are not named: they
/// are stored as zeros, or left alone, without a look at dy.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) backward_kernel(const Gather p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= p.rows) return;  // the whole warp
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t sequence = row / p.tokens;
  const auto token = static_cast<std::int32_t>(row - sequence * p.tokens);
  const std::int32_t* const positions = p.positions + sequence * p.count;
  bool hit = false;
  for (int i = lane; i < p.count; i += kWarp) hit |= positions[i] == token;
  const bool named = __any_sync(kFullWarp, hit) != 0;
  if (!named && p.accumulate) return;
  for (int start = 0; start < p.width; start += kWarp * kGroup) {
    const int column = start + lane * kGroup;
    float sum[kGroup] = {};
    for (int base = 0; named && base < p.count; base += kWarp) {
      const bool mine = base + lane < p.count && positions[base + lane] == token;
      unsigned hits = __ballot_sync(kFullWarp, mine);
      for (; hits != 0; hits &= hits - 1) {  // in order of i, the same in all lanes
        const std::int64_t i = base + __ffs(static_cast<int>(hits)) - 1;
        float dy[kGroup];
        p.y.load<kAligned>((sequence * p.count + i) * p.width, column, p.width, dy);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) sum[j] += dy[j];
      }
    }
    p.x.store_or_add<kAligned>(p.accumulate, row * p.width, column, p.width, sum);
  }
}

void launch_forward(Stream& stream, const GatherRowsForward& args) {
  const Gather p{rows_of(args.x, "gather_rows_forward"),
                 rows_of(args.y, "gather_rows_forward"),
                 args.positions.as<std::int32_t>(),
                 args.y.shape.rows(),
                 args.x.shape[1],
                 static_cast<int>(args.positions.shape[1]),
                 static_cast<int>(args.x.shape[2]),
                 false};
  const unsigned blocks = blocks_for(p.rows, kWarps);
  if (groups_aligned(p.width, p.x.data, p.y.data)) {
    forward_kernel<true><<<blocks, kThreads, 0, handle(stream)>>>(p);
  } else {
    forward_kernel<false><<<blocks, kThreads, 0, handle(stream)>>>(p);
  }
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const GatherRowsBackward& args) {
  if (!args.dx) return;
  const Gather p{rows_of(args.dx.view, "gather_rows_backward"),
                 rows_of(args.dy, "gather_rows_backward"),
                 args.positions.as<std::int32_t>(),
                 args.dx.view.shape.rows(),
                 args.dx.view.shape[1],
                 static_cast<int>(args.positions.shape[1]),
                 static_cast<int>(args.dx.view.shape[2]),
                 args.dx.accumulate};
  const unsigned blocks = blocks_for(p.rows, kWarps);
  if (groups_aligned(p.width, p.x.data, p.y.data)) {
    backward_kernel<true><<<blocks, kThreads, 0, handle(stream)>>>(p);
  } else {
    backward_kernel<false><<<blocks, kThreads, 0, handle(stream)>>>(p);
  }
  check(cudaGetLastError());
}

const Register forward{gather_rows_forward, Backend::Cuda, launch_forward};
const Register backward{gather_rows_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
