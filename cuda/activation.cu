#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "ops/activation.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

/// One 16-byte access a thread; the last thread takes the elements that are left over. Without kAligned every thread
/// goes element by element.
template <class T, Activation kKind, bool kAligned>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* x, T* y, std::int64_t n) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector<T>;
  if (kAligned && at + kVector<T> <= n) {
    float v[kVector<T>];
    load(x + at, v);
#pragma unroll
    for (float& value : v) value = activated<kKind>(value);
    store(y + at, v);
  } else {
    for (std::int64_t i = at; i < min(n, at + kVector<T>); ++i) y[i] = from_float<T>(activated<kKind>(to_float(x[i])));
  }
}

template <class T, Activation kKind, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* dy, const T* x, T* dx, bool accumulate, std::int64_t n) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector<T>;
  if (kAligned && at + kVector<T> <= n) {
    float v[kVector<T>], d[kVector<T>], old[kVector<T>] = {};
    load(x + at, v);
    load(dy + at, d);
    if (accumulate) load(dx + at, old);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) d[i] = old[i] + d[i] * activation_slope<kKind>(v[i]);
    store(dx + at, d);
  } else {
    for (std::int64_t i = at; i < min(n, at + kVector<T>); ++i) {
      const float d = to_float(dy[i]) * activation_slope<kKind>(to_float(x[i]));
      dx[i] = from_float<T>(accumulate ? to_float(dx[i]) + d : d);
    }
  }
}

template <Activation kKind, bool kAligned>
struct Variant {
  static constexpr Activation kind = kKind;
  static constexpr bool aligned = kAligned;
};

template <class Body>
void with_variant(Activation activation, bool aligned, const Body& body) {
  with_activation(activation, [&](auto kind) {
    if (aligned) return body(Variant<decltype(kind)::value, true>{});
    body(Variant<decltype(kind)::value, false>{});
  });
}

void launch_forward(Stream& stream, const ActivationForward& args) {
  const std::int64_t n = args.x.shape.elements();
  with_type(args.x.dtype, "activation_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    with_variant(args.kind, is_aligned16(args.x.data) && is_aligned16(args.y.data), [&](auto variant) {
      using V = decltype(variant);
      forward_kernel<T, V::kind, V::aligned>
          <<<blocks_for(n, kThreads * kVector<T>), kThreads, 0, handle(stream)>>>(args.x.as<T>(), args.y.as<T>(), n);
    });
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const ActivationBackward& args) {
  if (!args.dx) return;
  const std::int64_t n = args.x.shape.elements();
  const bool aligned = is_aligned16(args.x.data) && is_aligned16(args.dy.data) && is_aligned16(args.dx.view.data);
  with_type(args.x.dtype, "activation_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    with_variant(args.kind, aligned, [&](auto variant) {
      using V = decltype(variant);
      backward_kernel<T, V::kind, V::aligned><<<blocks_for(n, kThreads * kVector<T>), kThreads, 0, handle(stream)>>>(
          args.dy.as<T>(), args.x.as<T>(), args.dx.view.as<T>(), args.dx.accumulate, n);
    });
  });
  check(cudaGetLastError());
}

const Register forward{activation_forward, Backend::Cuda, launch_forward};
const Register backward{activation_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
