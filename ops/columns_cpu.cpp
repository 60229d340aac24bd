#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/columns.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kGrain = 64;

void forward(Stream& stream, const ColumnsForward& args) {
  with_floating(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t from_width = args.x.shape.columns();
    const std::int64_t to_width = args.y.shape.columns();
    parallel_for(stream, args.x.shape.rows(), kGrain, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const T* from = args.x.as<T>() + row * from_width + args.offset;
        T* to = args.y.as<T>() + row * to_width;
        for (std::int64_t c = 0; c < to_width; ++c) to[c] = c < args.count ? from[c] : T(0.F);
      }
    });
  });
}

void backward(Stream& stream, const ColumnsBackward& args) {
  if (!args.dx) return;
  with_floating(args.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t from_width = args.dy.shape.columns();
    const std::int64_t to_width = args.dx.view.shape.columns();
    parallel_for(stream, args.dy.shape.rows(), kGrain, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const T* from = args.dy.as<T>() + row * from_width;
        T* to = args.dx.view.as<T>() + row * to_width + args.offset;
        for (std::int64_t c = 0; c < args.count; ++c) to[c] = args.dx.accumulate ? T(to[c] + from[c]) : from[c];
      }
    });
  });
}

const Register forward_registered{columns_forward, Backend::Cpu, forward};
const Register backward_registered{columns_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
