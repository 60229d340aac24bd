#include "tasks/decision_tree.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "tests/tasks/prompt_checks.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::vector<std::string>& overrides = {}) {
  return make_prompt_task("decision_tree", overrides);
}

TEST_CASE("decision_tree: the defaults are the study's") {
  const std::unique_ptr<Task> task = make();
  CHECK(task->shape().input_width == 20);
  CHECK(task->shape().max_tokens == 202);
  CHECK(task->points_at(0) == 26);
  CHECK(task->points_at(30000) == 101);
  CHECK(task->dims_at(0) == 5);
  CHECK(task->prompt(0, RandomDomain::Train, 0, 0).truth.size() == 31);
}

TEST_CASE("decision_tree: coordinates are uniform, leaves and labels have variance 1") {
  const std::unique_ptr<Task> task = make();
  constexpr std::uint32_t kPrompts = 4000;
  std::array<Mean, 20> coordinates;
  Mean leaves, leaf_squares, squares, leaf_four;
  for (std::uint32_t p = 0; p < kPrompts; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 3, p);
    for (std::size_t node = 0; node < 15; ++node) {
      for (std::size_t j = 0; j < 20; ++j) coordinates[j].add(prompt.truth[node] == static_cast<float>(j) ? 1 : 0);
    }
    for (std::size_t node = 15; node < 31; ++node) {
      const auto leaf = static_cast<double>(prompt.truth[node]);
      leaves.add(leaf);
      leaf_squares.add(leaf * leaf);
      leaf_four.add(leaf * leaf * leaf * leaf);
    }
    double sum = 0;
    for (const float y : prompt.ys) sum += static_cast<double>(y) * static_cast<double>(y) / 101;
    squares.add(sum);  // points of a prompt share leaves: prompts are the independent values
  }
  for (const Mean& share : coordinates) check_mean(share, 1.0 / 20);
  check_mean(leaves, 0);
  check_mean(leaf_squares, 1);
  check_mean(leaf_four, 3);
  check_mean(squares, 1);
}

TEST_CASE("decision_tree: a label is the leaf that x reaches, right where x[coordinate] > 0") {
  for (const int depth : {1, 2, 4, 7}) {
    CAPTURE(depth);
    const std::unique_ptr<Task> task =
        make({"task.points=60", "task.curriculum.enabled=false", "task.depth=" + std::to_string(depth)});
    std::set<std::size_t> reached;
    for (std::uint32_t p = 0; p < 30; ++p) {
      const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Evaluation, 0, p);
      REQUIRE(prompt.truth.size() == (std::size_t{2} << static_cast<unsigned>(depth)) - 1);
      for (std::size_t i = 0; i < 60; ++i) {
        std::size_t first = 0;  // the leaves that are left: [first, first + count), from left to right
        std::size_t count = std::size_t{1} << static_cast<unsigned>(depth);
        std::size_t level_first = 0;  // the node of the level's first subtree
        std::size_t subtree = 0;
        for (int level = 0; level < depth; ++level) {
          const auto coordinate = static_cast<std::size_t>(prompt.truth[level_first + subtree]);
          const bool right = prompt.xs[i * 20 + coordinate] > 0;
          count /= 2;
          if (right) first += count;
          level_first = 2 * level_first + 1;
          subtree = 2 * subtree + (right ? 1 : 0);
        }
        reached.insert(first);
        CHECK(count == 1);
        CHECK(prompt.ys[i] == prompt.truth[level_first + first]);
      }
    }
    CHECK(reached.size() == std::min<std::size_t>(std::size_t{1} << static_cast<unsigned>(depth), 128));
  }
}

TEST_CASE("decision_tree: coordinates come from all dimensions during the curriculum, and a zero goes left") {
  const std::unique_ptr<Task> task = make({"task.dim=8", "task.depth=1", "task.points=12",
                                           "task.curriculum.dims_start=1", "task.curriculum.points_start=12"});
  const SampledPrompts drawn = sample_prompts_of(*task, {RandomDomain::Train, 200, 0, false}, 0, 12);
  int inactive = 0;
  for (std::uint32_t p = 0; p < 200; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 0, p);
    const bool active = prompt.truth[0] == 0;  // one dimension is
    inactive += active ? 0 : 1;
    for (std::size_t i = 0; i < 12; ++i) {
      const bool right = active && prompt.xs[8 * i] > 0;
      CHECK(drawn.targets[p * 12 + i] == static_cast<double>(prompt.truth[right ? 2 : 1]));
    }
  }
  CHECK(std::abs(inactive - 175.0) < 4 * std::sqrt(200 * 7.0 / 64));
}

TEST_CASE("decision_tree: batches are the host's prompts") {
  check_prompt_batches(*make({"task.dim=5", "task.points=7", "task.curriculum.enabled=false"}));
  check_prompt_batches(*make({"task.dim=1", "task.points=3", "task.depth=12", "task.curriculum.enabled=false"}));
}

TEST_CASE("decision_tree: impossible depths are refused") {
  check_refused("decision_tree", {"task.depth=0"}, {"task.depth", "got 0"});
  check_refused("decision_tree", {"task.depth=13"}, {"task.depth", "got 13"});
}

TEST_CASE("decision_tree: a tree is told as questions") {
  Prompt prompt;
  prompt.truth = {7, 0.5F, -2};
  CHECK(make({"task.depth=1"})->truth_text(prompt) == "tree\n  x[7] > 0 ?\n    yes: -2.000\n    no:  0.500");
}

TEST_CASE("decision_tree: CUDA matches CPU") {
  if (skip_cuda()) return;
  // A coordinate within 2e-6 of 0 may have another sign: of the 13,000 to 170,000 decisions here, 0.3 at most.
  for (const char* depth : {"task.depth=1", "task.depth=4", "task.depth=12"}) {
    check_cuda_prompts(*make({depth, "task.points=101", "task.curriculum.enabled=false"}), 4e-6, 2);
  }
}

}  // namespace
}  // namespace graft::test
