#include "tasks/decision_tree.h"

#include <fmt/format.h>

#include <memory>

#include "tasks/regression_task.h"

namespace graft {
namespace {

class DecisionTreeTask final : public RegressionTask<DecisionTree> {
 public:
  using RegressionTask::RegressionTask;
  [[nodiscard]] std::vector<std::string> baselines() const override {
    return {"zero", "least_squares", "knn3", "averaging", "tree_depth4", "tree_full", "boosted_trees"};
  }
  [[nodiscard]] std::string truth_text(const Prompt& prompt) const override {
    std::string text = "tree";
    append_node(prompt.truth, 0, 1, "", text);
    return text;
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format(
        "decision tree: depth {}, right if x[j] > 0, j uniform on 0..{}, leaves and x ~ N(0, 1), {} points",
        law().depth, law().dim - 1, final_points());
  }

 private:
  void append_node(const std::vector<float>& nodes, std::size_t node, int level, const char* branch,
                   std::string& text) const {
    const std::string indent(static_cast<std::size_t>(2 * level), ' ');
    if (node >= static_cast<std::size_t>(law().inner_nodes())) {
      text += fmt::format("\n{}{}{:.3f}", indent, branch, nodes[node]);
      return;
    }
    text += fmt::format("\n{}{}x[{}] > 0 ?", indent, branch, static_cast<int>(nodes[node]));
    append_node(nodes, 2 * node + 2, level + 1, "yes: ", text);
    append_node(nodes, 2 * node + 1, level + 1, "no:  ", text);
  }
};

const RegisterSettings keys{{
    .table = "task",
    .owner = "decision_tree",
    .doc = "y = the leaf that x reaches in a random tree",
    .keys = with_curriculum(
        {
            SettingKey::integer("task.dim", "dimension of an input").with_default(20).between(1, 1024),
            SettingKey::integer("task.points", "points of a prompt, the last one a query")
                .with_default(101)
                .between(1, 8192),
            SettingKey::integer("task.depth", "decisions from the root to a leaf").with_default(4).between(1, 12),
        },
        {.points_start = 26, .points_increment = 5}),
    .checks = {check_curriculum},
}};

const RegisterTask registered{{"decision_tree", [](const Settings& settings) -> std::unique_ptr<Task> {
                                 return std::make_unique<DecisionTreeTask>(
                                     DecisionTree{static_cast<int>(settings.integer("task.dim")),
                                                  static_cast<int>(settings.integer("task.depth"))},
                                     curriculum_of(settings), settings.integer("task.points"), sample_decision_tree);
                               }}};

const Register cpu_sampler{sample_decision_tree, Backend::Cpu, sample_prompts_cpu<DecisionTree>};

}  // namespace
}  // namespace graft
