#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "ops/gelu.h"
#include "ops/gelu_formula.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

template <GeluKind kKind>
__device__ __forceinline__ float value_of(float x) {
  return kKind == GeluKind::Tanh ? gelu_tanh(x) : gelu_erf(x);
}

template <GeluKind kKind>
__device__ __forceinline__ float slope_of(float x) {
  return kKind == GeluKind::Tanh ? gelu_tanh_slope(x) : gelu_erf_slope(x);
}

/// One 16-byte access a thread; the last thread takes the elements that are left over. Without kAligned every thread
/// goes element by element.
template <class T, GeluKind kKind, bool kAligned>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* x, T* y, std::int64_t n) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector<T>;
  if (kAligned && at + kVector<T> <= n) {
    float v[kVector<T>];
    load(x + at, v);
#pragma unroll
    for (float& value : v) value = value_of<kKind>(value);
    store(y + at, v);
  } else {
    for (std::int64_t i = at; i < min(n, at + kVector<T>); ++i) y[i] = from_float<T>(value_of<kKind>(to_float(x[i])));
  }
}

template <class T, GeluKind kKind, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* dy, const T* x, T* dx, bool accumulate, std::int64_t n) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector<T>;
  if (kAligned && at + kVector<T> <= n) {
    float v[kVector<T>], d[kVector<T>], old[kVector<T>] = {};
    load(x + at, v);
    load(dy + at, d);
    if (accumulate) load(dx + at, old);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) d[i] = old[i] + d[i] * slope_of<kKind>(v[i]);
    store(dx + at, d);
  } else {
    for (std::int64_t i = at; i < min(n, at + kVector<T>); ++i) {
      const float d = to_float(dy[i]) * slope_of<kKind>(to_float(x[i]));
      dx[i] = from_float<T>(accumulate ? to_float(dx[i]) + d : d);
    }
  }
}

template <GeluKind kKind, bool kAligned>
struct Variant {
  static constexpr GeluKind kind = kKind;
  static constexpr bool aligned = kAligned;
};

template <class Body>
void with_variant(GeluKind kind, bool aligned, Body&& body) {
  if (kind == GeluKind::Tanh) {
    if (aligned) return body(Variant<GeluKind::Tanh, true>{});
    return body(Variant<GeluKind::Tanh, false>{});
  }
  if (aligned) return body(Variant<GeluKind::Erf, true>{});
  return body(Variant<GeluKind::Erf, false>{});
}

void launch_forward(Stream& stream, const GeluForward& args) {
  const std::int64_t n = args.x.shape.elements();
  with_type(args.x.dtype, "gelu_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    with_variant(args.kind, is_aligned16(args.x.data) && is_aligned16(args.y.data), [&](auto variant) {
      using V = decltype(variant);
      forward_kernel<T, V::kind, V::aligned>
          <<<blocks_for(n, kThreads * kVector<T>), kThreads, 0, handle(stream)>>>(args.x.as<T>(), args.y.as<T>(), n);
    });
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const GeluBackward& args) {
  if (!args.dx) return;
  const std::int64_t n = args.x.shape.elements();
  const bool aligned = is_aligned16(args.x.data) && is_aligned16(args.dy.data) && is_aligned16(args.dx.view.data);
  with_type(args.x.dtype, "gelu_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    with_variant(args.kind, aligned, [&](auto variant) {
      using V = decltype(variant);
      backward_kernel<T, V::kind, V::aligned><<<blocks_for(n, kThreads * kVector<T>), kThreads, 0, handle(stream)>>>(
          args.dy.as<T>(), args.x.as<T>(), args.dx.view.as<T>(), args.dx.accumulate, n);
    });
  });
  check(cudaGetLastError());
}

const Register forward{gelu_forward, Backend::Cuda, launch_forward};
const Register backward{gelu_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
