#include "ops/rotary.h"

#include <fmt/format.h>

#include <cmath>

#include "bench/support/bench.h"

namespace graft::bench {
namespace {

struct Size {
  std::int64_t batch, tokens;
  int heads, head_dim, dims;
};
constexpr Size kSizes[] = {{64, 120, 16, 64, 16}, {64, 120, 16, 64, 64}, {8, 1024, 16, 64, 16}};

/// Backward is the same kernel, turning the other way.
Setup rotary_work(Size size) {
  return [=](const Context& ctx) -> Work {
    const auto layout = AttentionLayout::interleaved(size.heads, size.head_dim);
    const Tensor x = random_tensor(ctx, {size.batch, size.tokens, 3 * layout.width()}, ctx.compute_dtype(), 1);
    const Tensor y = ctx.empty_run(x.shape(), x.dtype(), "y");
    RotaryArgs args{.layout = layout, .pairs = size.dims / 2};
    for (int i = 0; i < args.pairs; ++i) args.frequencies[i] = std::pow(10000.0, -2.0 * i / size.dims);
    const auto run = [x, y, args](const Context& c) {
      RotaryArgs mine = args;
      mine.x = x.view();
      mine.y = {y.mutable_view(), false};
      rotary_forward(c, mine);
    };
    return {run, 2 * static_cast<double>(x.bytes()), 0};
  };
}

const bool registered = [] {
  for (const Size& size : kSizes) {
    Add(fmt::format("rotary/B{}_T{}_H{}_hd{}_rot{}", size.batch, size.tokens, size.heads, size.head_dim, size.dims),
        {Precision::Fp32, Precision::Bf16}, rotary_work(size));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
