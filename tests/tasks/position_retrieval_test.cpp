#include "tasks/position_retrieval.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/parity.h"
#include "tests/tasks/token_batch.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::string& lines = "") { return make_token_task("position_retrieval", lines); }

using Ids = std::vector<std::int32_t>;

/// Takes a prompt apart and checks every token of it. Returns the string.
Ids check_structure(const Prompt& prompt, bool prefix, std::int32_t length) {
  REQUIRE(prompt.ids.size() == static_cast<std::size_t>(length) + 5);
  const auto start = static_cast<std::int32_t>(prompt.truth.at(0));
  REQUIRE((start >= 0 && start < length));
  CHECK(prompt.truth.at(1) == static_cast<float>(length));
  const auto string_at = prompt.ids.begin() + (prefix ? 3 : 1);
  const Ids string(string_at, string_at + length);
  const std::int32_t query = string[static_cast<std::size_t>(start)];
  Ids expected;
  const auto add = [&](const Ids& more) { expected.insert(expected.end(), more.begin(), more.end()); };
  if (prefix) add({2, query});
  add({1});
  add(string);
  if (!prefix) add({2, query});
  add({3 + length + start, 1});
  CHECK(prompt.ids == expected);
  CHECK(prompt.scored == Ids{length + 2, length + 3});
  Ids sorted = string;
  std::sort(sorted.begin(), sorted.end());
  for (std::int32_t s = 0; s < length; ++s) CHECK(sorted[static_cast<std::size_t>(s)] == 3 + s);
  return string;
}

TEST_CASE("position_retrieval: both layouts have the study's tokens, and the string is a permutation") {
  for (const bool prefix : {false, true}) {
    const std::unique_ptr<Task> task = make(prefix ? "layout = \"prefix\"" : "");
    for (std::uint32_t example = 0; example < 200; ++example) {
      check_structure(task->prompt(kSeed, RandomDomain::Train, 3, example), prefix, 200);
    }
    for (const std::int32_t length : {1, 2, 7, 33}) {
      const std::unique_ptr<Task> other =
          make("length = " + std::to_string(length) + (prefix ? "\nlayout = \"prefix\"" : ""));
      for (std::uint32_t example = 0; example < 50; ++example) {
        check_structure(other->prompt(kSeed, RandomDomain::Evaluation, 0, example), prefix, length);
      }
    }
  }
}

TEST_CASE("position_retrieval: permutations and positions are uniform, within standard errors") {
  // all 120 permutations of 5 symbols: chi-squared with 119 degrees of freedom has mean 119, standard deviation 15.4
  constexpr int kExamples = 24000;
  const std::unique_ptr<Task> task = make("length = 5");
  std::map<Ids, double> seen;
  std::vector<double> starts(5);
  std::vector<double> queries(5);
  for (std::uint32_t example = 0; example < kExamples; ++example) {
    const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, 3, example);
    const Ids string(prompt.ids.begin() + 1, prompt.ids.begin() + 6);
    seen[string] += 1;
    starts[static_cast<std::size_t>(prompt.truth[0])] += 1;
    queries[static_cast<std::size_t>(prompt.ids[7] - 3)] += 1;
  }
  CHECK(seen.size() == 120);
  double chi_squared = 0;
  for (const auto& [string, count] : seen) chi_squared += (count - 200) * (count - 200) / 200;
  CHECK(chi_squared < 119 + 5 * 15.4);
  CHECK(chi_squared > 119 - 5 * 15.4);
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(std::abs(starts[i] - kExamples / 5.0) < 5 * std::sqrt(kExamples / 5.0));
    CHECK(std::abs(queries[i] - kExamples / 5.0) < 5 * std::sqrt(kExamples / 5.0));
  }
}

TEST_CASE("position_retrieval: at the study's length every symbol stands everywhere") {
  // symbol by place over 2000 permutations: 10 expected in each of 40000 cells, chi-squared with 199^2 degrees of
  // freedom
  constexpr int kExamples = 2000;
  const std::unique_ptr<Task> task = make();
  std::vector<double> cells(std::size_t{200} * 200), starts(200);
  for (std::uint32_t example = 0; example < kExamples; ++example) {
    const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, 8, example);
    for (std::size_t i = 0; i < 200; ++i) cells[i * 200 + static_cast<std::size_t>(prompt.ids[i + 1] - 3)] += 1;
    starts[static_cast<std::size_t>(prompt.truth[0])] += 1;
  }
  double chi_squared = 0;
  for (const double count : cells) chi_squared += (count - 10) * (count - 10) / 10;
  constexpr double kFreedom = 199.0 * 199.0;
  CHECK(std::abs(chi_squared - kFreedom) < 5 * std::sqrt(2 * kFreedom));
  double start_chi_squared = 0;
  for (const double count : starts) start_chi_squared += (count - 10) * (count - 10) / 10;
  CHECK(std::abs(start_chi_squared - 199) < 5 * std::sqrt(2 * 199.0));
}

TEST_CASE("position_retrieval: batches are the host's prompts") {
  check_token_batches(*make(), 205, 205);
  check_token_batches(*make("length = 33\nlayout = \"prefix\""), 38, 38);
}

TEST_CASE("position_retrieval: CUDA matches CPU bit for bit") {
  if (skip_cuda()) return;
  check_cuda_batches(*make());
  check_cuda_batches(*make("layout = \"prefix\""));
  for (const int length : {1, 2, 33, 257, 4096}) check_cuda_batches(*make("length = " + std::to_string(length)));
}

TEST_CASE("position_retrieval: what the trainer asks for") {
  const std::unique_ptr<Task> task = make();
  CHECK(task->shape().vocabulary == 403);
  CHECK(task->shape().max_tokens == 205);
  CHECK(task->points_at(0) == 2);
  CHECK(task->final_points() == 2);
  CHECK(task->tokens_at(2) == 205);
  CHECK(task->baselines().empty());
  CHECK(task->token_name(2) == "<query>");
  CHECK(task->token_name(202) == "<s199>");
  CHECK(task->token_name(203) == "<p0>");
  CHECK(task->token_name(402) == "<p199>");
  CHECK(task->description() ==
        "position retrieval: where in a permutation of 200 symbols is one of them, query as a suffix");
  CHECK_THROWS_WITH_AS(static_cast<void>(make("length = 5000")), doctest::Contains("task.length"), ConfigError);
  CHECK_THROWS_WITH_AS(static_cast<void>(make("alphabet = 30")), doctest::Contains("alphabet"), ConfigError);
}

TEST_CASE("position_retrieval: a model that guesses among the positions has the loss of the plateau") {
  // Uniform over the 200 positions for the answer, certain of the end token: ln(200) / 2, the study's plateau.
  const std::unique_ptr<Task> task = make();
  TestDevice device;
  const DeviceState device_state(device);
  Batch batch = task->sample(device.ctx(), {RandomDomain::Train, 3, 0, false}, 2);
  std::vector<double> logits(std::size_t{6} * 403, -1000.0);
  for (std::size_t i = 0; i < 6; ++i) {
    for (std::size_t id = 203; id < 403 && i % 2 == 0; ++id) logits[i * 403 + id] = 0;
    if (i % 2 == 1) logits[i * 403 + 1] = 0;
  }
  const Tensor outputs = device.tensor({3, 2, 403}, DType::F32, logits);
  CHECK(device.values(task->loss(device.ctx(), outputs, batch))[0] == doctest::Approx(std::log(200.0) / 2));
  // ties go to the lowest id
  const std::vector<double> labels = device.values(batch.labels);
  const std::vector<double> scores = device.values(task->scores(device.ctx(), outputs, batch));
  for (std::size_t i = 0; i < 6; ++i) CHECK(scores[i] == (i % 2 == 1 || labels[i] == 203 ? 1 : 0));
}

}  // namespace
}  // namespace graft::test
