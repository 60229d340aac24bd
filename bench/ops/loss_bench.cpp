#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"
#include "engine/stream.h"
#include "ops/binary_cross_entropy.h"
#include "ops/cross_entropy.h"
#include "ops/squared_error.h"

// The losses: small, so that what counts is how few launches and how little latency they need.

namespace graft::bench {
namespace {

/// Losses of predictions at chosen tokens; the kernels of the two have the same arguments, as far as these go.
template <class Forward, class Backward>
Setup point_loss_work(std::int64_t points, const Kernel<Forward>& forward, const Kernel<Backward>& backward,
                      bool is_backward) {
  return [=, &forward, &backward](const Context& ctx) -> Work {
    constexpr std::int64_t kBatch = 64, kStored = 8;
    const DType stream = ctx.stream_dtype();
    const Tensor predictions = random_tensor(ctx, {kBatch, 2 * points, kStored}, ctx.compute_dtype(), 1);
    const Tensor targets = random_tensor(ctx, {kBatch, points, 1}, stream, 2);
    const Tensor scalars = random_tensor(ctx, {3, 1}, stream, 3);
    const Tensor loss = scalars.slice(0, 1), weight = scalars.slice(1, 1), dloss = scalars.slice(2, 1);
    const Tensor gradient = ctx.empty_run(predictions.shape(), predictions.dtype(), "gradient");
    const Tensor partial = ctx.empty_run({squared_error_blocks(targets.elements()), 2}, DType::F64, "partial");
    const SquaredErrorLayout layout{kBatch, 2 * points, kStored, points, 1, {.columns = 1, .position_stride = 2}};
    const auto run = [=, &forward, &backward](const Context& c) {
      if (is_backward) {
        backward(c, Backward{.dloss = dloss.view(),
                             .predictions = predictions.view(),
                             .targets = targets.view(),
                             .mask = {},
                             .weight = weight.view(),
                             .dpredictions = {gradient.mutable_view(), false},
                             .layout = layout});
      } else {
        forward(c, Forward{.predictions = predictions.view(),
                           .targets = targets.view(),
                           .mask = {},
                           .partial = partial.mutable_view(),
                           .loss = loss.mutable_view(),
                           .weight = weight.mutable_view(),
                           .layout = layout});
      }
    };
    const auto read = static_cast<double>(targets.elements()) * static_cast<double>(size_of(predictions.dtype()));
    return {run,
            static_cast<double>(targets.bytes()) + read + (is_backward ? static_cast<double>(gradient.bytes()) : 0), 0};
  };
}

Setup cross_entropy_work(std::int64_t rows, std::int64_t columns, bool backward) {
  return [=](const Context& ctx) -> Work {
    const DType stream = ctx.stream_dtype();
    const Tensor logits = random_tensor(ctx, {rows, columns}, ctx.compute_dtype(), 1);
    const Tensor labels = ctx.empty_run({rows}, DType::I32, "labels");
    std::vector<std::int32_t> host(static_cast<std::size_t>(rows));
    for (std::size_t i = 0; i < host.size(); ++i)
      host[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i * 7919) % columns);
    ctx.stream->upload(labels.mutable_view().data, host.data(), labels.bytes(), "labels");
    const Tensor log_sum = random_tensor(ctx, {rows}, stream, 2);
    const Tensor row_loss = ctx.empty_run({rows}, stream, "row loss");
    const Tensor scalars = random_tensor(ctx, {3, 1}, stream, 3);
    const Tensor loss = scalars.slice(0, 1), weight = scalars.slice(1, 1), dloss = scalars.slice(2, 1);
    const Tensor gradient = ctx.empty_run(logits.shape(), logits.dtype(), "gradient");
    const auto run = [=](const Context& c) {
      if (backward) {
        cross_entropy_backward(c, {dloss.view(), logits.view(), labels.view(), log_sum.view(), weight.view(),
                                   GradTarget{gradient.mutable_view(), false}, columns});
      } else {
        cross_entropy_forward(c, {logits.view(), labels.view(), log_sum.mutable_view(), row_loss.mutable_view(),
                                  loss.mutable_view(), weight.mutable_view(), columns});
      }
    };
    return {run, static_cast<double>(logits.bytes()) * (backward ? 2 : 1), 0};
  };
}

const bool registered = [] {
  const std::vector<Precision> precisions{Precision::Fp32, Precision::Bf16};
  for (const bool backward : {false, true}) {
    const char* const direction = backward ? "backward" : "forward";
    for (const std::int64_t points : {41, 101, 512}) {
      Add(fmt::format("squared_error/{}/B64_N{}", direction, points), precisions,
          point_loss_work(points, squared_error_forward, squared_error_backward, backward));
    }
    Add(fmt::format("binary_cross_entropy/{}/B64_N140", direction), precisions,
        point_loss_work(140, binary_cross_entropy_forward, binary_cross_entropy_backward, backward));
    Add(fmt::format("cross_entropy/{}/11264x104", direction), precisions, cross_entropy_work(11264, 104, backward));
    Add(fmt::format("cross_entropy/{}/7040x2048", direction), precisions, cross_entropy_work(7040, 2048, backward));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
