#include "tasks/vector_mqar.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "ops/point_scores.h"
#include "tasks/task.h"
#include "tests/support/device.h"
#include "tests/support/device_state.h"
#include "tests/support/parity.h"
#include "train/config.h"

namespace graft::test {
namespace {

constexpr std::uint64_t kSeed = 20240229;

std::unique_ptr<Task> make(const std::string& name, const std::string& lines, std::int64_t batch = 64) {
  const std::string text = fmt::format(
      "[task]\nname = \"{}\"\n{}\n[train]\nbatch = {}\n[model]\npreset = \"transformer\"\n", name, lines, batch);
  return make_task(parse_config(text, "vectors.toml").settings);
}

std::unique_ptr<Task> mqar(const std::string& lines = "", std::int64_t batch = 64) {
  return make("vector_mqar", lines, batch);
}

/// What one step of a device draws.
struct Sampled {
  Shape shape;  // of the tokens
  std::vector<double> tokens, targets, mask;

  friend bool operator==(const Sampled&, const Sampled&) = default;
};

Sampled sample(const Task& task, const Selection& selection, std::uint64_t step, Backend backend = Backend::Cpu,
               Precision precision = Precision::Fp32, int threads = 2) {
  TestDevice device(backend, precision, threads);
  StepState state;
  state.seed = kSeed;
  state.step = step;
  const DeviceState device_state(device, state);
  const Batch batch = task.sample(device.ctx(), selection, task.final_points());
  CHECK(batch.targets.shape() == Shape{selection.batch, task.final_points(), task.shape().output_width});
  CHECK(batch.targets.dtype() == device.ctx().stream_dtype());
  if (batch.mask) CHECK(batch.mask.shape() == Shape{selection.batch, task.final_points()});
  return {batch.tokens.shape(), device.values(batch.tokens), device.values(batch.targets),
          batch.mask ? device.values(batch.mask) : std::vector<double>()};
}

void append(Sampled& to, const Sampled& more) {
  to.tokens.insert(to.tokens.end(), more.tokens.begin(), more.tokens.end());
  to.targets.insert(to.targets.end(), more.targets.begin(), more.targets.end());
  to.mask.insert(to.mask.end(), more.mask.begin(), more.mask.end());
  to.shape = {to.shape.rank() == 0 ? more.shape[0] : to.shape[0] + more.shape[0], more.shape[1], more.shape[2]};
}

double squared_norm(const std::vector<float>& x) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

/// Index of the pair whose key is `query`, or -1.
int find_key(const Prompt& prompt, int pairs, const std::vector<float>& query) {
  for (int p = 0; p < pairs; ++p) {
    if (prompt.inputs[2 * static_cast<std::size_t>(p)] == query) return p;
  }
  return -1;
}

TEST_CASE("vector_mqar: unit vectors, distinct queries, and each target is the value of the key asked for") {
  for (const auto& [pairs, queries, dim] : {std::tuple{32, 16, 20}, {32, 4, 20}, {5, 5, 3}, {1, 1, 1}, {40, 33, 33}}) {
    CAPTURE(pairs);
    const std::unique_ptr<Task> task = mqar(fmt::format("pairs = {}\nqueries = {}\ndim = {}\n", pairs, queries, dim));
    CHECK(task->tokens_at(queries) == 2 * pairs + queries);
    for (std::uint32_t example = 0; example < 20; ++example) {
      const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, 3, example);
      REQUIRE(prompt.inputs.size() == static_cast<std::size_t>(2 * pairs + queries));
      REQUIRE(prompt.scored.size() == static_cast<std::size_t>(queries));
      for (const std::vector<float>& x : prompt.inputs) CHECK(squared_norm(x) == doctest::Approx(1).epsilon(1e-6));
      std::set<int> asked;
      for (std::size_t q = 0; q < static_cast<std::size_t>(queries); ++q) {
        CHECK(prompt.scored[q] == 2 * pairs + static_cast<int>(q));
        const int pair = find_key(prompt, pairs, prompt.inputs[static_cast<std::size_t>(prompt.scored[q])]);
        REQUIRE(pair >= 0);
        CHECK(prompt.truth[q] == static_cast<float>(pair));
        CHECK(prompt.targets[q] == prompt.inputs[static_cast<std::size_t>(2 * pair + 1)]);
        asked.insert(pair);
      }
      if (dim > 1) CHECK(asked.size() == static_cast<std::size_t>(queries));
    }
  }
}

TEST_CASE("vector_mqar: vectors are uniform on the sphere, keys and values independent, within standard errors") {
  constexpr std::size_t kPrompts = 2000;
  constexpr std::size_t kDim = 20;
  const std::unique_ptr<Task> task = mqar();
  double sum = 0, fourth = 0, neighbours = 0, key_value = 0, keys = 0;
  for (std::uint32_t example = 0; example < kPrompts; ++example) {
    const Prompt prompt = task->prompt(kSeed, RandomDomain::Evaluation, 0, example);
    for (std::size_t t = 0; t < 64; ++t) {
      const std::vector<float>& x = prompt.inputs[t];
      double inner = 0, next = 0;
      for (std::size_t j = 0; j < kDim; ++j) {
        const double value = x[j];
        sum += value;
        fourth += value * value * value * value;
        if (j > 0) neighbours += value * static_cast<double>(x[j - 1]);
        if (t % 2 == 0) inner += value * static_cast<double>(prompt.inputs[t + 1][j]);
        if (t % 2 == 0 && t < 62) next += value * static_cast<double>(prompt.inputs[t + 2][j]);
      }
      key_value += inner;
      keys += next;
    }
  }
  const double vectors = kPrompts * 64.0;
  const double d = kDim;
  // Coordinates have variance 1/d; E x^4 = 3 / (d (d + 2)); E x_i^2 x_j^2 = 1 / (d (d + 2)); an inner product of two
  // independent unit vectors has variance 1/d.
  CHECK(std::abs(sum / vectors) < 4 * std::sqrt(1.0 / vectors));
  CHECK(fourth / (vectors * d) == doctest::Approx(3 / (d * (d + 2))).epsilon(0.01));
  CHECK(std::abs(neighbours / vectors) < 4 * std::sqrt((d - 1) / (d * (d + 2)) / vectors));
  CHECK(std::abs(key_value / (vectors / 2)) < 4 * std::sqrt(1 / d / (vectors / 2)));
  CHECK(std::abs(keys / (vectors / 2)) < 4 * std::sqrt(1 / d / (vectors / 2)));
}

TEST_CASE("vector_mqar: which pairs are asked for is uniform, in random order") {
  // all 60 ordered choices of 3 out of 5: chi-squared with 59 degrees of freedom, standard deviation 10.9
  constexpr int kExamples = 12000;
  const std::unique_ptr<Task> task = mqar("pairs = 5\nqueries = 3\ndim = 4\n");
  std::map<std::vector<float>, double> seen;
  for (std::uint32_t example = 0; example < kExamples; ++example) {
    seen[task->prompt(kSeed, RandomDomain::Evaluation, 0, example).truth] += 1;
  }
  CHECK(seen.size() == 60);
  double chi_squared = 0;
  for (const auto& [choice, count] : seen) chi_squared += (count - 200) * (count - 200) / 200;
  CHECK(std::abs(chi_squared - 59) < 5 * 10.9);
}

TEST_CASE("vector_mqar: in the zoology layout queries stand in slots drawn by a power law, all else there is zero") {
  const std::unique_ptr<Task> task = mqar("layout = \"zoology\"\nqueries = 4\n");
  CHECK(task->tokens_at(32) == 128);
  CHECK(task->final_points() == 32);
  const std::vector<float> zero(20);
  for (std::uint32_t example = 0; example < 50; ++example) {
    const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, 0, example);
    REQUIRE(prompt.inputs.size() == 128);
    REQUIRE(prompt.scored.size() == 4);
    CHECK(std::set<float>(prompt.truth.begin(), prompt.truth.end()).size() == 4);
    std::size_t next = 0;
    for (int t = 64; t < 128; ++t) {
      const std::vector<float>& token = prompt.inputs[static_cast<std::size_t>(t)];
      if (next < 4 && prompt.scored[next] == t) {
        CHECK(t % 2 == 0);
        const int pair = find_key(prompt, 32, token);
        CHECK(static_cast<float>(pair) == prompt.truth[next]);
        CHECK(prompt.targets[next] == prompt.inputs[static_cast<std::size_t>(2 * pair + 1)]);
        ++next;
      } else {
        CHECK(token == zero);
      }
    }
    CHECK(next == 4);
  }
  // One query: slot s with probability s^-0.99 / sum.
  constexpr int kExamples = 20000;
  const std::unique_ptr<Task> single = mqar("layout = \"zoology\"\nqueries = 1\nslots = 8\ndim = 2\npairs = 2\n");
  std::vector<double> counts(8);
  for (std::uint32_t example = 0; example < kExamples; ++example) {
    counts[static_cast<std::size_t>(single->prompt(kSeed, RandomDomain::Evaluation, 0, example).scored[0] - 4) / 2] +=
        1;
  }
  double total = 0;
  for (int s = 1; s <= 8; ++s) total += std::pow(s, -0.99);
  for (int s = 1; s <= 8; ++s) {
    const double p = std::pow(s, -0.99) / total;
    CHECK(std::abs(counts[static_cast<std::size_t>(s - 1)] - kExamples * p) < 4.5 * std::sqrt(kExamples * p * (1 - p)));
  }
}

TEST_CASE("vector_retrieval: vectors of norm sqrt(dim); one query in pairs + 1 matches no key, unless switched off") {
  const std::unique_ptr<Task> task = make("vector_retrieval", "");
  CHECK(task->tokens_at(1) == 129);
  CHECK(task->final_points() == 1);
  int unmatched = 0;
  constexpr int kExamples = 6500;
  for (std::uint32_t example = 0; example < kExamples; ++example) {
    const Prompt prompt = task->prompt(kSeed, RandomDomain::Train, 0, example);
    if (example < 20) {
      for (const std::vector<float>& x : prompt.inputs) CHECK(squared_norm(x) == doctest::Approx(20).epsilon(1e-6));
      CHECK(squared_norm(prompt.targets[0]) == doctest::Approx(20).epsilon(1e-6));
    }
    const int pair = find_key(prompt, 64, prompt.inputs[128]);
    if (pair >= 0) {
      CHECK(prompt.targets[0] == prompt.inputs[static_cast<std::size_t>(2 * pair + 1)]);
      CHECK(prompt.truth[0] == static_cast<float>(pair));
    } else {
      ++unmatched;
      CHECK(prompt.truth[0] == 64);
      CHECK(std::find(prompt.inputs.begin(), prompt.inputs.end(), prompt.targets[0]) == prompt.inputs.end());
    }
  }
  CHECK(std::abs(unmatched - kExamples / 65.0) < 4 * std::sqrt(kExamples / 65.0));
  const std::unique_ptr<Task> matched = make("vector_retrieval", "unmatched = false\npairs = 3\n");
  for (std::uint32_t example = 0; example < 500; ++example) {
    const Prompt prompt = matched->prompt(kSeed, RandomDomain::Train, 0, example);
    CHECK(find_key(prompt, 3, prompt.inputs[6]) >= 0);
  }
}

TEST_CASE("epoch_order: every epoch reads every example once, each in another order") {
  for (const std::int64_t examples : {1, 2, 3, 4, 5, 17, 64, 65, 300, 1000, 4097}) {
    CAPTURE(examples);
    const EpochOrder order{examples, 64};
    std::vector<std::vector<std::int64_t>> orders;
    for (std::uint64_t epoch = 0; epoch < 5; ++epoch) {
      std::vector<std::int64_t> read(static_cast<std::size_t>(examples));
      for (std::int64_t i = 0; i < examples; ++i) read[static_cast<std::size_t>(i)] = order.permuted(kSeed, epoch, i);
      std::vector<std::int64_t> sorted = read;
      std::sort(sorted.begin(), sorted.end());
      for (std::int64_t i = 0; i < examples; ++i) CHECK(sorted[static_cast<std::size_t>(i)] == i);
      if (examples >= 17) CHECK(std::find(orders.begin(), orders.end(), read) == orders.end());
      orders.push_back(std::move(read));
    }
    if (examples >= 17)
      CHECK(order.permuted(kSeed + 1, 0, 0) + order.permuted(kSeed + 1, 0, 1) * examples !=
            orders[0][0] + orders[0][1] * examples);
  }
  const EpochOrder study{300000, 64};
  CHECK(study.steps() == 4688);
  CHECK(study.has_short_step());
}

TEST_CASE("epoch_order: examples that steps have read, without the missing places") {
  for (const auto& [examples, batch] : {std::pair<std::int64_t, std::int64_t>{10, 4}, {12, 4}, {3, 8}}) {
    const EpochOrder order{examples, batch};
    std::int64_t read = 0;
    for (std::int64_t step = 0; step < 20; ++step) {
      CHECK(order.examples_until(step) == read);
      for (std::int64_t place = 0; place < batch; ++place) {
        read += order.at(1, static_cast<std::uint64_t>(step), place).missing ? 0 : 1;
      }
    }
  }
}

TEST_CASE("epoch_order: where an example stands is uniform and neighbours are not kept together") {
  constexpr std::int64_t kExamples = 37;
  constexpr int kEpochs = 7400;
  const EpochOrder order{kExamples, 8};
  std::vector<double> cells(kExamples * kExamples);
  double follows = 0;
  for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    std::int64_t before = -2;
    for (std::int64_t i = 0; i < kExamples; ++i) {
      const std::int64_t example = order.permuted(kSeed, epoch, i);
      cells[static_cast<std::size_t>(i * kExamples + example)] += 1;
      follows += example == before + 1 ? 1 : 0;
      before = example;
    }
  }
  double chi_squared = 0;
  for (const double count : cells) chi_squared += (count - 200) * (count - 200) / 200;
  constexpr double kFreedom = 36.0 * 36.0;
  CHECK(std::abs(chi_squared - kFreedom) < 5 * std::sqrt(2 * kFreedom));
  // 36 neighbouring places, each an ascending pair with probability 36 / (37 * 36)
  const double expected = kEpochs * 36.0 / 37.0;
  CHECK(std::abs(follows - expected) < 5 * std::sqrt(expected));
}

TEST_CASE("vector_mqar: an epoch shows every training example once and masks the missing ones of its last step") {
  const std::unique_ptr<Task> task = mqar("samples = 21\npairs = 3\nqueries = 2\ndim = 5\n", 8);
  CHECK(task->steps_per_epoch() == 3);
  std::set<std::vector<double>> first_epoch;
  std::vector<std::vector<double>> order;
  for (std::uint64_t step = 0; step < 6; ++step) {
    const Sampled batch = sample(*task, {RandomDomain::Train, 8, 0, false}, step);
    REQUIRE(batch.mask.size() == 16);
    for (std::size_t b = 0; b < 8; ++b) {
      const bool missing = step % 3 == 2 && b >= 5;
      CHECK(batch.mask[2 * b] == (missing ? 0 : 1));
      CHECK(batch.mask[2 * b + 1] == (missing ? 0 : 1));
      const auto row = batch.tokens.begin() + static_cast<std::ptrdiff_t>(b * 8 * 8);
      std::vector<double> example(row, row + 64);
      if (missing) {
        CHECK(first_epoch.contains(example));  // an ordinary one, which does not count
        continue;
      }
      if (step < 3) CHECK(first_epoch.insert(example).second);
      if (step >= 3) CHECK(first_epoch.contains(example));
      order.push_back(std::move(example));
    }
  }
  CHECK(first_epoch.size() == 21);
  CHECK(order.size() == 42);
  CHECK(std::vector<std::vector<double>>(order.begin(), order.begin() + 21) !=
        std::vector<std::vector<double>>(order.begin() + 21, order.end()));
  CHECK(std::set<std::vector<double>>(order.begin() + 21, order.end()).size() == 21);

  CHECK(sample(*mqar("samples = 16\ndim = 3\n", 8), {RandomDomain::Train, 8, 0, false}, 0).mask.empty());
  CHECK(sample(*task, {RandomDomain::Evaluation, 8, 0, true}, 0).mask.empty());
  const std::unique_ptr<Task> fresh = mqar("samples = 0\n", 8);
  CHECK(fresh->steps_per_epoch() == 0);
  CHECK(sample(*fresh, {RandomDomain::Train, 8, 0, false}, 0).mask.empty());
  CHECK(fresh->prompt(kSeed, RandomDomain::Train, 0, 0).truth != fresh->prompt(kSeed, RandomDomain::Train, 1, 0).truth);
  // A set smaller than a step: one step an epoch.
  const std::unique_ptr<Task> tiny = mqar("samples = 3\n", 8);
  const Sampled batch = sample(*tiny, {RandomDomain::Train, 8, 0, false}, 4);
  CHECK(std::count(batch.mask.begin(), batch.mask.end(), 1.0) == 3 * 16);
}

/// A batch as prompts of the host say.
Sampled prompts_of(const Task& task, RandomDomain domain, std::uint64_t step, std::uint32_t first,
                   std::uint32_t count) {
  Sampled expected;
  const auto width = static_cast<std::size_t>(round_up(task.shape().input_width, 8));
  const auto dim = static_cast<std::size_t>(task.shape().output_width);
  const auto points = static_cast<std::size_t>(task.final_points());
  for (std::uint32_t example = first; example < first + count; ++example) {
    const Prompt prompt = task.prompt(kSeed, domain, step, example);
    for (const std::vector<float>& x : prompt.inputs) {
      expected.tokens.insert(expected.tokens.end(), x.begin(), x.end());
      expected.tokens.resize((expected.tokens.size() + width - 1) / width * width);
    }
    std::vector<double> targets(points * dim), mask(points);
    const auto context = static_cast<std::size_t>(prompt.inputs.size());
    const std::size_t stride = context == points + 64 ? 1 : 2;  // tests below have 32 pairs
    for (std::size_t q = 0; q < prompt.scored.size(); ++q) {
      const std::size_t point = (static_cast<std::size_t>(prompt.scored[q]) - 64) / stride;
      mask[point] = 1;
      std::copy(prompt.targets[q].begin(), prompt.targets[q].end(),
                targets.begin() + static_cast<std::ptrdiff_t>(point * dim));
    }
    expected.targets.insert(expected.targets.end(), targets.begin(), targets.end());
    expected.mask.insert(expected.mask.end(), mask.begin(), mask.end());
    expected.shape = {count, static_cast<std::int64_t>(context), static_cast<std::int64_t>(width)};
  }
  return expected;
}

TEST_CASE("vector_mqar: batches are the host's prompts, however they are split and on any number of threads") {
  for (const char* layout : {"queries", "zoology"}) {
    CAPTURE(layout);
    const std::unique_ptr<Task> task =
        mqar(fmt::format("layout = \"{}\"\nsamples = 1000\ndim = 5\nqueries = 7\n", layout));
    for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{7}, std::uint64_t{1} << 33U}) {
      CHECK(sample(*task, {RandomDomain::Train, 9, 4, false}, step) ==
            prompts_of(*task, RandomDomain::Train, step, 4, 9));
    }
    const Sampled whole = sample(*task, {RandomDomain::Train, 64, 0, false}, 15);  // the short step
    Sampled parts = sample(*task, {RandomDomain::Train, 51, 0, false}, 15);
    append(parts, sample(*task, {RandomDomain::Train, 13, 51, false}, 15));
    CHECK(parts == whole);
    for (const int threads : {1, 3, 8}) {
      CHECK(sample(*task, {RandomDomain::Train, 64, 0, false}, 15, Backend::Cpu, Precision::Fp32, threads) == whole);
    }
    CHECK(sample(*task, {RandomDomain::Train, 64, 0, false}, 15, Backend::Cpu, Precision::Fp64) == whole);
    Sampled set = prompts_of(*task, RandomDomain::Evaluation, 0, 0, 48);
    if (std::string(layout) == "queries") set.mask.clear();
    for (const std::int64_t batch : {1, 16, 48}) {
      Sampled drawn;
      for (std::int64_t step = 0; step < 48 / batch; ++step) {
        append(drawn, sample(*task, {RandomDomain::Evaluation, batch, 0, true}, static_cast<std::uint64_t>(step)));
      }
      CHECK(drawn == set);
    }
  }
}

TEST_CASE("vector_mqar: a model that says nothing has loss and scores 1; retrieval's are per coordinate") {
  for (const auto& [task, points] : {std::pair{mqar("samples = 100\n"), 16},
                                     {mqar("layout = \"zoology\"\n"), 32},
                                     {make("vector_retrieval", ""), 1}}) {
    TestDevice device;
    StepState state;
    state.step = 1;  // the short step of the first one
    const DeviceState device_state(device, state);
    const Batch batch = task->sample(device.ctx(), {RandomDomain::Train, 64, 0, false}, points);
    const Shape shape{64, task->tokens_at(points), 24};
    const Tensor zeros =
        device.tensor(shape, DType::F32, std::vector<double>(static_cast<std::size_t>(shape.elements())));
    CHECK(device.values(task->loss(device.ctx(), zeros, batch))[0] == doctest::Approx(1).epsilon(1e-6));
    const std::vector<double> mask = batch.mask ? device.values(batch.mask) : std::vector<double>();
    const std::vector<double> scores = device.values(task->scores(device.ctx(), zeros, batch));
    REQUIRE(scores.size() == static_cast<std::size_t>(64 * points));
    for (std::size_t i = 0; i < scores.size(); ++i) {
      CHECK(scores[i] == doctest::Approx(mask.empty() || mask[i] == 1 ? 1 : kNotScored).epsilon(1e-6));
    }
  }
}

TEST_CASE("vector_mqar: what the trainer asks for, and what is refused") {
  const std::unique_ptr<Task> task = mqar("queries = 4\n");
  CHECK(task->shape().input_width == 20);
  CHECK(task->shape().output_width == 20);
  CHECK(task->shape().max_tokens == 68);
  CHECK(task->steps_per_epoch() == 4688);
  CHECK(task->baselines().empty());
  CHECK(task->description() ==
        "vector MQAR: 4 of 32 keys asked for, keys and values uniform on the unit sphere in R^20, 300000 training "
        "examples");
  const auto text = [](const std::string& lines) {
    return "[task]\nname = \"vector_mqar\"\n" + lines + "[model]\npreset = \"transformer\"\n";
  };
  const RunConfig config = parse_config(text(""), "vectors.toml");
  CHECK(config.eval.prompts == 3000);
  CHECK(config.eval.batch == 100);
  const auto refused = [&](const std::string& lines, const char* message) {
    CHECK_THROWS_WITH_AS(static_cast<void>(parse_config(text(lines), "vectors.toml")), doctest::Contains(message),
                         ConfigError);
  };
  refused("pairs = 8\n", "task.queries: got 16, expected at most task.pairs = 8: no pair is asked for twice");
  refused("layout = \"zoology\"\nslots = 8\n", "task.queries: got 16, expected at most task.slots = 8");
  refused("slots = 20\n", "task.slots: has no effect with task.layout = \"queries\"");
  refused("layout = \"single\"\n", "task.layout");
  refused("layout = \"single\"\nslots = 20\n", ": 1 mistake;");
  refused("slots = 32\n", "leave it out, or use \"zoology\"");
  CHECK_FALSE(config.settings.has("task.slots"));
  const RunConfig slots = parse_config(text("layout = \"zoology\"\n"), "vectors.toml");
  CHECK(slots.settings.integer("task.slots") == 32);
  // an override may take away what the file's key needs
  CHECK_FALSE(parse_config(text("layout = \"zoology\"\nslots = 20\n"), "vectors.toml", {"task.layout=queries"})
                  .settings.has("task.slots"));
  CHECK_THROWS_AS(static_cast<void>(parse_config(text("layout = \"zoology\"\n"), "vectors.toml",
                                                 {"task.layout=queries", "task.slots=20"})),
                  ConfigError);
  refused("dim = 0\n", "task.dim");
  refused("samples = -1\n", "task.samples");
  CHECK_THROWS_WITH_AS(static_cast<void>(sample(*mqar("", 8), {RandomDomain::Train, 8, 1, false}, 0)),
                       doctest::Contains("examples 1 to 8 of a step, expected at most the 8 of train.batch"),
                       ArgumentError);
}

TEST_CASE("vector_mqar: CUDA matches CPU") {
  if (skip_cuda()) return;
  // Choices are integers or far apart. logf, sinf and cosf of the two libraries differ by up to 2 units in the last
  // place, which makes 2e-6 of a normal; after normalisation a coordinate of a unit vector is off by no more than that.
  const auto compare = [](const Task& task, double norm) {
    for (const Selection& selection :
         {Selection{RandomDomain::Train, 40, 24, false}, Selection{RandomDomain::Evaluation, 5, 0, true}}) {
      for (const std::uint64_t step : {std::uint64_t{0}, std::uint64_t{15}, std::uint64_t{1} << 33U}) {
        for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
          const Sampled cpu = sample(task, selection, step, Backend::Cpu, precision);
          const Sampled gpu = sample(task, selection, step, Backend::Cuda, precision);
          CHECK(gpu.shape == cpu.shape);
          CHECK(gpu.mask == cpu.mask);
          // values on either side of a tie round to neighbours, which are up to 2^-7 of them apart
          const double rounding = precision == Precision::Bf16 ? 0x1p-7 : 0;
          int wrong = 0;
          for (std::size_t i = 0; i < cpu.tokens.size(); ++i) {
            const double allowed = cpu.tokens[i] == 0 ? 0 : 4e-6 * norm + rounding * std::abs(cpu.tokens[i]);
            wrong += std::abs(gpu.tokens[i] - cpu.tokens[i]) <= allowed ? 0 : 1;
          }
          for (std::size_t i = 0; i < cpu.targets.size(); ++i) {
            wrong += std::abs(gpu.targets[i] - cpu.targets[i]) <= 4e-6 * norm ? 0 : 1;
          }
          CHECK(wrong == 0);
        }
      }
    }
  };
  compare(*mqar("samples = 1000\n"), 1);
  compare(*mqar("samples = 1000\nlayout = \"zoology\"\n"), 1);
  compare(*mqar("samples = 0\ndim = 3\npairs = 300\nqueries = 257\n"), 2);  // short vectors lose more to the division
  compare(*mqar("samples = 37\ndim = 33\npairs = 1\nqueries = 1\n"), 1);
  compare(*make("vector_retrieval", ""), std::sqrt(20.0));
}

}  // namespace
}  // namespace graft::test
