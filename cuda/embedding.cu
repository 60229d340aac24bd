#include <cstdint>
#include <string>

#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/embedding.h"

namespace graft::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

AnyRows rows_of(const ConstView& view, const char* kernel) {
  if (view && view.dtype != DType::F32 && view.dtype != DType::BF16) {
    throw DeviceError(std::string(kernel) + ": dtype is " + name_of(view.dtype) +
                      ", expected float32 or bfloat16 (float64 runs on the CPU only)");
  }
  return {const_cast<void*>(view.data), view.dtype == DType::BF16};
}

// ---- y[row] = x[ids ? ids[row] : row] + table[start + row % tokens]: look-up and positions, a warp a row

struct Gather {
  AnyRows x;
  const std::int32_t* ids;  // null: row i of x for row i of y
  std::int64_t x_rows;
  AnyRows table;  // data may be null
  float* y;
  std::int64_t rows;
  std::int64_t tokens;
  int width;
  const std::int32_t* start;  // null: 0
  std::int64_t table_rows;
};

template <bool kAligned>
__global__ void __launch_bounds__(kThreads) gather_kernel(const Gather p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= p.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t source = p.ids != nullptr ? p.ids[row] : row;
  const std::int64_t position = (p.start != nullptr ? *p.start : 0) + row % p.tokens;
  const bool placed = p.table.data == nullptr || (position >= 0 && position < p.table_rows);
  const bool known = source >= 0 && source < p.x_rows && placed;
#pragma unroll 2
  for (int column = lane * kGroup; column < p.width; column += kWarp * kGroup) {
    float value[kGroup], added[kGroup] = {};
    if (known) {
      p.x.load<kAligned>(source * p.width, column, p.width, value);
    } else {
      for (float& v : value) v = __int_as_float(0x7fc00000);
    }
    if (p.table.data != nullptr && placed) p.table.load<kAligned>(position * p.width, column, p.width, added);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) value[j] += added[j];
    store_group<kAligned>(p.y + row * p.width, column, p.width, value);
  }
}

void launch_gather(Stream& stream, const Gather& p) {
  const unsigned blocks = blocks_for(p.rows, kWarps);
  if (groups_aligned(p.width, p.x.data, p.table.data, p.y)) {
    gather_kernel<true><<<blocks, kThreads, 0, handle(stream)>>>(p);
  } else {
    gather_kernel<false><<<blocks, kThreads, 0, handle(stream)>>>(p);
  }
  check(cudaGetLastError());
}

void launch_embedding(Stream& stream, const EmbeddingForward& args) {
  launch_gather(stream, {rows_of(args.table, "embedding_forward"), args.ids.as<std::int32_t>(), args.table.shape[0],
                         rows_of(args.positions, "embedding_forward"), args.y.as<float>(), args.ids.shape.elements(),
                         args.ids.shape.columns(), static_cast<int>(args.table.shape[1]), args.start.as<std::int32_t>(),
                         args.positions ? args.positions.shape[0] : 0});
}

void launch_add_positions(Stream& stream, const AddPositionsForward& args) {
  launch_gather(stream,
                {rows_of(args.x, "add_positions_forward"), nullptr, args.x.shape.rows(),
                 rows_of(args.table, "add_positions_forward"), args.y.as<float>(), args.x.shape.rows(), args.x.shape[1],
                 static_cast<int>(args.x.shape[2]), args.start.as<std::int32_t>(), args.table.shape[0]});
}

// ---- dtable[v] = sum of dy[i] over ids[i] == v, in order of i

struct Scatter {
  const float* dy;
  const std::int32_t* ids;
  AnyRows to;  // the table's gradient, or [segments, vocabulary, width] partial sums
  bool accumulate;
  std::int64_t count;
  std::int64_t ids_a_segment;
  std::int64_t vocabulary;
  int width;
};

/// A warp scans the ids of one segment for one row of the table and 128 of its columns. No two warps write to the same
/// place, and hits come in order: the sum needs no atomics.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) scatter_kernel(const Scatter p) {
  constexpr int kAhead = 4;
  const std::int64_t v = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (v >= p.vocabulary) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = static_cast<int>(blockIdx.y) * kWarp * kGroup + lane * kGroup;
  const std::int64_t first = blockIdx.z * p.ids_a_segment;
  const std::int64_t last = min(p.count, first + p.ids_a_segment);
  float sum[kGroup] = {};
  for (std::int64_t base = first; base < last; base += kAhead * kWarp) {
    std::int32_t id[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const std::int64_t i = base + k * kWarp + lane;
      id[k] = i < last ? p.ids[i] : -1;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      unsigned hits = __ballot_sync(kFullWarp, id[k] == v);
      while (hits != 0) {  // the same in all lanes
        float row[kAhead][kGroup];
#pragma unroll
        for (int h = 0; h < kAhead; ++h) {
          const std::int64_t i = base + k * kWarp + __ffs(static_cast<int>(hits)) - 1;
          load_group<kAligned>(p.dy + (hits != 0 ? i : 0) * p.width, hits != 0 ? column : p.width, p.width, row[h]);
          hits &= hits - 1;
        }
#pragma unroll
        for (int h = 0; h < kAhead; ++h) {
#pragma unroll
          for (int j = 0; j < kGroup; ++j) sum[j] += row[h][j];
        }
      }
    }
  }
  const std::int64_t row = blockIdx.z * p.vocabulary + v;
  p.to.store_or_add<kAligned>(p.accumulate, row * p.width, column, p.width, sum);
}

/// Adds the segments' sums, in order; the table is seen as one row.
__global__ void __launch_bounds__(kThreads) add_segments_kernel(const float* partial, std::int64_t segments,
                                                                std::int64_t elements, AnyRows to, bool accumulate) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= elements) return;
  float sum = 0.F;
#pragma unroll 8
  for (std::int64_t s = 0; s < segments; ++s) sum += partial[s * elements + i];
  if (to.is_bf16) {
    auto* const target = static_cast<bf16*>(to.data) + i;
    *target = __float2bfloat16_rn(accumulate ? to_float(*target) + sum : sum);
  } else {
    auto* const target = static_cast<float*>(to.data) + i;
    *target = accumulate ? *target + sum : sum;
  }
}

void launch_embedding_backward(Stream& stream, const EmbeddingBackward& args) {
  const std::int64_t count = args.ids.shape.elements();
  const std::int64_t vocabulary = args.dtable.view.shape[0];
  const auto width = static_cast<int>(args.dtable.view.shape[1]);
  const std::int64_t segments = embedding_segments(count, vocabulary);
  const AnyRows dtable = rows_of(args.dtable.view, "embedding_backward");
  const bool direct = !args.partial;
  const Scatter p{args.dy.as<float>(),
                  args.ids.as<std::int32_t>(),
                  direct ? dtable : AnyRows{args.partial.data, false},
                  direct && args.dtable.accumulate,
                  count,
                  ceil_div(count, segments),
                  vocabulary,
                  width};
  const dim3 grid(blocks_for(vocabulary, kWarps), blocks_for(width, kWarp * kGroup), static_cast<unsigned>(segments));
  if (groups_aligned(width, p.dy, p.to.data)) {
    scatter_kernel<true><<<grid, kThreads, 0, handle(stream)>>>(p);
  } else {
    scatter_kernel<false><<<grid, kThreads, 0, handle(stream)>>>(p);
  }
  check(cudaGetLastError());
  if (direct) return;
  const std::int64_t elements = vocabulary * width;
  add_segments_kernel<<<blocks_for(elements, kThreads), kThreads, 0, handle(stream)>>>(
      args.partial.as<float>(), segments, elements, dtable, args.dtable.accumulate);
  check(cudaGetLastError());
}

// ---- dtable[t] = sum over the batch of dy[b, t]

struct PositionsBackward {
  const float* dy;
  AnyRows dx;      // data may be null
  AnyRows dtable;  // data may be null
  bool accumulate_dx;
  bool accumulate_dtable;
  int batch;
  int tokens;
  int width;
};

/// A block has one token position and 128 columns; its warps take every eighth prompt.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) positions_backward_kernel(const PositionsBackward p) {
  __shared__ float4 parts[kWarps][kWarp];
  const int token = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int column = (static_cast<int>(blockIdx.y) * kWarp + lane) * kGroup;
  float sum[kGroup] = {};
  if (token < p.tokens) {  // later rows of the table were not used
#pragma unroll 4
    for (int b = warp; b < p.batch; b += kWarps) {
      const std::int64_t start = (std::int64_t{b} * p.tokens + token) * p.width;
      float dy[kGroup];
      load_group<kAligned>(p.dy + start, column, p.width, dy);
      if (p.dx.data != nullptr) p.dx.store_or_add<kAligned>(p.accumulate_dx, start, column, p.width, dy);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) sum[j] += dy[j];
    }
  }
  if (p.dtable.data == nullptr) return;
  parts[warp][lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) {
    const float4 part = parts[w][lane];
    sum[0] += part.x;
    sum[1] += part.y;
    sum[2] += part.z;
    sum[3] += part.w;
  }
  p.dtable.store_or_add<kAligned>(p.accumulate_dtable, std::int64_t{token} * p.width, column, p.width, sum);
}

void launch_positions_backward(Stream& stream, const AddPositionsBackward& args) {
  const auto tokens = static_cast<int>(args.dy.shape[1]);
  const auto width = static_cast<int>(args.dy.shape[2]);
  const PositionsBackward p{args.dy.as<float>(),
                            rows_of(args.dx.view, "add_positions_backward"),
                            rows_of(args.dtable.view, "add_positions_backward"),
                            args.dx.accumulate,
                            args.dtable.accumulate,
                            static_cast<int>(args.dy.shape[0]),
                            tokens,
                            width};
  const dim3 grid(blocks_for(args.dtable ? args.dtable.view.shape[0] : tokens, 1), blocks_for(width, kWarp * kGroup));
  if (groups_aligned(width, p.dy, p.dx.data, p.dtable.data)) {
    positions_backward_kernel<true><<<grid, kThreads, 0, handle(stream)>>>(p);
  } else {
    positions_backward_kernel<false><<<grid, kThreads, 0, handle(stream)>>>(p);
  }
  check(cudaGetLastError());
}

const Register embedding{embedding_forward, Backend::Cuda, launch_embedding};
const Register embedding_gradient{embedding_backward, Backend::Cuda, launch_embedding_backward};
const Register positions{add_positions_forward, Backend::Cuda, launch_add_positions};
const Register positions_gradient{add_positions_backward, Backend::Cuda, launch_positions_backward};

}  // namespace
}  // namespace graft::cuda
