#include "tasks/ngram_retrieval.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/parity.h"
#include "tests/tasks/token_batch.h"

namespace graft::test {
namespace {

std::unique_ptr<Task> make(const std::string& lines = "") { return make_token_task("ngram_retrieval", lines); }

using Ids = std::vector<std::int32_t>;

Ids slice(const Ids& ids, std::size_t first, std::size_t count) {
  return {ids.begin() + static_cast<std::ptrdiff_t>(first), ids.begin() + static_cast<std::ptrdiff_t>(first + count)};
}

std::size_t occurrences(const Ids& string, const Ids& query) {
  std::size_t count = 0;
  for (std::size_t i = 0; i + query.size() <= string.size(); ++i)
    count += slice(string, i, query.size()) == query ? 1 : 0;
  return count;
}

/// Takes a prompt apart and checks every token of it. Returns the string.
Ids check_structure(const Prompt& prompt, bool prefix, std::size_t n, std::size_t k, std::int32_t alphabet) {
  const auto start = static_cast<std::size_t>(prompt.truth.at(0));
  const auto length = static_cast<std::size_t>(prompt.truth.at(1));
  REQUIRE(prompt.ids.size() == length + n + k + 4);
  const std::size_t string_at = prefix ? n + 2 : 1;
  const Ids string = slice(prompt.ids, string_at, length);
  const Ids query = slice(string, start, n);
  const Ids answer = slice(string, start + n, k);
  Ids expected;
  const auto add = [&](const Ids& more) { expected.insert(expected.end(), more.begin(), more.end()); };
  if (prefix) {
    add({2});
    add(query);
  }
  add({1});
  add(string);
  add({1, 2});
  if (!prefix) {
    add(query);
    add({2});
  }
  add(answer);
  CHECK(prompt.ids == expected);
  CHECK(occurrences(string, query) == 1);
  for (const std::int32_t id : string) CHECK((id >= 3 && id < 3 + alphabet));
  REQUIRE(prompt.scored.size() == k);
  for (std::size_t i = 0; i < k; ++i) {
    CHECK(prompt.scored[i] == static_cast<std::int32_t>(prompt.ids.size() - k - 1 + i));
  }
  CHECK(prompt.ids[static_cast<std::size_t>(prompt.scored[0])] == 2);  // the answer starts after a <query>
  return string;
}

TEST_CASE("ngram_retrieval: both layouts have the study's tokens, and the query occurs once") {
  for (const bool prefix : {false, true}) {
    const std::unique_ptr<Task> task = make(prefix ? "layout = \"prefix\"" : "");
    for (std::uint32_t example = 0; example < 2000; ++example) {
      const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, 3, example);
      const Ids string = check_structure(prompt, prefix, 2, 3, 30);
      CHECK((string.size() >= 50 && string.size() <= 100));
    }
    const Prompt longest = task->prompt(kSeed, RandomDomain::Evaluation, 0, 0);
    CHECK(longest.ids.size() == 109);
    CHECK(longest.scored == Ids{105, 106, 107});
  }
}

TEST_CASE("ngram_retrieval: other queries, targets and alphabets") {
  for (const bool prefix : {false, true}) {
    const std::string layout = prefix ? "layout = \"prefix\"\n" : "";
    const std::unique_ptr<Task> short_one =
        make(layout + "query = 1\ntarget = 1\nlength_min = 2\nlength_max = 5\neval_length = 2\nalphabet = 3");
    const std::unique_ptr<Task> long_one =
        make(layout + "query = 5\ntarget = 7\nlength_min = 12\nlength_max = 33\nalphabet = 4");
    for (std::uint32_t example = 0; example < 300; ++example) {
      check_structure(short_one->prompt(kSeed, RandomDomain::Train, 0, example), prefix, 1, 1, 3);
      check_structure(long_one->prompt(kSeed, RandomDomain::Train, 0, example), prefix, 5, 7, 4);
    }
    CHECK(short_one->shape().max_tokens == 11);
    CHECK(short_one->shape().vocabulary == 6);
    CHECK(long_one->shape().max_tokens == 116);  // of the evaluation
    CHECK(long_one->final_points() == 7);
  }
}

TEST_CASE("ngram_retrieval: the same string stands in both layouts") {
  const Prompt suffix = make()->prompt(kSeed, RandomDomain::Train, 0, 7);
  const Prompt prefix = make("layout = \"prefix\"")->prompt(kSeed, RandomDomain::Train, 0, 7);
  CHECK(suffix.truth == prefix.truth);
  CHECK(check_structure(suffix, false, 2, 3, 30) == check_structure(prefix, true, 2, 3, 30));
}

TEST_CASE("ngram_retrieval: lengths, starts and symbols have the study's distribution, within standard errors") {
  constexpr int kExamples = 400000;
  const NgramRetrieval law;
  std::vector<std::int32_t> scratch(static_cast<std::size_t>(law.scratch(RandomDomain::Train)));
  std::vector<std::int32_t> ids(109), positions(3), labels(3);
  std::vector<double> counts(30), answers(30), lengths(101);
  double length_sum = 0, start_sum = 0, symbols = 0;
  int first_starts = 0, last_starts = 0;
  for (std::uint32_t example = 0; example < kExamples; ++example) {
    const TokenExample drawn = law.draw(Threads{}, Draw{kSeed, RandomDomain::Train, 1, example}, scratch.data(),
                                        {ids.data(), 109, positions.data(), labels.data()});
    REQUIRE(drawn.found);
    REQUIRE((drawn.length >= 50 && drawn.length <= 100));
    REQUIRE((drawn.start >= 0 && drawn.start <= drawn.length - 5));
    length_sum += drawn.length;
    lengths[static_cast<std::size_t>(drawn.length)] += 1;
    start_sum += (drawn.start + 0.5) / (drawn.length - 4);
    first_starts += drawn.start == 0 ? 1 : 0;
    last_starts += drawn.start == drawn.length - 5 ? 1 : 0;
    for (int i = 0; i < drawn.length; ++i)
      counts[static_cast<std::size_t>(ids[static_cast<std::size_t>(i) + 1] - 3)] += 1;
    symbols += drawn.length;
    answers[static_cast<std::size_t>(labels[2] - 3)] += 1;
  }
  // A length is accepted with probability (1 - 1/900)^(L - 2), which makes the mean of 50..100 74.76 instead of 75; the
  // standard deviation of a length is 14.7, the standard error here 0.023.
  CHECK(std::abs(length_sum / kExamples - 74.76) < 4 * 14.7 / std::sqrt(kExamples));
  for (std::size_t length = 50; length <= 100; ++length) CHECK(lengths[length] > 0);
  // The start, as a fraction of its range, is uniform: variance 1/12.
  CHECK(std::abs(start_sum / kExamples - 0.5) < 4 / std::sqrt(12.0 * kExamples));
  // Both ends of the range come up: once in 46..96, 1.479 % on average.
  const double end = 0.01479 * kExamples;
  CHECK(std::abs(first_starts - end) < 5 * std::sqrt(end));
  CHECK(std::abs(last_starts - end) < 5 * std::sqrt(end));
  // Symbols are exchangeable: rejection does not favour one.
  for (std::size_t s = 0; s < 30; ++s) {
    CHECK(std::abs(counts[s] - symbols / 30) < 5 * std::sqrt(symbols / 30));
    CHECK(std::abs(answers[s] - kExamples / 30.0) < 5 * std::sqrt(kExamples / 30.0));
  }
}

TEST_CASE("ngram_retrieval: neighbouring symbols are independent") {
  // All pairs of symbols of 200 strings of 4000 symbols over 4, where rejecting a repeated 16-gram changes nothing.
  const NgramRetrieval law{4000, 4000, 4000, 4, 16, 3, false};
  std::vector<std::int32_t> scratch(4000), ids(4023), positions(3), labels(3);
  std::vector<double> pairs(16);
  for (std::uint32_t example = 0; example < 200; ++example) {
    const TokenExample drawn = law.draw(Threads{}, Draw{kSeed, RandomDomain::Train, 1, example}, scratch.data(),
                                        {ids.data(), 4023, positions.data(), labels.data()});
    REQUIRE(drawn.found);
    for (std::size_t i = 1; i < 4000; ++i) pairs[static_cast<std::size_t>((ids[i] - 3) * 4 + ids[i + 1] - 3)] += 1;
  }
  const double expected = 200 * 3999 / 16.0;
  for (const double count : pairs) CHECK(std::abs(count - expected) < 5 * std::sqrt(expected));
}

TEST_CASE("ngram_retrieval: batches are the host's prompts, padded to one shape") {
  check_token_batches(*make(), 109, 109);
  check_token_batches(*make("layout = \"prefix\"\neval_length = 125"), 109, 134);
  check_token_batches(*make("alphabet = 8\nquery = 3\ntarget = 1\nlength_min = 5\nlength_max = 18\neval_length = 7"),
                      26, 15);
}

TEST_CASE("ngram_retrieval: CUDA matches CPU bit for bit") {
  if (skip_cuda()) return;
  check_cuda_batches(*make());
  check_cuda_batches(*make("layout = \"prefix\"\neval_length = 400"));
  check_cuda_batches(*make("alphabet = 4\nlength_min = 9\nlength_max = 50\neval_length = 33"));  // many attempts
  check_cuda_batches(*make("query = 6\nlength_max = 3000\neval_length = 2049"));
}

TEST_CASE("ngram_retrieval: an example that is never accepted has no label") {
  const NgramRetrieval law{8, 8, 8, 1, 2, 3, false};  // one symbol: every bigram is the query
  std::vector<std::int32_t> scratch(8), ids(17), positions(3), labels(3);
  const TokenExample drawn = law.draw(Threads{}, Draw{kSeed, RandomDomain::Train, 1, 0}, scratch.data(),
                                      {ids.data(), 17, positions.data(), labels.data()});
  CHECK_FALSE(drawn.found);
  CHECK(labels == std::vector<std::int32_t>(3, kImpossibleLabel));
}

TEST_CASE("ngram_retrieval: accuracy is that of the largest of the columns that count") {
  const std::unique_ptr<Task> task = make();
  TestDevice device;
  StepState state;
  state.seed = kSeed;
  const DeviceState device_state(device, state);
  Batch batch = task->sample(device.ctx(), {RandomDomain::Evaluation, 5, 0, true}, 3);
  const std::vector<double> labels = device.values(batch.labels);
  std::vector<double> logits(std::size_t{15} * 40);
  for (std::size_t i = 0; i < 15; ++i) {
    const auto wrong = static_cast<std::size_t>(i % 3 == 1 ? 1 : 0);  // the second prediction names another id
    logits[i * 40 + static_cast<std::size_t>(labels[i]) - wrong] = 50;
    logits[i * 40 + 39] = 60;  // a padded row of the vocabulary
  }
  const Tensor outputs = device.tensor({5, 3, 40}, DType::F32, logits);
  batch.output_columns = 33;
  const Tensor scores = task->scores(device.ctx(), outputs, batch);
  CHECK(scores.shape() == Shape{5, 3});
  const std::vector<double> right = device.values(scores);
  for (std::size_t i = 0; i < 15; ++i) CHECK(right[i] == (i % 3 == 1 ? 0 : 1));
  CHECK(task->score_name() == "accuracy");
  // the wrong third costs 50 nats each
  CHECK(device.values(task->loss(device.ctx(), outputs, batch))[0] == doctest::Approx(50.0 / 3));
  batch.output_columns = 0;  // padded rows count: they win
  for (const double score : device.values(task->scores(device.ctx(), outputs, batch))) CHECK(score == 0);
}

TEST_CASE("ngram_retrieval: what the trainer asks for") {
  const std::unique_ptr<Task> task = make("eval_length = 400");
  CHECK(task->shape().vocabulary == 33);
  CHECK(task->shape().max_tokens == 409);
  CHECK(task->shape().input_width == 0);
  CHECK(task->points_at(0) == 3);
  CHECK(task->points_at(1000000) == 3);
  CHECK(task->final_points() == 3);
  CHECK(task->tokens_at(3) == 109);  // of training
  CHECK(task->baselines().empty());
  CHECK(task->token_name(0) == "<pad>");
  CHECK(task->token_name(1) == "<bos>");
  CHECK(task->token_name(2) == "<query>");
  CHECK(task->token_name(32) == "<s29>");
  CHECK(task->description() ==
        "n-gram retrieval: the 3 symbols after a 2-gram that occurs once, strings of 50..100 symbols (evaluation: 400) "
        "over an alphabet of 30, query as a suffix");
  TestDevice device;
  const DeviceState state(device);
  CHECK_THROWS_WITH_AS(static_cast<void>(task->sample(device.ctx(), {RandomDomain::Train, 4, 0, false}, 4)),
                       doctest::Contains("4 points, expected 3"), ArgumentError);
}

TEST_CASE("ngram_retrieval: settings that make no sense are refused") {
  const auto refuses = [](const std::string& lines, const char* message) {
    CHECK_THROWS_WITH_AS(static_cast<void>(make(lines)), doctest::Contains(message), ConfigError);
  };
  refuses("length_min = 101", "task.length_max = 100");
  refuses("length_min = 4", "at least 5: a string has room for the query of 2 and the target of 3");
  refuses("eval_length = 4", "at least 5");
  refuses("query = 40\ntarget = 20", "at least 60");
  refuses("alphabet = 1", "task.alphabet");
  refuses("alphabet = 4", "a 2-gram occurs once with a probability of 0.0018, expected at least 0.02");
  refuses("eval_length = 4096", "in a string of 4096 symbols");
  refuses("layout = \"middle\"", "task.layout");
  refuses("points = 4", "points");
  CHECK_NOTHROW(static_cast<void>(make("alphabet = 4\nlength_max = 50\neval_length = 60")));
}

}  // namespace
}  // namespace graft::test
