#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"
#include "engine/step_state.h"
#include "engine/stream.h"
#include "ops/adam.h"
#include "ops/clip.h"
#include "ops/schedule.h"

// What a step does after backward: the norm of the gradients, the update, the next step's constants.

namespace graft::bench {
namespace {

// parameters of the 12-layer models of width 128, 256 and 768
constexpr std::int64_t kParameters[] = {2'400'000, 9'500'032, 85'000'000};

const Schedule kSchedule{ScheduleKind::Cosine, 1e-4, 100, 100000, 0.1};

Tensor state_tensor(const Context& ctx) {
  const StepState state = initial_state(1, kSchedule, 0.9, 0.999, 1000, 1000);
  Tensor tensor = ctx.empty_run({static_cast<std::int64_t>(sizeof(StepState))}, DType::U8, "step state");
  ctx.stream->upload(tensor.mutable_view().data, &state, sizeof(state), "step state");
  return tensor;
}

StepState* state_of(const Tensor& tensor) { return static_cast<StepState*>(tensor.mutable_view().data); }

Setup clip_work(std::int64_t count) {
  return [=](const Context& ctx) -> Work {
    const Tensor gradients = random_tensor(ctx, {count}, ctx.stream_dtype(), 1);
    const Tensor partial = ctx.empty_run({clip_blocks(count)}, DType::F64, "partial");
    const Tensor state = state_tensor(ctx);
    const auto run = [=](const Context& c) {
      clip_norm(c, {gradients.view(), partial.mutable_view(), {}, state_of(state), 10.0});
    };
    return {run, static_cast<double>(gradients.bytes()), 0};
  };
}

Setup adam_work(std::int64_t count) {
  return [=](const Context& ctx) -> Work {
    const DType stream = ctx.stream_dtype();
    const Tensor gradients = random_tensor(ctx, {count}, stream, 1);
    const Tensor weights = random_tensor(ctx, {count}, stream, 2);
    const Tensor first = ctx.empty_run({count}, stream, "first moments");
    const Tensor second = ctx.empty_run({count}, stream, "second moments");
    ctx.stream->zero(first.mutable_view().data, first.bytes());
    ctx.stream->zero(second.mutable_view().data, second.bytes());
    const Tensor copy = ctx.precision == Precision::Bf16 ? ctx.empty_run({count}, DType::BF16, "copy") : Tensor();
    const Tensor state = state_tensor(ctx);
    const auto run = [=](const Context& c) {
      adam_update(c, {gradients.view(),
                      weights.mutable_view(),
                      first.mutable_view(),
                      second.mutable_view(),
                      copy ? copy.mutable_view() : View{},
                      {},
                      state_of(state),
                      AdamOptions{}});
    };
    return {run, 7.0 * static_cast<double>(weights.bytes()) + static_cast<double>(copy.bytes()), 0};
  };
}

Setup advance_work() {
  return [](const Context& ctx) -> Work {
    const Tensor state = state_tensor(ctx);
    const auto run = [=](const Context& c) { advance_state(c, {state_of(state), kSchedule, 0.9, 0.999}); };
    return {run, 2.0 * sizeof(StepState), 0};
  };
}

const bool registered = [] {
  for (const std::int64_t count : kParameters) {
    Add(fmt::format("clip_by_global_norm/{}", count), {Precision::Fp32}, clip_work(count));
    Add(fmt::format("adam/{}", count), {Precision::Fp32, Precision::Bf16}, adam_work(count));
  }
  Add("advance", {Precision::Fp32}, advance_work());
  return true;
}();

}  // namespace
}  // namespace graft::bench
