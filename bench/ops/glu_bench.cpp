#include "ops/glu.h"

#include <fmt/format.h>

#include "bench/support/bench.h"

namespace graft::bench {
namespace {

struct Size {
  std::int64_t rows, half;
};
constexpr Size kSizes[] = {{5248, 128}, {12928, 256}, {65536, 256}};

Setup glu_work(Size size, bool backward) {
  return [=](const Context& ctx) -> Work {
    const Tensor x = random_tensor(ctx, {size.rows, 2 * size.half}, ctx.compute_dtype(), 1);
    const Tensor y = random_tensor(ctx, {size.rows, size.half}, ctx.compute_dtype(), 2);
    const Tensor dx = ctx.empty_run(x.shape(), x.dtype(), "dx");
    const auto run = [=](const Context& c) {
      if (backward) {
        glu_backward(c, {y.view(), x.view(), GradTarget{dx.mutable_view(), false}});
      } else {
        glu_forward(c, {x.view(), y.mutable_view()});
      }
    };
    return {run, static_cast<double>(y.bytes()) * (backward ? 5 : 3), 0};
  };
}

const bool registered = [] {
  for (const Size& size : kSizes) {
    const std::string shape = fmt::format("{}x{}", size.rows, size.half);
    Add("glu/forward/" + shape, {Precision::Fp32, Precision::Bf16}, glu_work(size, false));
    Add("glu/backward/" + shape, {Precision::Fp32, Precision::Bf16}, glu_work(size, true));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
