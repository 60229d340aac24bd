#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/philox.h"
#include "tasks/task.h"
#include "tasks/token_sampler.h"
#include "tests/support/device.h"
#include "tests/support/device_state.h"
#include "train/config.h"

namespace graft::test {

inline constexpr std::uint64_t kSeed = 20240229;

/// The task of that name with these lines in its table.
inline std::unique_ptr<Task> make_token_task(const std::string& name, const std::string& lines = "") {
  const std::string text = "[task]\nname = \"" + name + "\"\n" + lines + "\n[model]\npreset = \"transformer\"\n";
  return make_task(parse_config(text, "tokens.toml").settings);
}

/// What one step of a device draws.
struct SampledTokens {
  Shape shape;  // of the ids
  std::vector<double> ids, positions, labels, targets;

  friend bool operator==(const SampledTokens&, const SampledTokens&) = default;
};

inline SampledTokens sample_tokens_of(const Task& task, const Selection& selection, std::uint64_t step,
                                      Backend backend = Backend::Cpu, Precision precision = Precision::Fp32,
                                      int threads = 2) {
  TestDevice device(backend, precision, threads);
  StepState state;
  state.seed = kSeed;
  state.step = step;
  const DeviceState device_state(device, state);
  const std::int64_t points = task.final_points();
  const Batch batch = task.sample(device.ctx(), selection, points);
  CHECK(batch.ids.dtype() == DType::I32);
  CHECK(batch.positions.shape() == Shape{selection.batch, points});
  CHECK(batch.labels.shape() == Shape{selection.batch, points});
  CHECK(batch.targets.shape() == Shape{selection.batch, points, 1});
  CHECK(batch.targets.dtype() == device.ctx().stream_dtype());
  CHECK_FALSE(batch.tokens);
  CHECK_FALSE(batch.mask);
  return {batch.ids.shape(), device.values(batch.ids), device.values(batch.positions), device.values(batch.labels),
          device.values(batch.targets)};
}

/// Appends the examples of another batch.
inline void append(SampledTokens& to, const SampledTokens& more) {
  to.ids.insert(to.ids.end(), more.ids.begin(), more.ids.end());
  to.positions.insert(to.positions.end(), more.positions.begin(), more.positions.end());
  to.labels.insert(to.labels.end(), more.labels.begin(), more.labels.end());
  to.targets.insert(to.targets.end(), more.targets.begin(), more.targets.end());
  to.shape = {to.shape.rank() == 0 ? more.shape[0] : to.shape[0] + more.shape[0], more.shape[1]};
}

/// What a batch of `count` prompts of the host looks like, padded to `stored` ids.
inline SampledTokens prompts_of(const Task& task, RandomDomain domain, std::uint64_t step, std::uint32_t first,
                                std::uint32_t count, std::int64_t stored) {
  SampledTokens expected;
  for (std::uint32_t example = first; example < first + count; ++example) {
    const Prompt prompt = task.prompt(kSeed, domain, step, example);
    CHECK(prompt.points == task.final_points());
    for (const std::int32_t position : prompt.scored) {
      expected.positions.push_back(position);
      expected.labels.push_back(prompt.ids.at(static_cast<std::size_t>(position) + 1));  // of the token that follows
    }
    expected.ids.insert(expected.ids.end(), prompt.ids.begin(), prompt.ids.end());
    expected.ids.resize(static_cast<std::size_t>((example - first + 1) * stored), kPadToken);
  }
  expected.targets = expected.labels;
  expected.shape = {count, stored};
  return expected;
}

/// Everything that holds for any task on tokens: batches are the host's prompts, and depend on nothing else.
inline void check_token_batches(const Task& task, std::int64_t train_tokens, std::int64_t evaluation_tokens) {
  for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{5}, std::uint64_t{1} << 33U}) {
    CHECK(sample_tokens_of(task, {RandomDomain::Train, 9, 4, false}, step) ==
          prompts_of(task, RandomDomain::Train, step, 4, 9, train_tokens));
  }
  // a batch is the same however it is split, and on any number of threads
  const SampledTokens whole = sample_tokens_of(task, {RandomDomain::Train, 64, 0, false}, 11);
  SampledTokens parts = sample_tokens_of(task, {RandomDomain::Train, 51, 0, false}, 11);
  append(parts, sample_tokens_of(task, {RandomDomain::Train, 13, 51, false}, 11));
  CHECK(parts == whole);
  for (const int threads : {1, 3, 8}) {
    CHECK(sample_tokens_of(task, {RandomDomain::Train, 64, 0, false}, 11, Backend::Cpu, Precision::Fp32, threads) ==
          whole);
  }
  CHECK(sample_tokens_of(task, {RandomDomain::Train, 64, 0, false}, 11, Backend::Cpu, Precision::Fp64) == whole);
  CHECK(sample_tokens_of(task, {RandomDomain::Train, 64, 0, false}, 11, Backend::Cpu, Precision::Bf16) == whole);
  // the evaluation set does not depend on the batch size
  const SampledTokens set = prompts_of(task, RandomDomain::Evaluation, 0, 0, 48, evaluation_tokens);
  for (const std::int64_t batch : {1, 3, 16, 48}) {
    CAPTURE(batch);
    SampledTokens drawn;
    for (std::int64_t step = 0; step < 48 / batch; ++step) {
      append(drawn,
             sample_tokens_of(task, {RandomDomain::Evaluation, batch, 0, true}, static_cast<std::uint64_t>(step)));
    }
    CHECK(drawn == set);
  }
  // steps, seeds, domains and examples are all different
  const std::vector<std::int32_t> base = task.prompt(1, RandomDomain::Train, 0, 0).ids;
  CHECK(base == task.prompt(1, RandomDomain::Train, 0, 0).ids);
  CHECK(base != task.prompt(2, RandomDomain::Train, 0, 0).ids);
  CHECK(base != task.prompt(1, RandomDomain::Evaluation, 0, 0).ids);
  CHECK(base != task.prompt(1, RandomDomain::Train, 1, 0).ids);
  CHECK(base != task.prompt(1, RandomDomain::Train, 0, 1).ids);
}

inline void check_cuda_batches(const Task& task) {
  for (const Selection& selection :
       {Selection{RandomDomain::Train, 64, 2, false}, Selection{RandomDomain::Evaluation, 33, 0, true}}) {
    for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{17}}) {
      for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
        CHECK(sample_tokens_of(task, selection, step, Backend::Cuda, precision) ==
              sample_tokens_of(task, selection, step, Backend::Cpu, precision));
      }
    }
  }
}

}  // namespace graft::test
