#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/require.h"
#include "ops/point_scores.h"
#include "ops/squared_error.h"
#include "tasks/curriculum_settings.h"
#include "tasks/prompt_sampler_cpu.h"
#include "tasks/task.h"

namespace graft {

/// A task whose prompts are pairs (x_i, y_i) of one law, interleaved as tokens x, (y, 0, ..., 0), and scored by squared
/// error at the x-tokens, of a law with outliers at those of clean points only. What differs between such tasks is the
/// law and its sampler kernel.
template <class Law>
class RegressionTask : public Task {
 public:
  RegressionTask(Law law, Curriculum curriculum, std::int64_t final_points, const Kernel<SamplePrompts<Law>>& sampler)
      : law_(std::move(law)), curriculum_(curriculum), final_points_(final_points), sampler_(sampler) {}

  [[nodiscard]] TaskShape shape() const override { return {law_.dim, 1, 2, 2 * final_points_}; }
  [[nodiscard]] std::int64_t points_at(std::uint64_t step) const override { return curriculum_.points.at(step); }
  [[nodiscard]] std::int64_t dims_at(std::uint64_t step) const override { return curriculum_.dims.at(step); }
  [[nodiscard]] std::int64_t final_points() const override { return final_points_; }

  [[nodiscard]] Batch sample(const Context& ctx, const Selection& selection, std::int64_t points) const override {
    require(ctx.state != nullptr, "sample: the context has no step state");
    require(points >= 1 && points <= final_points_, "sample: {} points, expected 1..{}", points, final_points_);
    Batch batch;
    batch.tokens =
        ctx.empty({selection.batch, 2 * points, round_up(law_.dim, 8)}, ctx.compute_dtype(), "prompt tokens");
    batch.targets = ctx.empty({selection.batch, points, 1}, ctx.stream_dtype(), "prompt targets");
    if constexpr (HasOutliers<Law>) batch.mask = ctx.empty({selection.batch, points}, DType::U8, "scored points");
    sampler_(ctx, {law_, curriculum_.dims, selection, ctx.state, points, batch.tokens.mutable_view(),
                   batch.targets.mutable_view(), batch.mask ? batch.mask.mutable_view() : View{}});
    return batch;
  }

  [[nodiscard]] Tensor loss(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return squared_error(ctx, outputs, batch.targets, batch.mask, {.columns = 1, .position_stride = 2});
  }

  [[nodiscard]] Tensor scores(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return point_scores(ctx, ScoreKind::SquaredError, outputs, batch.targets, batch.mask,
                        {.columns = 1, .position_stride = 2});
  }

  [[nodiscard]] Prompt prompt(std::uint64_t seed, RandomDomain domain, std::uint64_t step,
                              std::uint32_t example) const override {
    Prompt prompt;
    prompt.points = final_points_;
    prompt.dim = law_.dim;
    DrawnPrompt drawn;
    draw_prompt(law_, Draw{seed, domain, step, example}, final_points_, law_.dim, drawn);
    prompt.truth = std::move(drawn.parameters);
    prompt.xs = std::move(drawn.xs);
    prompt.ys = std::move(drawn.ys);
    prompt.scored_points = std::move(drawn.scored_points);
    prompt.y_vectors = std::move(drawn.y_vectors);
    return prompt;
  }

 protected:
  [[nodiscard]] const Law& law() const { return law_; }
  [[nodiscard]] const Curriculum& curriculum() const { return curriculum_; }
  [[nodiscard]] const Kernel<SamplePrompts<Law>>& sampler() const { return sampler_; }

 private:
  Law law_;
  Curriculum curriculum_;
  std::int64_t final_points_;
  const Kernel<SamplePrompts<Law>>& sampler_;
};

}  // namespace graft
