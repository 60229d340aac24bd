#include "ops/activation.h"

#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"

namespace graft::bench {
namespace {

struct Size {
  std::int64_t rows, width;
};
constexpr Size kSizes[] = {{5248, 512}, {5248, 1024}, {12928, 1024}};

Setup activation_work(Size size, Activation kind, bool backward) {
  return [=](const Context& ctx) -> Work {
    const Tensor x = random_tensor(ctx, {size.rows, size.width}, ctx.compute_dtype(), 1);
    const Tensor dy = random_tensor(ctx, x.shape(), x.dtype(), 2);
    const Tensor out = ctx.empty_run(x.shape(), x.dtype(), "out");
    const auto run = [=](const Context& c) {
      if (backward) {
        activation_backward(c, {dy.view(), x.view(), GradTarget{out.mutable_view(), false}, kind});
      } else {
        activation_forward(c, {x.view(), out.mutable_view(), kind});
      }
    };
    return {run, static_cast<double>(x.bytes()) * (backward ? 3 : 2), 0};
  };
}

const bool registered = [] {
  for (const Size& size : kSizes) {
    for (const Activation kind : {Activation::Silu, Activation::Softplus, Activation::GeluTanh, Activation::GeluErf}) {
      const std::string shape = fmt::format("{}/{}x{}", name_of(kind), size.rows, size.width);
      Add("activation/forward/" + shape, {Precision::Fp32, Precision::Bf16}, activation_work(size, kind, false));
      Add("activation/backward/" + shape, {Precision::Fp32, Precision::Bf16}, activation_work(size, kind, true));
    }
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
