#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/glu.h"
#include "ops/rows_cpu.h"
#include "ops/silu_formula.h"

namespace graft {
namespace {

constexpr std::int64_t kRowGrain = 16;

void forward(Stream& stream, const GluForward& args) {
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    const std::int64_t half = args.y.shape.columns();
    const auto size = static_cast<std::size_t>(half);
    parallel_for(stream, args.x.shape.rows(), kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> x(2 * size), y(size);
      for (std::int64_t row = first; row < last; ++row) {
        load_row(args.x, row * 2 * half, 2 * half, x.data());
        for (std::size_t i = 0; i < size; ++i) y[i] = x[i] * sigmoid(x[size + i]);
        store_row(args.y, row * half, half, y.data());
      }
    });
  });
}

void backward(Stream& stream, const GluBackward& args) {
  if (!args.dx) return;
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    const std::int64_t half = args.dy.shape.columns();
    const auto size = static_cast<std::size_t>(half);
    parallel_for(stream, args.x.shape.rows(), kRowGrain, [&](std::int64_t first, std::int64_t last) {
      std::vector<A> x(2 * size), dy(size);
      for (std::int64_t row = first; row < last; ++row) {
        load_row(args.x, row * 2 * half, 2 * half, x.data());
        load_row(args.dy, row * half, half, dy.data());
        for (std::size_t i = 0; i < size; ++i) {
          const A gate = sigmoid(x[size + i]);
          x[size + i] = dy[i] * x[i] * gate * (A{1} - gate);
          x[i] = dy[i] * gate;
        }
        store_gradient(args.dx, row * 2 * half, 2 * half, x.data());
      }
    });
  });
}

const Register registered_forward{glu_forward, Backend::Cpu, forward};
const Register registered_backward{glu_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
