#include "ops/gelu.h"

#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"

namespace graft::bench {
namespace {

struct Size {
  std::int64_t rows, width;
};
constexpr Size kSizes[] = {{5248, 512}, {5248, 1024}, {12928, 1024}};

Setup gelu_work(Size size, GeluKind kind, bool backward) {
  return [=](const Context& ctx) -> Work {
    const Tensor x = random_tensor(ctx, {size.rows, size.width}, ctx.compute_dtype(), 1);
    const Tensor dy = random_tensor(ctx, x.shape(), x.dtype(), 2);
    const Tensor out = ctx.empty_run(x.shape(), x.dtype(), "out");
    const auto run = [=](const Context& c) {
      if (backward) {
        gelu_backward(c, {dy.view(), x.view(), GradTarget{out.mutable_view(), false}, kind});
      } else {
        gelu_forward(c, {x.view(), out.mutable_view(), kind});
      }
    };
    return {run, static_cast<double>(x.bytes()) * (backward ? 3 : 2), 0};
  };
}

const bool registered = [] {
  for (const Size& size : kSizes) {
    for (const GeluKind kind : {GeluKind::Tanh, GeluKind::Erf}) {
      const std::string shape = fmt::format("{}/{}x{}", kind == GeluKind::Tanh ? "tanh" : "erf", size.rows, size.width);
      Add("gelu/forward/" + shape, {Precision::Fp32, Precision::Bf16}, gelu_work(size, kind, false));
      Add("gelu/backward/" + shape, {Precision::Fp32, Precision::Bf16}, gelu_work(size, kind, true));
    }
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
