#include "tasks/sparse_parity.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "tests/tasks/prompt_checks.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::vector<std::string>& overrides = {}) {
  return make_prompt_task("sparse_parity", overrides);
}

TEST_CASE("sparse_parity: the defaults are the study's") {
  const std::unique_ptr<Task> task = make();
  CHECK(task->shape().input_width == 10);
  CHECK(task->shape().max_tokens == 280);
  for (const std::uint64_t step : {0U, 100000U}) {
    CHECK(task->points_at(step) == 140);
    CHECK(task->dims_at(step) == 10);
  }
  CHECK(task->score_name() == "accuracy");
  CHECK(task->score(0.1, 1) == 1);
  CHECK(task->score(-3, -1) == 1);
  CHECK(task->score(-0.1, 1) == 0);
  CHECK(task->score(0, 1) == 0);  // no sign is the wrong one
  CHECK(task->score(0, -1) == 0);
}

TEST_CASE("sparse_parity: signs are fair, labels are products over the subset, every subset is equally likely") {
  const std::unique_ptr<Task> task = make({"task.points=20"});
  constexpr std::uint32_t kPrompts = 9000;
  std::map<std::pair<int, int>, int> subsets;
  Mean signs, neighbours, lag, labels;
  for (std::uint32_t p = 0; p < kPrompts; ++p) {
    const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, 1, p);
    REQUIRE(prompt.truth.size() == 2);
    const auto a = static_cast<std::size_t>(prompt.truth[0]);
    const auto b = static_cast<std::size_t>(prompt.truth[1]);
    REQUIRE(a < b);
    REQUIRE(b < 10);
    ++subsets[{static_cast<int>(a), static_cast<int>(b)}];
    for (std::size_t i = 0; i < 20; ++i) {
      const float* x = &prompt.xs[10 * i];
      for (std::size_t j = 0; j < 10; ++j) {
        REQUIRE(std::abs(x[j]) == 1.F);
        signs.add(static_cast<double>(x[j]));
        if (j > 0) neighbours.add(static_cast<double>(x[j] * x[j - 1]));
        if (i > 0) lag.add(static_cast<double>(x[j] * prompt.xs[10 * (i - 1) + j]));
      }
      CHECK(prompt.ys[i] == x[a] * x[b]);
      labels.add(static_cast<double>(prompt.ys[i]));
    }
  }
  check_mean(signs, 0);
  check_mean(neighbours, 0);
  check_mean(lag, 0);
  check_mean(labels, 0);
  REQUIRE(subsets.size() == 45);
  double chi_square = 0;  // 44 degrees of freedom: mean 44, standard deviation sqrt(88)
  for (const auto& [subset, count] : subsets) chi_square += (count - 200.0) * (count - 200.0) / 200;
  CHECK(chi_square < 44 + 4 * std::sqrt(88.0));
  CHECK(chi_square > 44 - 4 * std::sqrt(88.0));
}

/// What the best learner answers at every point: the sign that most subsets consistent with the earlier points give.
std::vector<double> bayes_scores(const Prompt& prompt) {
  struct Pair {
    std::size_t a, b;
  };
  std::vector<Pair> consistent;
  for (std::size_t a = 0; a < 10; ++a) {
    for (std::size_t b = a + 1; b < 10; ++b) consistent.push_back({a, b});
  }
  std::vector<double> scores;
  for (std::size_t i = 0; i < prompt.ys.size(); ++i) {
    const float* x = &prompt.xs[10 * i];
    double votes = 0;
    for (const Pair& pair : consistent) votes += static_cast<double>(x[pair.a] * x[pair.b]);
    scores.push_back(votes == 0 ? 0.5 : (votes * static_cast<double>(prompt.ys[i]) > 0 ? 1.0 : 0.0));
    std::erase_if(consistent, [&](const Pair& pair) { return x[pair.a] * x[pair.b] != prompt.ys[i]; });
  }
  return scores;
}

TEST_CASE("sparse_parity: the exact posterior's accuracy over positions") {
  const std::unique_ptr<Task> task = make();
  // Monte Carlo, independent of this program, to three digits.
  constexpr std::array<double, 13> kExpected{.557, .571, .614, .656, .723, .794, .872,
                                             .925, .959, .980, .990, .995, .997};
  std::array<Mean, 140> accuracy;
  Mean average;
  for (std::uint32_t p = 0; p < 8000; ++p) {
    const std::vector<double> scores = bayes_scores(task->prompt(kPromptSeed, RandomDomain::Evaluation, 0, p));
    double sum = 0;
    for (std::size_t i = 0; i < 140; ++i) {
      accuracy[i].add(scores[i]);
      sum += scores[i];
    }
    average.add(sum / 140);
  }
  for (std::size_t i = 0; i < kExpected.size(); ++i) {
    CAPTURE(i);
    CAPTURE(accuracy[i].value());
    CHECK(std::abs(accuracy[i].value() - kExpected[i]) < 4 * accuracy[i].standard_error() + 0.001);
  }
  CHECK(std::abs(average.value() - 0.983) < 4 * average.standard_error() + 0.0005);
  for (std::size_t i = 40; i < 140; ++i) CHECK(accuracy[i].value() == 1);
}

TEST_CASE("sparse_parity: one subset for all prompts of a training step, on request") {
  const std::unique_ptr<Task> task = make({"task.subset=per_batch", "task.points=6"});
  std::map<std::vector<float>, int> steps;
  for (std::uint64_t step = 0; step < 300; ++step) {
    const std::vector<float> subset = task->prompt(kPromptSeed, RandomDomain::Train, step, 0).truth;
    ++steps[subset];
    for (const std::uint32_t example : {1U, 63U, 5000U}) {
      const Prompt prompt = task->prompt(kPromptSeed, RandomDomain::Train, step, example);
      CHECK(prompt.truth == subset);
      CHECK(prompt.xs != task->prompt(kPromptSeed, RandomDomain::Train, step, 0).xs);
    }
  }
  CHECK(steps.size() > 40);  // of 45; each step has its own
  CHECK(steps.rbegin()->second < 30);
  // evaluation prompts each have theirs
  std::map<std::vector<float>, int> prompts;
  for (std::uint32_t p = 0; p < 300; ++p) ++prompts[task->prompt(kPromptSeed, RandomDomain::Evaluation, 0, p).truth];
  CHECK(prompts.size() > 40);
  // without the switch, training prompts do as well
  const std::unique_ptr<Task> own = make({"task.points=6"});
  prompts.clear();
  for (std::uint32_t p = 0; p < 300; ++p) ++prompts[own->prompt(kPromptSeed, RandomDomain::Train, 0, p).truth];
  CHECK(prompts.size() > 40);
}

TEST_CASE("sparse_parity: loss is binary cross-entropy at the x-tokens, scores compare signs") {
  const std::unique_ptr<Task> task = make({"task.points=3", "task.dim=4"});
  TestDevice device(Backend::Cpu, Precision::Fp64);
  Batch batch;
  batch.targets = device.tensor({2, 3, 1}, DType::F64, {1, -1, 1, -1, -1, 1});
  // only column 0 of even tokens counts
  std::vector<double> outputs(2 * 6 * 8, 77.0);
  const std::vector<double> logits = {2, 1, -0.5, -3, 0, 0};
  for (std::size_t i = 0; i < 6; ++i) outputs[(2 * i) * 8] = logits[i];
  const Tensor predictions = device.tensor({2, 6, 8}, DType::F64, outputs);
  const std::vector<double> signs = {1, -1, 1, -1, -1, 1};
  double loss = 0;
  std::vector<double> scores;
  for (std::size_t i = 0; i < 6; ++i) {
    loss += std::log1p(std::exp(-signs[i] * logits[i])) / 6;
    scores.push_back(signs[i] * logits[i] > 0 ? 1 : 0);
  }
  CHECK(device.values(task->loss(device.ctx(), predictions, batch)).at(0) == doctest::Approx(loss).epsilon(1e-12));
  CHECK(device.values(task->scores(device.ctx(), predictions, batch)) == scores);
}

TEST_CASE("sparse_parity: subsets come from the active dimensions, so that no label is 0") {
  const std::unique_ptr<Task> task = make({"task.curriculum.enabled=true", "task.curriculum.dims_start=3",
                                           "task.curriculum.dims_interval=10", "task.subset_size=3", "task.points=50"});
  const SampledPrompts drawn = sample_prompts_of(*task, {RandomDomain::Train, 40, 0, false}, 5, 50);
  for (std::size_t at = 0; at < 40 * 50; ++at) {
    const double* x = &drawn.tokens[2 * at * 16];
    CHECK(drawn.targets[at] == x[0] * x[1] * x[2]);  // three of three
    CHECK(x[3] == 0);
  }
}

TEST_CASE("sparse_parity: batches are the host's prompts") {
  check_prompt_batches(*make({"task.points=7"}));
  check_prompt_batches(*make({"task.dim=16", "task.points=9", "task.subset_size=16"}));
  check_prompt_batches(*make({"task.points=6", "task.subset=per_batch"}));
}

TEST_CASE("sparse_parity: impossible subsets are refused") {
  check_refused("sparse_parity", {"task.subset_size=11"}, {"task.subset_size", "got 11", "task.dim = 10"});
  check_refused("sparse_parity", {"task.subset_size=0"}, {"task.subset_size"});
  check_refused("sparse_parity", {"task.subset=per_step"}, {"task.subset", "per_prompt", "per_batch"});
  check_refused("sparse_parity", {"task.subset_size=6", "task.curriculum.enabled=true"},
                {"task.subset_size", "curriculum starts with"});
}

TEST_CASE("sparse_parity: what generated a prompt is told as its subset") {
  Prompt prompt;
  prompt.truth = {2, 7};
  CHECK(make()->truth_text(prompt) == "y = product of x over the subset {2, 7}");
}

TEST_CASE("sparse_parity: CUDA matches CPU, bit for bit") {
  if (skip_cuda()) return;
  for (const char* subset : {"task.subset=per_prompt", "task.subset=per_batch"}) {
    check_cuda_prompts(*make({subset}), 0);
    check_cuda_prompts(*make({subset, "task.dim=33", "task.subset_size=5", "task.points=51"}), 0);
  }
}

}  // namespace
}  // namespace graft::test
