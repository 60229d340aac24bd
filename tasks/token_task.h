#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/require.h"
#include "ops/argmax.h"
#include "ops/cross_entropy.h"
#include "ops/point_scores.h"
#include "tasks/task.h"
#include "tasks/token_sampler_cpu.h"

namespace graft {

/// A task on sequences of token ids of one law, scored by cross-entropy at a few positions of each. What differs
/// between such tasks is the law and its sampler kernel.
///
/// Points are the predictions of a sequence and always the same number; there is no curriculum. Sequences are padded at
/// the right with id 0 to the longest one the law can draw, not to the longest of the batch, so that every step of a
/// run has one shape. Models are causal and only the scored positions are read, so padding changes no result.
template <class Law>
class TokenTask : public Task {
 public:
  TokenTask(Law law, const Kernel<SampleTokens<Law>>& sampler) : law_(std::move(law)), sampler_(sampler) {}

  [[nodiscard]] TaskShape shape() const override {
    TaskShape shape;
    shape.tokens_per_point = 0;  // their number does not depend on points: see tokens_at()
    shape.max_tokens = std::max(law_.tokens(RandomDomain::Train), law_.tokens(RandomDomain::Evaluation));
    shape.vocabulary = law_.vocabulary();
    return shape;
  }
  /// Of a training sequence with its padding.
  [[nodiscard]] std::int64_t tokens_at(std::int64_t /*points*/) const override {
    return law_.tokens(RandomDomain::Train);
  }
  [[nodiscard]] std::int64_t points_at(std::uint64_t /*step*/) const override { return law_.predictions(); }
  [[nodiscard]] std::int64_t dims_at(std::uint64_t /*step*/) const override { return 0; }
  [[nodiscard]] std::int64_t final_points() const override { return law_.predictions(); }

  [[nodiscard]] Batch sample(const Context& ctx, const Selection& selection, std::int64_t points) const override {
    require(ctx.state != nullptr, "sample: the context has no step state");
    require(points == law_.predictions(), "sample: {} points, expected {}, as many as a sequence has predictions",
            points, law_.predictions());
    const Shape scored{selection.batch, points};
    Batch batch;
    batch.ids = ctx.empty({selection.batch, law_.tokens(selection.domain)}, DType::I32, "token ids");
    batch.positions = ctx.empty(scored, DType::I32, "scored positions");
    batch.labels = ctx.empty(scored, DType::I32, "labels");
    batch.targets = ctx.empty({selection.batch, points, 1}, ctx.stream_dtype(), "labels as numbers");
    sampler_(ctx, {law_, selection, ctx.state, batch.ids.mutable_view(), batch.positions.mutable_view(),
                   batch.labels.mutable_view(), batch.targets.mutable_view()});
    return batch;
  }

  [[nodiscard]] Tensor loss(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return cross_entropy(ctx, outputs, batch.labels, batch.output_columns);
  }
  /// 1 where the most likely id (teacher-forced, ties to the lowest id) is the label, 0 elsewhere.
  [[nodiscard]] Tensor scores(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    const Tensor ids = argmax(ctx, outputs, batch.output_columns, ctx.stream_dtype());
    return point_scores(ctx, ScoreKind::Equality, ids.reshaped(batch.targets.shape()), batch.targets);
  }

  /// The sequence without padding; truth is {where in the string the answer is found, length of the string}. Throws
  /// Error for an example that could not be drawn.
  [[nodiscard]] Prompt prompt(std::uint64_t seed, RandomDomain domain, std::uint64_t step,
                              std::uint32_t example) const override {
    Prompt prompt;
    prompt.points = law_.predictions();
    const auto count = static_cast<std::size_t>(law_.predictions());
    prompt.ids.resize(static_cast<std::size_t>(law_.tokens(domain)));
    prompt.scored.resize(count);
    std::vector<std::int32_t> labels(count);
    std::vector<typename Law::Scratch> scratch(static_cast<std::size_t>(law_.scratch(domain)));
    const TokenRow row{prompt.ids.data(), law_.tokens(domain), prompt.scored.data(), labels.data()};
    const TokenExample drawn = law_.draw(Threads{}, Draw{seed, domain, step, example}, scratch.data(), row);
    if (!drawn.found)
      throw Error(description() + ": no example was accepted; a longer query makes it unique more often");
    prompt.ids.resize(static_cast<std::size_t>(drawn.tokens));
    prompt.truth = {static_cast<float>(drawn.start), static_cast<float>(drawn.length)};
    return prompt;
  }

  [[nodiscard]] std::string_view score_name() const override { return "accuracy"; }
  [[nodiscard]] std::string token_name(std::int32_t id) const override {
    switch (id) {
      case kPadToken:
        return "<pad>";
      case kBosToken:
        return "<bos>";
      case kQueryToken:
        return "<query>";
      default:
        return "<s" + std::to_string(id - kFirstSymbol) + ">";
    }
  }

 protected:
  [[nodiscard]] const Law& law() const { return law_; }

 private:
  Law law_;
  const Kernel<SampleTokens<Law>>& sampler_;
};

}  // namespace graft
