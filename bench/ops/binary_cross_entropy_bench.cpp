#include "ops/binary_cross_entropy.h"

#include <fmt/format.h>

#include "bench/support/bench.h"

namespace graft::bench {
namespace {

Setup binary_cross_entropy_work(std::int64_t points, bool backward) {
  return [=](const Context& ctx) -> Work {
    constexpr std::int64_t kBatch = 64, kStored = 8;
    const DType stream = ctx.stream_dtype();
    const Tensor predictions = random_tensor(ctx, {kBatch, 2 * points, kStored}, ctx.compute_dtype(), 1);
    const Tensor targets = random_tensor(ctx, {kBatch, points, 1}, stream, 2);
    const Tensor scalars = random_tensor(ctx, {3, 1}, stream, 3);
    const Tensor loss = scalars.slice(0, 1), weight = scalars.slice(1, 1), dloss = scalars.slice(2, 1);
    const Tensor gradient = ctx.empty_run(predictions.shape(), predictions.dtype(), "gradient");
    const Tensor partial = ctx.empty_run({squared_error_blocks(targets.elements()), 2}, DType::F64, "partial");
    const SquaredErrorLayout layout{kBatch, 2 * points, kStored, points, 1, {.columns = 1, .position_stride = 2}};
    const auto run = [=](const Context& c) {
      if (backward) {
        binary_cross_entropy_backward(c, {.dloss = dloss.view(),
                                          .predictions = predictions.view(),
                                          .targets = targets.view(),
                                          .weight = weight.view(),
                                          .dpredictions = {gradient.mutable_view(), false},
                                          .layout = layout});
      } else {
        binary_cross_entropy_forward(c, {.predictions = predictions.view(),
                                         .targets = targets.view(),
                                         .partial = partial.mutable_view(),
                                         .loss = loss.mutable_view(),
                                         .weight = weight.mutable_view(),
                                         .layout = layout});
      }
    };
    const auto read = static_cast<double>(targets.elements()) * static_cast<double>(size_of(predictions.dtype()));
    return {run, static_cast<double>(targets.bytes()) + read + (backward ? static_cast<double>(gradient.bytes()) : 0),
            0};
  };
}

const bool registered = [] {
  for (const bool backward : {false, true}) {
    Add(fmt::format("binary_cross_entropy/{}/B64_N140", backward ? "backward" : "forward"),
        {Precision::Fp32, Precision::Bf16}, binary_cross_entropy_work(140, backward));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
