#include "tasks/linear_regression.h"

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

namespace graft::test {
namespace {

constexpr std::uint64_t kSeed = 20240229;

std::unique_ptr<Task> make_regression(std::int64_t dim, std::int64_t points, bool curriculum = false) {
  const std::string text = fmt::format(
      "[task]\nname = \"linear_regression\"\ndim = {}\npoints = {}\n[task.curriculum]\nenabled = {}\n{}"
      "[model]\npreset = \"transformer\"\n",
      dim, points, curriculum,
      curriculum ? "dims_start = 2\ndims_interval = 10\npoints_start = 1\npoints_interval = 10\n" : "");
  return make_task(parse_config(text, "linear_regression.toml").settings);
}

/// What one step of a device draws.
struct Sampled {
  Shape token_shape;
  std::vector<double> tokens;
  std::vector<double> targets;
};

Sampled sample(const Task& task, const Selection& selection, std::uint64_t step, std::int64_t points,
               Backend backend = Backend::Cpu, Precision precision = Precision::Fp32, int threads = 2) {
  TestDevice device(backend, precision, threads);
  StepState state;
  state.seed = kSeed;
  state.step = step;
  const DeviceState device_state(device, state);
  const Batch batch = task.sample(device.ctx(), selection, points);
  CHECK(batch.targets.shape() == Shape{selection.batch, points, 1});
  CHECK_FALSE(batch.mask);
  return {batch.tokens.shape(), device.values(batch.tokens), device.values(batch.targets)};
}

TEST_CASE("linear_regression: x and w are standard normal and y has variance dim, within standard errors") {
  constexpr std::int64_t kDim = 20;
  constexpr std::int64_t kPoints = 41;
  constexpr std::int64_t kPrompts = 4096;
  const std::unique_ptr<Task> task = make_regression(kDim, kPoints);
  const Sampled drawn = sample(*task, {RandomDomain::Train, kPrompts, 0, false}, 3, kPoints);
  double x1 = 0, x2 = 0, x4 = 0, neighbours = 0, y1 = 0, y2 = 0, lag = 0, xy = 0;
  const auto width = static_cast<std::size_t>(drawn.token_shape.columns());
  for (std::size_t p = 0; p < kPrompts; ++p) {
    for (std::size_t i = 0; i < kPoints; ++i) {
      const double* x = &drawn.tokens[(p * 2 * kPoints + 2 * i) * width];
      const double y = drawn.targets[p * kPoints + i];
      for (std::size_t j = 0; j < kDim; ++j) {
        x1 += x[j];
        x2 += x[j] * x[j];
        x4 += x[j] * x[j] * x[j] * x[j];
        if (j > 0) neighbours += x[j] * x[j - 1];
        xy += x[j] * y;
      }
      y1 += y;
      y2 += y * y;
      if (i > 0) lag += y * drawn.targets[p * kPoints + i - 1];
    }
  }
  const double points = static_cast<double>(kPrompts) * kPoints;
  const double inputs = points * kDim;
  CHECK(std::abs(x1 / inputs) < 4 / std::sqrt(inputs));
  CHECK(std::abs(x2 / inputs - 1) < 4 * std::sqrt(2 / inputs));
  CHECK(std::abs(x4 / inputs - 3) < 4 * std::sqrt(96 / inputs));
  CHECK(std::abs(neighbours / inputs) < 4 / std::sqrt(inputs));
  // Given w, y is N(0, |w|^2), so a prompt's mean of y^2 has variance Var |w|^2 + 2 E |w|^4 / N = 2 d + 2 (d^2 + 2 d) /
  // N.
  const double prompt_variance = 2.0 * kDim + 2.0 * (kDim * kDim + 2 * kDim) / kPoints;
  CHECK(std::abs(y2 / points - kDim) < 4 * std::sqrt(prompt_variance / kPrompts));
  CHECK(std::abs(y1 / points) < 4 * std::sqrt(kDim / points));
  // Products of two points' labels: variance E |w|^4; they share w but no input, so their mean is 0.
  CHECK(std::abs(lag / points) < 4 * std::sqrt((kDim * kDim + 2.0 * kDim) / points));
  // Given w, (1 . x) (w . x) has mean 1 . w and variance d |w|^2 + (1 . w)^2.
  const double product_variance = kDim + (kDim * kDim + 1.0 * kDim) / kPoints;
  CHECK(std::abs(xy / points) < 4 * std::sqrt(product_variance / kPrompts));
}

TEST_CASE("linear_regression: labels are <w, x> and prompts on the host are those of a step") {
  const std::unique_ptr<Task> task = make_regression(7, 9);
  for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{5}, std::uint64_t{1} << 33U}) {
    const Sampled drawn = sample(*task, {RandomDomain::Train, 6, 0, false}, step, 9);
    for (std::uint32_t example = 0; example < 6; ++example) {
      const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, step, example);
      REQUIRE(prompt.truth.size() == 7);
      for (std::size_t i = 0; i < 9; ++i) {
        double label = 0;
        double size = 0;
        for (std::size_t j = 0; j < 7; ++j) {
          const double x = prompt.xs[i * 7 + j];
          CHECK(drawn.tokens[(example * 18 + 2 * i) * 8 + j] == x);
          label += x * static_cast<double>(prompt.truth[j]);
          size += std::abs(x * static_cast<double>(prompt.truth[j]));
        }
        CHECK(std::abs(prompt.ys[i] - label) <= 7 * 0x1p-23 * size);
        CHECK(drawn.targets[example * 9 + i] == static_cast<double>(prompt.ys[i]));
      }
    }
  }
}

TEST_CASE("linear_regression: tokens are x, then y widened with zeros; padding columns are zero") {
  for (const std::int64_t dim : {1, 3, 8, 20, 33}) {
    CAPTURE(dim);
    const std::unique_ptr<Task> task = make_regression(dim, 5);
    const Sampled drawn = sample(*task, {RandomDomain::Train, 3, 0, false}, 0, 5);
    const std::int64_t width = round_up(dim, 8);
    CHECK(drawn.token_shape == Shape{3, 10, width});
    for (std::size_t token = 0; token < 30; ++token) {
      const double* row = &drawn.tokens[token * static_cast<std::size_t>(width)];
      for (std::int64_t j = 0; j < width; ++j) {
        if (token % 2 == 0) {
          CHECK((row[j] == 0) == (j >= dim));
        } else {
          CHECK(row[j] == (j == 0 ? drawn.targets[token / 2] : 0));
        }
      }
    }
  }
}

TEST_CASE("linear_regression: inactive dimensions are zero before labels are computed") {
  const std::unique_ptr<Task> task = make_regression(6, 4, true);  // 2 dimensions, one more every 10 steps
  for (const auto& [step, active] : {std::pair{0, 2}, {9, 2}, {10, 3}, {25, 4}, {39, 5}, {40, 6}, {1000, 6}}) {
    CAPTURE(step);
    CHECK(task->dims_at(static_cast<std::uint64_t>(step)) == active);
    const Sampled drawn = sample(*task, {RandomDomain::Train, 5, 0, false}, static_cast<std::uint64_t>(step), 4);
    for (std::uint32_t example = 0; example < 5; ++example) {
      const Prompt full = task->prompt(kSeed, RandomDomain::Train, static_cast<std::uint64_t>(step), example);
      for (std::size_t i = 0; i < 4; ++i) {
        float label = 0;
        for (std::size_t j = 0; j < 6; ++j) {
          const bool on = static_cast<int>(j) < active;
          CHECK(drawn.tokens[(example * 8 + 2 * i) * 8 + j] == (on ? static_cast<double>(full.xs[i * 6 + j]) : 0.0));
          if (on) label += full.truth[j] * full.xs[i * 6 + j];
        }
        CHECK(drawn.targets[example * 4 + i] == doctest::Approx(static_cast<double>(label)).epsilon(1e-5));
      }
    }
  }
  // Evaluation prompts have all dimensions, whatever the step.
  const Sampled drawn = sample(*task, {RandomDomain::Evaluation, 5, 0, true}, 0, 4);
  for (std::size_t token = 0; token < 40; token += 2) CHECK(drawn.tokens[token * 8 + 5] != 0);
}

TEST_CASE("linear_regression: a shorter prompt is the beginning of the longer one") {
  const std::unique_ptr<Task> task = make_regression(3, 9);
  const Sampled whole = sample(*task, {RandomDomain::Train, 2, 0, false}, 8, 9);
  const Sampled part = sample(*task, {RandomDomain::Train, 2, 0, false}, 8, 4);
  for (std::size_t example = 0; example < 2; ++example) {
    for (std::size_t i = 0; i < 4; ++i) CHECK(part.targets[example * 4 + i] == whole.targets[example * 9 + i]);
  }
}

template <class T>
std::vector<T> concatenated(const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<T> result = a;
  result.insert(result.end(), b.begin(), b.end());
  return result;
}

TEST_CASE("linear_regression: an example of a step does not depend on how the batch is split") {
  const std::unique_ptr<Task> task = make_regression(5, 7);
  const Sampled whole = sample(*task, {RandomDomain::Train, 64, 0, false}, 11, 7);
  const Sampled first = sample(*task, {RandomDomain::Train, 32, 0, false}, 11, 7);
  const Sampled second = sample(*task, {RandomDomain::Train, 32, 32, false}, 11, 7);
  CHECK(whole.tokens == concatenated(first.tokens, second.tokens));
  CHECK(whole.targets == concatenated(first.targets, second.targets));
  CHECK(first.targets != second.targets);
  const Sampled ragged = sample(*task, {RandomDomain::Train, 13, 51, false}, 11, 7);
  CHECK(std::equal(ragged.tokens.begin(), ragged.tokens.end(),
                   whole.tokens.end() - static_cast<std::ptrdiff_t>(ragged.tokens.size())));
}

TEST_CASE("linear_regression: the evaluation set does not depend on the batch size") {
  const std::unique_ptr<Task> task = make_regression(5, 7);
  std::vector<double> expected;
  for (std::uint32_t example = 0; example < 48; ++example) {
    const Prompt prompt = task->prompt(kSeed, RandomDomain::Evaluation, 0, example);
    for (const float y : prompt.ys) expected.push_back(static_cast<double>(y));
  }
  for (const std::int64_t batch : {1, 3, 16, 48}) {
    CAPTURE(batch);
    std::vector<double> targets;
    for (std::int64_t step = 0; step < 48 / batch; ++step) {
      targets = concatenated(
          targets,
          sample(*task, {RandomDomain::Evaluation, batch, 0, true}, static_cast<std::uint64_t>(step), 7).targets);
    }
    CHECK(targets == expected);
  }
}

TEST_CASE("linear_regression: steps, seeds, domains and examples are all different prompts") {
  const std::unique_ptr<Task> task = make_regression(4, 3);
  const std::vector<float> base = task->prompt(1, RandomDomain::Train, 0, 0).ys;
  CHECK(base == task->prompt(1, RandomDomain::Train, 0, 0).ys);
  CHECK(base != task->prompt(2, RandomDomain::Train, 0, 0).ys);
  CHECK(base != task->prompt(1, RandomDomain::Evaluation, 0, 0).ys);
  CHECK(base != task->prompt(1, RandomDomain::Train, 1, 0).ys);
  CHECK(base != task->prompt(1, RandomDomain::Train, std::uint64_t{1} << 32U, 0).ys);
  CHECK(base != task->prompt(1, RandomDomain::Train, 0, 1).ys);
  CHECK(base != task->prompt((std::uint64_t{1} << 32U) + 1, RandomDomain::Train, 0, 0).ys);
}

TEST_CASE("linear_regression: any number of threads draws the same bits") {
  const std::unique_ptr<Task> task = make_regression(20, 41);
  const Selection selection{RandomDomain::Train, 37, 0, false};
  const Sampled one = sample(*task, selection, 4, 41, Backend::Cpu, Precision::Fp32, 1);
  for (const int threads : {2, 3, 8}) {
    const Sampled many = sample(*task, selection, 4, 41, Backend::Cpu, Precision::Fp32, threads);
    CHECK(one.tokens == many.tokens);
    CHECK(one.targets == many.targets);
  }
}

TEST_CASE("linear_regression: fp64 and bf16 hold the same draws, rounded to their dtype") {
  const std::unique_ptr<Task> task = make_regression(3, 8);
  const Selection selection{RandomDomain::Train, 4, 0, false};
  const Sampled single = sample(*task, selection, 4, 8);
  const Sampled wide = sample(*task, selection, 4, 8, Backend::Cpu, Precision::Fp64);
  const Sampled half = sample(*task, selection, 4, 8, Backend::Cpu, Precision::Bf16);
  CHECK(wide.tokens == single.tokens);
  CHECK(wide.targets == single.targets);
  CHECK(half.targets == single.targets);
  for (std::size_t i = 0; i < half.tokens.size(); ++i) {
    CHECK(half.tokens[i] == static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(single.tokens[i])))));
  }
}

TEST_CASE("linear_regression: prompts longer than the task's are refused") {
  const std::unique_ptr<Task> task = make_regression(3, 8);
  CHECK_THROWS_WITH_AS(static_cast<void>(sample(*task, {RandomDomain::Train, 4, 0, false}, 0, 9)),
                       doctest::Contains("9 points, expected 1..8"), ArgumentError);
  CHECK_THROWS_AS(static_cast<void>(sample(*task, {RandomDomain::Train, 4, 0, false}, 0, 0)), ArgumentError);
}

/// How far a label may be off if every normal of it is off by `normal_error`: sum over j of |dw x| + |w dx|, and the
/// rounding of the sum itself.
double label_tolerance(const Prompt& prompt, std::size_t point, double normal_error) {
  double sum = 0;
  double products = 0;
  for (std::size_t j = 0; j < prompt.truth.size(); ++j) {
    const double x = prompt.xs[point * prompt.truth.size() + j];
    const double w = prompt.truth[j];
    sum += std::abs(x) + std::abs(w);
    products += std::abs(x * w);
  }
  return normal_error * (1 + sum) + static_cast<double>(prompt.truth.size()) * 0x1p-23 * products;
}

TEST_CASE("linear_regression: CUDA matches CPU") {
  if (skip_cuda()) return;
  // Integers behind the normals are bit-equal; logf, sinf and cosf of the two libraries differ by up to 2 units in the
  // last place (CUDA C++ Programming Guide, mathematical functions), which a radius of at most 5.9 turns into 2e-6.
  constexpr double kNormalError = 2e-6;
  for (const std::int64_t dim : {1, 3, 20, 33}) {
    for (const std::int64_t points : {1, 8, 41, 512}) {
      const std::unique_ptr<Task> task = make_regression(dim, points);
      for (const Selection& selection :
           {Selection{RandomDomain::Train, 5, 2, false}, Selection{RandomDomain::Evaluation, 5, 0, true}}) {
        for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
          CAPTURE(dim);
          CAPTURE(points);
          CAPTURE(name_of(precision));
          const Sampled cpu = sample(*task, selection, 17, points, Backend::Cpu, precision);
          const Sampled gpu = sample(*task, selection, 17, points, Backend::Cuda, precision);
          const double rounding = precision == Precision::Bf16 ? 0x1p-8 : 0;  // of a number next to a boundary
          const auto width = static_cast<std::size_t>(round_up(dim, 8));
          int wrong = 0;
          for (std::int64_t example = 0; example < selection.batch; ++example) {
            const auto e = static_cast<std::size_t>(example);
            const auto number = static_cast<std::uint32_t>(selection.consecutive ? 17 * 5 + example : 2 + example);
            const Prompt prompt = task->prompt(kSeed, selection.domain, selection.consecutive ? 0 : 17, number);
            for (std::size_t i = 0; i < static_cast<std::size_t>(points); ++i) {
              const double tolerance = label_tolerance(prompt, i, kNormalError);
              const std::size_t at = e * static_cast<std::size_t>(points) + i;
              wrong += std::abs(gpu.targets[at] - cpu.targets[at]) <= tolerance ? 0 : 1;
              for (std::size_t j = 0; j < 2 * width; ++j) {  // the x-token, then the y-token
                const double expected = cpu.tokens[2 * at * width + j];
                const double value = gpu.tokens[2 * at * width + j];
                const bool zero = j < width ? j >= static_cast<std::size_t>(dim) : j > width;
                const double allowed =
                    zero ? 0 : (j < width ? kNormalError : tolerance) + rounding * std::abs(expected);
                wrong += std::abs(value - expected) <= allowed ? 0 : 1;
              }
            }
          }
          CHECK(wrong == 0);
        }
      }
    }
  }
}

TEST_CASE("linear_regression: CUDA: the curriculum's mask and batch splits are those of the CPU") {
  if (skip_cuda()) return;
  const std::unique_ptr<Task> task = make_regression(6, 4, true);
  for (const std::uint64_t step : {0U, 9U, 10U, 25U, 1000U}) {
    const Sampled cpu = sample(*task, {RandomDomain::Train, 8, 0, false}, step, 4);
    const Sampled gpu = sample(*task, {RandomDomain::Train, 8, 0, false}, step, 4, Backend::Cuda);
    const Sampled half = sample(*task, {RandomDomain::Train, 4, 4, false}, step, 4, Backend::Cuda);
    CHECK(std::equal(half.tokens.begin(), half.tokens.end(),
                     gpu.tokens.begin() + static_cast<std::ptrdiff_t>(half.tokens.size())));
    for (std::size_t i = 0; i < cpu.tokens.size(); ++i) {
      CHECK((cpu.tokens[i] == 0) == (gpu.tokens[i] == 0));
      CHECK(gpu.tokens[i] == doctest::Approx(cpu.tokens[i]).epsilon(1e-4));
    }
  }
}

}  // namespace
}  // namespace graft::test
