#include "tasks/sparse_parity.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "ops/binary_cross_entropy.h"
#include "tasks/regression_task.h"
#include "tasks/subset_settings.h"

namespace graft {
namespace {

/// Outputs at the x-tokens are logits of y = 1.
class SparseParityTask final : public RegressionTask<SparseParity> {
 public:
  using RegressionTask::RegressionTask;

  /// Mean binary cross-entropy with target (y + 1) / 2.
  [[nodiscard]] Tensor loss(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return binary_cross_entropy_with_logits(ctx, outputs, batch.targets, batch.mask,
                                            {.columns = 1, .position_stride = 2}, BinaryTargets::Signs);
  }
  /// 1 where the logit has the label's sign; a logit of 0 is wrong.
  [[nodiscard]] Tensor scores(const Context& ctx, const Tensor& outputs, const Batch& batch) const override {
    return point_scores(ctx, ScoreKind::SignAgreement, outputs, batch.targets, batch.mask,
                        {.columns = 1, .position_stride = 2});
  }
  [[nodiscard]] double score(double prediction, double target) const override {
    return prediction * target > 0 ? 1.0 : 0.0;
  }
  [[nodiscard]] std::string_view score_name() const override { return "accuracy"; }
  [[nodiscard]] std::vector<std::string> baselines() const override { return {"least_squares", "knn3", "averaging"}; }

  [[nodiscard]] std::string truth_text(const Prompt& prompt) const override {
    std::vector<int> subset;
    for (const float coordinate : prompt.truth) subset.push_back(static_cast<int>(coordinate));
    return fmt::format("y = product of x over the subset {{{}}}", fmt::join(subset, ", "));
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("sparse parity: y = product of {} of {} signs, {}, {} points", law().subset_size, law().dim,
                       law().one_subset ? "one subset for a training step" : "a subset for each prompt",
                       final_points());
  }
};

void check_size(const Settings& settings, SettingMistakes& mistakes) {
  check_subset_size(settings, mistakes, "task.subset_size", "coordinates");
}

const RegisterSettings keys{{
    .table = "task",
    .owner = "sparse_parity",
    .doc = "y = product of a few of the signs in x",
    .keys = with_curriculum(
        {
            SettingKey::integer("task.dim", "signs of an input").with_default(10).between(1, 1024),
            SettingKey::integer("task.points", "points of a prompt, the last one a query")
                .with_default(140)
                .between(1, 8192),
            SettingKey::integer("task.subset_size", "signs that the label is the product of")
                .with_default(2)
                .between(1, 1024)
                .elsewhere_called({"k", "sparsity"}),
            SettingKey::text("task.subset",
                             "who has a subset of their own: every prompt, or all prompts of a training step together "
                             "(evaluation prompts always have their own)")
                .with_default("per_prompt")
                .one_of({"per_prompt", "per_batch"}),
        },
        {.enabled = false, .points_start = 40, .points_increment = 5}),
    .checks = {check_curriculum, check_size},
}};

const RegisterTask registered{{"sparse_parity", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 return std::make_unique<SparseParityTask>(
                                     SparseParity{static_cast<int>(settings.integer("task.dim")),
                                                  static_cast<int>(settings.integer("task.subset_size")),
                                                  settings.text("task.subset") == "per_batch"},
                                     curriculum_of(settings), settings.integer("task.points"), sample_sparse_parity);
                               }}};

const Register cpu_sampler{sample_sparse_parity, Backend::Cpu, sample_prompts_cpu<SparseParity>};

}  // namespace
}  // namespace graft
