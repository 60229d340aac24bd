#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "ops/argmax.h"

namespace graft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

/// The value at an index; a NaN counts as larger than any number.
struct Candidate {
  float value;
  std::int32_t index;

  /// Equal values, and NaNs, go to the lower index, so the order of comparing does not matter.
  [[nodiscard]] __device__ bool loses_to(const Candidate& other) const {
    const bool nan = isnan(value);
    const bool other_nan = isnan(other.value);
    if (nan || other_nan) return other_nan && (!nan || other.index < index);
    return other.value > value || (other.value == value && other.index < index);
  }
};

/// A warp has a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    argmax_rows(const T* x, void* y, bool as_integer, std::int64_t rows, std::int32_t columns, std::int64_t stored) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= rows) return;  // the whole warp
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const T* const values = x + row * stored;
  const std::int32_t first = lane < columns ? lane : 0;
  Candidate best{to_float(values[first]), first};
#pragma unroll 4
  for (std::int64_t c = lane + kWarp; c < columns; c += kWarp) {
    const Candidate next{to_float(values[c]), static_cast<std::int32_t>(c)};
    if (best.loses_to(next)) best = next;
  }
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const Candidate other{shuffle_xor(best.value, mask), shuffle_xor(best.index, mask)};
    if (best.loses_to(other)) best = other;
  }
  if (lane != 0) return;
  if (as_integer) {
    static_cast<std::int32_t*>(y)[row] = best.index;
  } else {
    static_cast<float*>(y)[row] = static_cast<float>(best.index);
  }
}

void launch(Stream& stream, const Argmax& args) {
  const std::int64_t rows = args.x.shape.rows();
  with_type(args.x.dtype, "argmax", [&](auto type) {
    using T = typename decltype(type)::type;
    argmax_rows<T><<<blocks_for(rows, kWarps), kThreads, 0, handle(stream)>>>(
        args.x.as<T>(), args.y.data, args.y.dtype == DType::I32, rows, static_cast<std::int32_t>(args.columns),
        args.x.shape.columns());
  });
  check(cudaGetLastError());
}

const Register registered{argmax_kernel, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
