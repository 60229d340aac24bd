#include "ops/dropout.h"

#include <fmt/format.h>

#include "bench/support/bench.h"
#include "engine/stream.h"

namespace graft::bench {
namespace {

struct Size {
  std::int64_t batch, tokens, width;
};
constexpr Size kSizes[] = {{64, 82, 256}, {64, 202, 512}, {64, 1024, 512}};

/// Forward and backward are the same kernel.
Setup dropout_work(Size size, bool shared) {
  return [=](const Context& ctx) -> Work {
    const Tensor x = random_tensor(ctx, {size.batch, size.tokens, size.width}, ctx.compute_dtype(), 1);
    const Tensor y = ctx.empty_run(x.shape(), x.dtype(), "y");
    const Tensor memory = ctx.empty_run({static_cast<std::int64_t>(sizeof(StepState))}, DType::U8, "step state");
    const StepState initial{.step = 5, .seed = 17};
    ctx.stream->upload(memory.mutable_view().data, &initial, sizeof(initial), "step state");
    DropoutMask mask{.examples = size.batch, .purpose = 1, .threshold = 429496730U, .scale = 1 / 0.9};
    mask.repeats = shared ? size.tokens : 1;
    mask.draws = x.elements() / (mask.examples * mask.repeats);
    const auto run = [=](const Context& c) {
      const auto* const state = static_cast<const StepState*>(memory.view().data);
      dropout_forward(c, {state, x.view(), GradTarget{y.mutable_view(), false}, mask});
    };
    return {run, 2 * static_cast<double>(x.bytes()), 0};
  };
}

const bool registered = [] {
  for (const Size& size : kSizes) {
    for (const bool shared : {false, true}) {
      Add(fmt::format("dropout/{}/B{}_T{}_D{}", shared ? "over_time" : "element", size.batch, size.tokens, size.width),
          {Precision::Fp32, Precision::Bf16}, dropout_work(size, shared));
    }
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
