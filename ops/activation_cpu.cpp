#include <algorithm>
#include <array>
#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/activation.h"
#include "ops/rows_cpu.h"
#include "ops/softplus_formula.h"

namespace graft {
namespace {

constexpr std::int64_t kChunk = 1024;

template <class A>
A value_of(A x, ActivationKind kind) {
  return kind == ActivationKind::Silu ? silu(x) : softplus(x);
}

template <class A>
A slope_of(A x, ActivationKind kind) {
  return kind == ActivationKind::Silu ? silu_slope(x) : softplus_slope(x);
}

void forward(Stream& stream, const ActivationForward& args) {
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, args.x.shape.elements(), kChunk, [&](std::int64_t first, std::int64_t last) {
      std::array<A, kChunk> buffer;
      for (std::int64_t at = first; at < last; at += kChunk) {
        const std::int64_t count = std::min(kChunk, last - at);
        load_row(args.x, at, count, buffer.data());
        for (std::int64_t i = 0; i < count; ++i) {
          auto& x = buffer[static_cast<std::size_t>(i)];
          x = value_of(x, args.kind);
        }
        store_row(args.y, at, count, buffer.data());
      }
    });
  });
}

void backward(Stream& stream, const ActivationBackward& args) {
  if (!args.dx) return;
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, args.x.shape.elements(), kChunk, [&](std::int64_t first, std::int64_t last) {
      std::array<A, kChunk> x, dy;
      for (std::int64_t at = first; at < last; at += kChunk) {
        const std::int64_t count = std::min(kChunk, last - at);
        load_row(args.x, at, count, x.data());
        load_row(args.dy, at, count, dy.data());
        for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) dy[i] *= slope_of(x[i], args.kind);
        store_gradient(args.dx, at, count, dy.data());
      }
    });
  });
}

const Register registered_forward{activation_forward, Backend::Cpu, forward};
const Register registered_backward{activation_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
