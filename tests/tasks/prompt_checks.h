#pragma once
// What holds for every task on (x, y) prompts, whatever its law.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/task.h"
#include "tests/support/device.h"
#include "tests/support/device_state.h"
#include "tests/support/parity.h"
#include "train/config.h"

namespace graft::test {

inline constexpr std::uint64_t kPromptSeed = 20240204;

/// The task of that name with its defaults but for `overrides` ("task.dim=3").
inline std::unique_ptr<Task> make_prompt_task(const std::string& name, const std::vector<std::string>& overrides = {}) {
  const std::string text = "[task]\nname = \"" + name + "\"\n[model]\npreset = \"transformer\"\n";
  return make_task(parse_config(text, "prompts.toml", overrides).settings);
}

/// Checks that `overrides` are refused with a message that holds every one of `parts`.
inline void check_refused(const std::string& name, const std::vector<std::string>& overrides,
                          const std::vector<std::string>& parts) {
  std::string message;
  try {
    static_cast<void>(make_prompt_task(name, overrides));
  } catch (const ConfigError& error) {
    message = error.what();
  }
  for (const std::string& part : parts) {
    CAPTURE(message);
    CAPTURE(part);
    CHECK(message.find(part) != std::string::npos);
  }
}

/// A mean of independent values.
struct Mean {
  double sum = 0, squares = 0, n = 0;

  void add(double value) {
    sum += value;
    squares += value * value;
    ++n;
  }
  [[nodiscard]] double value() const { return sum / n; }
  [[nodiscard]] double standard_error() const { return std::sqrt((squares / n - value() * value()) / (n - 1)); }
};

/// Checks a mean against `expected` within 4 of its standard errors, as estimated from the values.
inline void check_mean(const Mean& mean, double expected) {
  CAPTURE(mean.value());
  CAPTURE(mean.standard_error());
  CAPTURE(expected);
  CHECK(std::abs(mean.value() - expected) < 4 * mean.standard_error());
}

/// What one step of a device draws. The mask is all ones where a task has none.
struct SampledPrompts {
  std::int64_t width = 0;  // of a token
  std::vector<double> tokens, targets, mask;

  friend bool operator==(const SampledPrompts&, const SampledPrompts&) = default;
};

inline SampledPrompts sample_prompts_of(const Task& task, const Selection& selection, std::uint64_t step,
                                        std::int64_t points, Backend backend = Backend::Cpu,
                                        Precision precision = Precision::Fp32, int threads = 2) {
  TestDevice device(backend, precision, threads);
  StepState state;
  state.seed = kPromptSeed;
  state.step = step;
  const DeviceState device_state(device, state);
  const Batch batch = task.sample(device.ctx(), selection, points);
  CHECK(batch.tokens.shape() == Shape{selection.batch, 2 * points, round_up(task.shape().input_width, 8)});
  CHECK(batch.targets.shape() == Shape{selection.batch, points, 1});
  SampledPrompts drawn{batch.tokens.shape().columns(), device.values(batch.tokens), device.values(batch.targets), {}};
  drawn.mask.assign(drawn.targets.size(), 1.0);
  if (batch.mask) {
    CHECK(batch.mask.shape() == Shape{selection.batch, points});
    REQUIRE(batch.mask.dtype() == DType::U8);
    const std::vector<std::byte> bytes = device.bytes(batch.mask);
    for (std::size_t i = 0; i < drawn.mask.size(); ++i) drawn.mask[i] = std::to_integer<int>(bytes[i]);
  }
  return drawn;
}

/// Appends the examples of another batch.
inline void append(SampledPrompts& to, const SampledPrompts& more) {
  to.width = more.width;
  to.tokens.insert(to.tokens.end(), more.tokens.begin(), more.tokens.end());
  to.targets.insert(to.targets.end(), more.targets.begin(), more.targets.end());
  to.mask.insert(to.mask.end(), more.mask.begin(), more.mask.end());
}

/// What a batch of prompts of the host looks like.
inline SampledPrompts batch_of(const Task& task, RandomDomain domain, std::uint64_t step, std::uint32_t first,
                               std::uint32_t count) {
  SampledPrompts expected;
  expected.width = round_up(task.shape().input_width, 8);
  const auto width = static_cast<std::size_t>(expected.width);
  for (std::uint32_t example = first; example < first + count; ++example) {
    const Prompt prompt = task.prompt(kPromptSeed, domain, step, example);
    REQUIRE(prompt.points == task.final_points());
    const auto dim = static_cast<std::size_t>(prompt.dim);
    for (std::size_t i = 0; i < static_cast<std::size_t>(prompt.points); ++i) {
      std::vector<double> x(width), y(width);
      for (std::size_t j = 0; j < dim; ++j) {
        x[j] = static_cast<double>(prompt.xs[i * dim + j]);
        y[j] = j == 0 ? static_cast<double>(prompt.ys[i]) : 0;
        if (!prompt.y_vectors.empty()) y[j] = static_cast<double>(prompt.y_vectors[i * dim + j]);
      }
      expected.tokens.insert(expected.tokens.end(), x.begin(), x.end());
      expected.tokens.insert(expected.tokens.end(), y.begin(), y.end());
      expected.targets.push_back(static_cast<double>(prompt.ys[i]));
      expected.mask.push_back(prompt.scored_points.empty() ? 1.0 : prompt.scored_points[i]);
    }
  }
  return expected;
}

/// Batches are the host's prompts and depend on nothing else: not on how they are split, nor on threads, nor on the
/// length (a shorter prompt is the beginning of a longer one). For a task without a curriculum.
inline void check_prompt_batches(const Task& task) {
  const std::int64_t points = task.final_points();
  for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{5}, std::uint64_t{1} << 33U}) {
    CHECK(sample_prompts_of(task, {RandomDomain::Train, 9, 4, false}, step, points) ==
          batch_of(task, RandomDomain::Train, step, 4, 9));
  }
  const SampledPrompts whole = sample_prompts_of(task, {RandomDomain::Train, 64, 0, false}, 11, points);
  SampledPrompts parts = sample_prompts_of(task, {RandomDomain::Train, 51, 0, false}, 11, points);
  append(parts, sample_prompts_of(task, {RandomDomain::Train, 13, 51, false}, 11, points));
  CHECK(parts == whole);
  for (const int threads : {1, 3, 8}) {
    CHECK(sample_prompts_of(task, {RandomDomain::Train, 64, 0, false}, 11, points, Backend::Cpu, Precision::Fp32,
                            threads) == whole);
  }
  CHECK(sample_prompts_of(task, {RandomDomain::Train, 64, 0, false}, 11, points, Backend::Cpu, Precision::Fp64) ==
        whole);
  const SampledPrompts half =
      sample_prompts_of(task, {RandomDomain::Train, 64, 0, false}, 11, points, Backend::Cpu, Precision::Bf16);
  CHECK(half.targets == whole.targets);
  CHECK(half.mask == whole.mask);
  const std::int64_t shorter = (points + 1) / 2;
  const SampledPrompts part = sample_prompts_of(task, {RandomDomain::Train, 64, 0, false}, 11, shorter);
  for (std::size_t b = 0; b < 64; ++b) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(shorter); ++i) {
      const std::size_t at = b * static_cast<std::size_t>(shorter) + i;
      const std::size_t in_whole = b * static_cast<std::size_t>(points) + i;
      if (part.targets[at] != whole.targets[in_whole] || part.mask[at] != whole.mask[in_whole]) {
        FAIL_CHECK("point ", i, " of prompt ", b, " depends on the length");
      }
    }
  }
  // the evaluation set does not depend on the batch size
  const SampledPrompts set = batch_of(task, RandomDomain::Evaluation, 0, 0, 48);
  for (const std::int64_t batch : {1, 3, 16, 48}) {
    CAPTURE(batch);
    SampledPrompts drawn;
    for (std::int64_t step = 0; step < 48 / batch; ++step) {
      append(drawn, sample_prompts_of(task, {RandomDomain::Evaluation, batch, 0, true},
                                      static_cast<std::uint64_t>(step), points));
    }
    CHECK(drawn == set);
  }
  // steps, seeds, domains and examples are all different
  const std::vector<float> base = task.prompt(1, RandomDomain::Train, 0, 0).xs;
  CHECK(base == task.prompt(1, RandomDomain::Train, 0, 0).xs);
  CHECK(base != task.prompt(2, RandomDomain::Train, 0, 0).xs);
  CHECK(base != task.prompt(1, RandomDomain::Evaluation, 0, 0).xs);
  CHECK(base != task.prompt(1, RandomDomain::Train, 1, 0).xs);
  CHECK(base != task.prompt(1, RandomDomain::Train, 0, 1).xs);
  CHECK_THROWS_WITH_AS(static_cast<void>(sample_prompts_of(task, {RandomDomain::Train, 4, 0, false}, 0, points + 1)),
                       doctest::Contains("points, expected 1.."), ArgumentError);
}

/// CUDA draws the same masks, and values within `tolerance` of max(1, |value|), for bfloat16 tokens after rounding.
/// Integers behind them are bit-equal; logf, sinf and cosf of the two libraries differ by up to 2 units in the last
/// place, which makes a normal wrong by 2e-6 at most. At most `jumps` tokens may be elsewhere altogether: those of laws
/// that compare with 0.
inline void check_cuda_prompts(const Task& task, double tolerance, int jumps = 0) {
  const std::int64_t points = task.final_points();
  for (const Selection& selection :
       {Selection{RandomDomain::Train, 17, 2, false}, Selection{RandomDomain::Evaluation, 33, 0, true}}) {
    for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{17}}) {
      for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
        CAPTURE(step);
        CAPTURE(name_of(precision));
        const SampledPrompts cpu = sample_prompts_of(task, selection, step, points, Backend::Cpu, precision);
        const SampledPrompts gpu = sample_prompts_of(task, selection, step, points, Backend::Cuda, precision);
        CHECK(gpu.mask == cpu.mask);
        const auto differences = [](const std::vector<double>& a, const std::vector<double>& b, double bound) {
          int count = 0;
          for (std::size_t i = 0; i < a.size(); ++i) {
            if (!(std::abs(a[i] - b[i]) <= bound * std::max(1.0, std::abs(b[i])))) ++count;
          }
          return count;
        };
        const double rounding = precision == Precision::Bf16 ? 0x1p-7 : 0;
        CHECK(differences(gpu.tokens, cpu.tokens, tolerance + rounding) <= jumps);
        CHECK(differences(gpu.targets, cpu.targets, tolerance) <= jumps);
        CHECK(sample_prompts_of(task, selection, step, points, Backend::Cuda, precision) == gpu);
      }
    }
  }
}

}  // namespace graft::test
