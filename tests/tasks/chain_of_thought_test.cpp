#include "tasks/chain_of_thought.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "tasks/task.h"
#include "tests/support/device.h"
#include "tests/support/device_state.h"
#include "tests/support/parity.h"
#include "train/config.h"
#include "train/evaluation.h"
#include "train/experiment.h"
#include "train/session.h"

namespace graft::test {
namespace {

constexpr std::uint64_t kSeed = 20240229;

RunConfig config_of(int dim, int hidden, int points, const std::string& curriculum = "enabled = false",
                    const std::vector<std::string>& overrides = {}) {
  return parse_config(fmt::format("[task]\nname = \"chain_of_thought\"\ndim = {}\nhidden = {}\npoints = {}\n"
                                  "[task.curriculum]\n{}\n[model]\npreset = \"transformer\"\n",
                                  dim, hidden, points, curriculum),
                      "chain.toml", overrides);
}

std::unique_ptr<Task> make(int dim, int hidden, int points, const std::string& curriculum = "enabled = false") {
  return make_task(config_of(dim, hidden, points, curriculum).settings);
}

/// What one step of a device draws.
struct Sampled {
  Shape shape;  // of the tokens
  std::vector<double> tokens, targets;

  friend bool operator==(const Sampled&, const Sampled&) = default;
};

Sampled sample(const Task& task, const Selection& selection, std::uint64_t step, std::int64_t points,
               Backend backend = Backend::Cpu, Precision precision = Precision::Fp32, int threads = 2) {
  TestDevice device(backend, precision, threads);
  StepState state;
  state.seed = kSeed;
  state.step = step;
  const DeviceState device_state(device, state);
  const Batch batch = task.sample(device.ctx(), selection, points);
  CHECK(batch.targets.shape() == Shape{selection.batch, points, task.shape().output_width});
  CHECK_FALSE(batch.mask);
  return {batch.tokens.shape(), device.values(batch.tokens), device.values(batch.targets)};
}

void append(Sampled& to, const Sampled& more) {
  to.tokens.insert(to.tokens.end(), more.tokens.begin(), more.tokens.end());
  to.targets.insert(to.targets.end(), more.targets.begin(), more.targets.end());
  to.shape = {to.shape.rank() == 0 ? more.shape[0] : to.shape[0] + more.shape[0], more.shape[1], more.shape[2]};
}

/// A batch as the host's prompts say: columns [x | 1 | s | 1 | y | 1], each token its own group.
Sampled prompts_of(const Task& task, int hidden, RandomDomain domain, std::uint64_t step, std::uint32_t first,
                   std::uint32_t count) {
  Sampled expected;
  const auto width = static_cast<std::size_t>(round_up(task.shape().input_width, 8));
  for (std::uint32_t example = first; example < first + count; ++example) {
    const Prompt prompt = task.prompt(kSeed, domain, step, example);
    const auto dim = static_cast<std::size_t>(prompt.dim);
    const std::size_t starts[] = {0, dim + 1, dim + static_cast<std::size_t>(hidden) + 2};
    for (std::size_t t = 0; t < prompt.inputs.size(); ++t) {
      std::vector<double> token(width);
      std::copy(prompt.inputs[t].begin(), prompt.inputs[t].end(),
                token.begin() + static_cast<std::ptrdiff_t>(starts[t % 3]));
      token[starts[t % 3] + prompt.inputs[t].size()] = 1;
      expected.tokens.insert(expected.tokens.end(), token.begin(), token.end());
    }
    for (const std::vector<float>& target : prompt.targets) {
      expected.targets.insert(expected.targets.end(), target.begin(), target.end());
    }
    expected.shape = {count, static_cast<std::int64_t>(prompt.inputs.size()), static_cast<std::int64_t>(width)};
  }
  return expected;
}

TEST_CASE("chain_of_thought: E |s|^2 and E y^2 are dim whatever the width, within standard errors") {
  for (const int hidden : {4, 8, 16}) {
    CAPTURE(hidden);
    constexpr std::size_t kPrompts = 6000;
    constexpr std::size_t kPoints = 11;
    const std::unique_ptr<Task> task = make(10, hidden, kPoints);
    const auto outputs = static_cast<std::size_t>(hidden) + 1;
    const Sampled drawn = sample(*task, {RandomDomain::Train, kPrompts, 0, false}, 3, kPoints);
    // Means of prompts are independent, so their own spread gives the standard error.
    double s1 = 0, s2 = 0, y1 = 0, y2 = 0, zeros = 0;
    for (std::size_t p = 0; p < kPrompts; ++p) {
      double s = 0, y = 0;
      for (std::size_t i = 0; i < kPoints; ++i) {
        const double* target = &drawn.targets[(p * kPoints + i) * outputs];
        for (std::size_t k = 0; k + 1 < outputs; ++k) {
          s += target[k] * target[k] / kPoints;
          zeros += target[k] == 0 ? 1 : 0;
        }
        y += target[outputs - 1] * target[outputs - 1] / kPoints;
      }
      s1 += s;
      s2 += s * s;
      y1 += y;
      y2 += y * y;
    }
    const auto error = [](double first, double second) {
      const double mean = first / kPrompts;
      return std::sqrt((second / kPrompts - mean * mean) / kPrompts);
    };
    CHECK(std::abs(s1 / kPrompts - 10) < 4 * error(s1, s2));
    CHECK(std::abs(y1 / kPrompts - 10) < 4 * error(y1, y2));
    CHECK(error(y1, y2) < 0.4);
    const double values = static_cast<double>(kPrompts * kPoints) * hidden;
    CHECK(zeros / values == doctest::Approx(0.5).epsilon(0.02));
  }
}

TEST_CASE("chain_of_thought: s = relu(W x) and y = <v, s>") {
  const std::unique_ptr<Task> task = make(7, 5, 9);
  for (std::uint32_t example = 0; example < 6; ++example) {
    const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, 4, example);
    REQUIRE(prompt.truth.size() == 7 * 5 + 5);
    REQUIRE(prompt.inputs.size() == 27);
    REQUIRE(prompt.scored.size() == 18);
    for (std::size_t i = 0; i < 9; ++i) {
      const std::vector<float>& x = prompt.inputs[3 * i];
      const std::vector<float>& s = prompt.inputs[3 * i + 1];
      double y = 0;
      for (std::size_t k = 0; k < 5; ++k) {
        double value = 0;
        for (std::size_t j = 0; j < 7; ++j)
          value += static_cast<double>(prompt.truth[k * 7 + j]) * static_cast<double>(x[j]);
        CHECK(static_cast<double>(s[k]) == doctest::Approx(std::max(value, 0.0)).epsilon(1e-5));
        y += static_cast<double>(prompt.truth[35 + k]) * static_cast<double>(s[k]);
      }
      CHECK(static_cast<double>(prompt.inputs[3 * i + 2].at(0)) == doctest::Approx(y).epsilon(1e-5));
      CHECK(prompt.scored[2 * i] == static_cast<int>(3 * i));
      CHECK(prompt.scored[2 * i + 1] == static_cast<int>(3 * i + 1));
      CHECK(prompt.targets[2 * i] == s);
      CHECK(prompt.targets[2 * i + 1] == prompt.inputs[3 * i + 2]);
    }
  }
}

TEST_CASE("chain_of_thought: batches are the host's prompts, however they are split and on any number of threads") {
  for (const auto& [dim, hidden, points] : {std::tuple{10, 8, 7}, {1, 1, 1}, {3, 16, 5}, {33, 5, 4}}) {
    CAPTURE(dim);
    const std::unique_ptr<Task> task = make(dim, hidden, points);
    for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{5}, std::uint64_t{1} << 33U}) {
      CHECK(sample(*task, {RandomDomain::Train, 9, 4, false}, step, points) ==
            prompts_of(*task, hidden, RandomDomain::Train, step, 4, 9));
    }
    const Sampled whole = sample(*task, {RandomDomain::Train, 64, 0, false}, 11, points);
    Sampled parts = sample(*task, {RandomDomain::Train, 51, 0, false}, 11, points);
    append(parts, sample(*task, {RandomDomain::Train, 13, 51, false}, 11, points));
    CHECK(parts == whole);
    for (const int threads : {1, 3, 8}) {
      CHECK(sample(*task, {RandomDomain::Train, 64, 0, false}, 11, points, Backend::Cpu, Precision::Fp32, threads) ==
            whole);
    }
    CHECK(sample(*task, {RandomDomain::Train, 64, 0, false}, 11, points, Backend::Cpu, Precision::Fp64) == whole);
    const Sampled set = prompts_of(*task, hidden, RandomDomain::Evaluation, 0, 0, 48);
    for (const std::int64_t batch : {1, 16, 48}) {
      Sampled drawn;
      for (std::int64_t step = 0; step < 48 / batch; ++step) {
        append(drawn,
               sample(*task, {RandomDomain::Evaluation, batch, 0, true}, static_cast<std::uint64_t>(step), points));
      }
      CHECK(drawn == set);
    }
  }
}

TEST_CASE("chain_of_thought: the study's curriculum grows points only; dimensions can grow too") {
  const std::unique_ptr<Task> study = make_task(parse_config("[task]\nname = \"chain_of_thought\"\n[model]\npreset = "
                                                             "\"transformer\"\n",
                                                             "chain.toml")
                                                    .settings);
  CHECK(study->points_at(0) == 26);
  CHECK(study->points_at(1999) == 26);
  CHECK(study->points_at(2000) == 31);
  CHECK(study->points_at(1000000) == 101);
  CHECK(study->dims_at(0) == 10);
  CHECK(study->tokens_at(101) == 303);
  CHECK(study->shape().read_in_groups == std::vector<std::int64_t>{11, 9, 2});

  const std::unique_ptr<Task> task =
      make(6, 3, 4, "enabled = true\ndims_start = 2\ndims_increment = 1\ndims_interval = 10\npoints_start = 4");
  for (const auto& [step, active] : {std::pair{0, 2}, {10, 3}, {39, 5}, {40, 6}}) {
    const Sampled drawn = sample(*task, {RandomDomain::Train, 5, 0, false}, static_cast<std::uint64_t>(step), 4);
    for (std::size_t point = 0; point < 20; ++point) {
      const double* x = &drawn.tokens[3 * point * 16];
      for (std::size_t j = 0; j < 6; ++j) CHECK((x[j] != 0) == (static_cast<int>(j) < active));
      CHECK(x[6] == 1);
    }
    for (std::uint32_t example = 0; example < 5; ++example) {
      const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, static_cast<std::uint64_t>(step), example);
      double s = 0;
      for (std::size_t j = 0; j < static_cast<std::size_t>(active); ++j) {
        s += static_cast<double>(prompt.truth[j]) * static_cast<double>(prompt.inputs[0][j]);
      }
      CHECK(drawn.targets[example * 16] == doctest::Approx(std::max(s, 0.0)).epsilon(1e-5));
    }
  }
}

TEST_CASE("chain_of_thought: the loss is the sum of both parts' means, and its gradient is right") {
  const std::unique_ptr<Task> task = make(4, 3, 5);
  const Op loss = [&](const Context& ctx, const std::vector<Tensor>& in) {
    Batch batch;
    batch.targets = in[1];
    return std::vector<Tensor>{task->loss(ctx, in[0], batch)};
  };
  const std::vector<HostTensor> inputs{randn({2, 15, 8}), constant(randn({2, 5, 4}, Role::Stream, 7))};
  double expected = 0;
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t i = 0; i < 5; ++i) {
      const double* at = &inputs[0].values[(b * 15 + 3 * i) * 8];
      const double* target = &inputs[1].values[(b * 5 + i) * 4];
      for (std::size_t k = 0; k < 3; ++k) expected += (at[k] - target[k]) * (at[k] - target[k]) / 10;
      expected += (at[8 + 3] - target[3]) * (at[8 + 3] - target[3]) / 10;
    }
  }
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  CHECK(run_op(device, loss, inputs, {{1.0}}).outputs[0][0] == doctest::Approx(expected).epsilon(1e-12));
  CHECK(gradcheck(loss, inputs) < 1e-7);
}

TEST_CASE("chain_of_thought: each kind's read-in starts with its own fan-in, its last column being the bias") {
  Experiment experiment(config_of(10, 16, 5, "enabled = false", {"model.width=256", "model.layers=1"}));
  TestDevice device;
  experiment.params.allocate(device.ctx(), false);
  experiment.params.initialize(device.ctx(), 1);
  const ParameterStore::Entry* weight = experiment.params.find("read_in.weight");
  REQUIRE(weight != nullptr);
  CHECK(weight->shape == Shape{256, 30});
  CHECK(experiment.params.find("read_in.bias") == nullptr);
  const std::vector<double> values = experiment.params.read(device.ctx(), *weight, ParameterStore::Buffer::Weights);
  for (std::size_t column = 0; column < 30; ++column) {
    CAPTURE(column);
    const double bound = column < 11 ? 1 / std::sqrt(10.0) : column < 28 ? 0.25 : 1.0;
    double largest = 0;
    double squares = 0;
    for (std::size_t row = 0; row < 256; ++row) {
      largest = std::max(largest, std::abs(values[row * 30 + column]));
      squares += values[row * 30 + column] * values[row * 30 + column];
    }
    CHECK(largest <= bound);
    CHECK(largest > 0.95 * bound);
    CHECK(squares / 256 == doctest::Approx(bound * bound / 3).epsilon(0.25));  // 4.5 standard errors
  }
  CHECK(experiment.params.find("read_out.weight")->shape == Shape{17, 256});
  CHECK(experiment.params.find("read_out.bias")->shape == Shape{17});
}

/// A model with weights of its own, on a device.
struct LiveChain {
  LiveChain(const RunConfig& config, Backend backend)
      : experiment(config), device(backend, config.train.precision, 1), state(device, state_of(config)) {
    experiment.params.allocate(device.ctx(), false);
    experiment.params.initialize(device.ctx(), 3);
  }
  static StepState state_of(const RunConfig& config) {
    StepState state;
    state.seed = config.run.seed;
    return state;
  }
  [[nodiscard]] Tensor outputs(const Tensor& tokens) const { return (*experiment.model)(device.ctx(), tokens); }
  Experiment experiment;
  TestDevice device;
  DeviceState state;
};

/// Scores as one would compute them by hand: prompt by prompt and point by point, the model reads the true points
/// before it and x_i, then its own s-hat_i.
std::vector<double> scores_by_hand(const LiveChain& live, const Batch& batch, int dim, int hidden,
                                   bool teacher_forced) {
  const Shape shape = batch.tokens.shape();
  const auto width = static_cast<std::size_t>(shape[2]);
  const auto points = static_cast<std::size_t>(shape[1] / 3);
  const auto outputs = static_cast<std::size_t>(hidden) + 1;
  const auto stored = static_cast<std::size_t>(round_up(hidden + 1, 8));
  const std::vector<double> tokens = live.device.values(batch.tokens);
  const std::vector<double> targets = live.device.values(batch.targets);
  std::vector<double> scores;
  for (std::size_t prompt = 0; prompt < static_cast<std::size_t>(shape[0]); ++prompt) {
    for (std::size_t i = 0; i < points; ++i) {
      const auto start = tokens.begin() + static_cast<std::ptrdiff_t>(prompt * 3 * points * width);
      std::vector<double> read(start, start + static_cast<std::ptrdiff_t>((3 * i + 2) * width));
      const auto run = [&](std::size_t count) {
        const std::vector<double> part(read.begin(), read.begin() + static_cast<std::ptrdiff_t>(count * width));
        return live.device.values(live.outputs(
            live.device.tensor({1, static_cast<std::int64_t>(count), shape[2]}, batch.tokens.dtype(), part)));
      };
      if (!teacher_forced) {
        const std::vector<double> said = run(3 * i + 1);
        for (std::size_t k = 0; k < static_cast<std::size_t>(hidden); ++k) {
          read[(3 * i + 1) * width + static_cast<std::size_t>(dim) + 1 + k] = said[3 * i * stored + k];
        }
      }
      const double label = run(3 * i + 2)[(3 * i + 1) * stored + outputs - 1];
      const double error = label - targets[(prompt * points + i) * outputs + outputs - 1];
      scores.push_back(error * error);
    }
  }
  return scores;
}

/// Worst error of evaluate() against scores by hand, relative to the largest score.
double evaluation_error(const std::string& preset, const char* precision, Backend backend, const std::string& suite) {
  constexpr int kDim = 3;
  constexpr int kHidden = 5;
  constexpr int kPoints = 19;  // more than two passes of positions, the last one ragged
  const LiveChain live(config_of(kDim, kHidden, kPoints, "enabled = false",
                                 {"model.preset=" + preset, "model.width=16", "model.layers=2", "model.heads=2",
                                  fmt::format("train.precision={}", precision)}),
                       backend);
  const std::unique_ptr<Task> other = suite.empty() ? nullptr : live.experiment.task->suite(suite);
  const Task& task = other == nullptr ? *live.experiment.task : *other;
  const Context& ctx = live.device.ctx();
  const Batch batch = task.sample(ctx, {RandomDomain::Evaluation, 3, 0, true}, kPoints);
  const Tensor scores = task.evaluate(
      ctx, [&](const Context& c, const Batch& b) { return (*live.experiment.model)(c, b.tokens); }, batch);
  CHECK(scores.shape() == Shape{3, kPoints});
  const std::vector<double> got = live.device.values(scores);
  const std::vector<double> expected = scores_by_hand(live, batch, kDim, kHidden, !suite.empty());
  double worst = 0;
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - expected[i]));
    largest = std::max(largest, expected[i]);
  }
  return worst / largest;
}

TEST_CASE("chain_of_thought: the evaluation feeds the model's own steps back, as by hand") {
  for (const char* preset : {"transformer", "mamba"}) {
    CAPTURE(preset);
    CHECK(evaluation_error(preset, "fp64", Backend::Cpu, "") < 1e-11);
    CHECK(evaluation_error(preset, "fp64", Backend::Cpu, "teacher_forced") < 1e-11);
    CHECK(evaluation_error(preset, "fp32", Backend::Cpu, "") < 1e-4);
    CHECK(evaluation_error(preset, "bf16", Backend::Cpu, "") < 0.1);
  }
}

TEST_CASE("chain_of_thought: CUDA: the evaluation feeds the model's own steps back, as by hand") {
  if (skip_cuda()) return;
  for (const char* preset : {"transformer", "mamba"}) {
    CAPTURE(preset);
    CHECK(evaluation_error(preset, "fp32", Backend::Cuda, "") < 1e-4);
    CHECK(evaluation_error(preset, "fp32", Backend::Cuda, "teacher_forced") < 1e-4);
    CHECK(evaluation_error(preset, "bf16", Backend::Cuda, "") < 0.1);
  }
}

EvaluationResult evaluated(const std::string& suite, bool capture, Backend backend) {
  Experiment experiment(config_of(3, 4, 11, "enabled = false",
                                  {"model.width=16", "model.layers=1", "model.heads=2", "eval.prompts=24",
                                   "eval.batch=8", fmt::format("train.capture={}", capture)}));
  Session session(experiment, {backend, 0}, {1}, false);
  session.initialize();
  Evaluator evaluator(session, {}, Evaluator::CacheUse::ReadOnly, suite);
  EvaluationResult first = evaluator.run(0);
  CHECK(evaluator.run(0).positions.mean == first.positions.mean);
  return first;
}

void check_evaluator(Backend backend) {
  const EvaluationResult captured = evaluated(kStandardSuite, true, backend);
  CHECK(captured.positions.mean.size() == 11);
  CHECK(captured.positions.mean == evaluated(kStandardSuite, false, backend).positions.mean);
  const EvaluationResult forced = evaluated("teacher_forced", true, backend);
  CHECK(forced.positions.mean != captured.positions.mean);
}

TEST_CASE("chain_of_thought: eager and captured evaluations give the same bits") { check_evaluator(Backend::Cpu); }

TEST_CASE("chain_of_thought: CUDA: eager and captured evaluations give the same bits") {
  if (!skip_cuda()) check_evaluator(Backend::Cuda);
}

TEST_CASE("chain_of_thought: what the trainer asks for, and what is refused") {
  const std::unique_ptr<Task> task = make(10, 8, 101);
  CHECK(task->shape().input_width == 22);
  CHECK(task->shape().output_width == 9);
  CHECK(task->shape().max_tokens == 303);
  CHECK(task->suites() == std::vector<std::string>{"teacher_forced"});
  CHECK(task->baselines().empty());
  CHECK(task->description() ==
        "chain of thought: s = relu(W x), y = <v, s>, x ~ N(0, I_10), 8 hidden units, 101 points of x, s, y");
  CHECK_THROWS_WITH_AS(static_cast<void>(task->suite("other")), doctest::Contains("teacher_forced"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(sample(*task, {RandomDomain::Train, 4, 0, false}, 0, 102)),
                       doctest::Contains("102 points, expected 1..101"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(make(10, 129, 5)), doctest::Contains("task.hidden"), ConfigError);
  CHECK_THROWS_WITH_AS(static_cast<void>(make(10, 8, 11, "enabled = true")),
                       doctest::Contains("task.curriculum.points_start"), ConfigError);
}

TEST_CASE("chain_of_thought: CUDA matches CPU") {
  if (skip_cuda()) return;
  // logf, sinf and cosf of the two libraries differ by up to 2 units in the last place: 2e-6 of a normal. A step is a
  // sum of dim products of two of them, a label one of hidden products of a normal and a step.
  for (const auto& [dim, hidden, points] : {std::tuple{10, 8, 101}, {1, 1, 1}, {3, 16, 33}, {128, 128, 40}}) {
    CAPTURE(dim);
    const std::unique_ptr<Task> task = make(dim, hidden, points);
    for (const Selection& selection :
         {Selection{RandomDomain::Train, 5, 2, false}, Selection{RandomDomain::Evaluation, 5, 0, true}}) {
      for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
        const Sampled cpu = sample(*task, selection, 17, points, Backend::Cpu, precision);
        const Sampled gpu = sample(*task, selection, 17, points, Backend::Cuda, precision);
        CHECK(gpu.shape == cpu.shape);
        const double rounding = precision == Precision::Bf16 ? 0x1p-8 : 0;
        const double allowed = 2e-6 * 4 * (dim + hidden);
        int wrong = 0;
        for (std::size_t i = 0; i < cpu.tokens.size(); ++i) {
          wrong += std::abs(gpu.tokens[i] - cpu.tokens[i]) <= allowed + rounding * std::abs(cpu.tokens[i]) ? 0 : 1;
        }
        for (std::size_t i = 0; i < cpu.targets.size(); ++i) {
          wrong += std::abs(gpu.targets[i] - cpu.targets[i]) <= allowed * (1 + std::abs(cpu.targets[i])) ? 0 : 1;
        }
        CHECK(wrong == 0);
      }
    }
  }
}

}  // namespace
}  // namespace graft::test
