#include "train/evaluation.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/parity.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"

namespace graft::test {
namespace {

EvaluationResult evaluate(const RunConfig& config, Backend backend = Backend::Cpu, int runs = 1,
                          const std::filesystem::path& cache = {}) {
  TinySession tiny(config, backend);
  tiny.session.initialize();
  Evaluator evaluator(tiny.session, cache);
  EvaluationResult result = evaluator.run(7);
  for (int run = 1; run < runs; ++run) {
    const EvaluationResult again = evaluator.run(7);
    CHECK(again.positions.mean == result.positions.mean);  // the first run was eager in part, this one is captured
    CHECK(again.positions.lower == result.positions.lower);
    CHECK(again.baselines == result.baselines);
  }
  return result;
}

void check_same(const EvaluationResult& a, const EvaluationResult& b) {
  CHECK(a.positions.mean == b.positions.mean);
  CHECK(a.positions.standard_deviation == b.positions.standard_deviation);
  CHECK(a.positions.lower == b.positions.lower);
  CHECK(a.positions.upper == b.positions.upper);
}

TEST_CASE("evaluation: the line of eval.jsonl has the fields that scripts read") {
  const nlohmann::json line = nlohmann::json::parse(evaluate(tiny_config()).json().dump());
  CHECK(line.at("step") == 7);
  CHECK(line.at("suite") == "standard");
  CHECK(line.at("prompts") == 24);
  const std::vector<double> positions = line.at("positions").get<std::vector<double>>();
  REQUIRE(positions.size() == 5);
  double sum = 0;
  for (const double value : positions) sum += value;
  CHECK(line.at("summary").at("mean_all").get<double>() == doctest::Approx(sum / 5).epsilon(1e-12));
  CHECK(line.at("summary").at("mean_from_second").get<double>() ==
        doctest::Approx((sum - positions[0]) / 4).epsilon(1e-12));
  CHECK(line.at("summary").at("last") == positions.back());
  for (const char* name : {"zero", "least_squares", "knn3", "averaging"}) {
    CAPTURE(name);
    CHECK(line.at("baselines").at(name).size() == 5);
  }
  CHECK(line.at("baselines").size() == 4);
  for (const char* name : {"lower", "upper", "standard_deviation"}) CHECK(line.at(name).size() == 5);
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(line.at("lower")[i].get<double>() <= positions[i]);
    CHECK(line.at("upper")[i].get<double>() >= positions[i]);
  }
  CHECK(line.at("seconds").get<double>() > 0);
}

TEST_CASE("evaluation: eager and captured give the same bits, whatever the batch and the threads") {
  for (const char* precision : {"fp32", "bf16", "fp64"}) {
    CAPTURE(precision);
    const std::string mode = fmt::format("train.precision={}", precision);
    const EvaluationResult captured = evaluate(tiny_config({mode}), Backend::Cpu, 3);
    check_same(captured, evaluate(tiny_config({mode, "train.capture=false"}), Backend::Cpu, 2));
    check_same(captured, evaluate(tiny_config({mode, "eval.batch=24"})));
  }
  // Other shapes of a matrix product may round differently, so only the prompts have to be the same.
  const EvaluationResult small = evaluate(tiny_config({"eval.batch=1", "train.precision=fp64"}));
  const EvaluationResult large = evaluate(tiny_config({"eval.batch=12", "train.precision=fp64"}));
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(small.positions.mean[i] == doctest::Approx(large.positions.mean[i]).epsilon(1e-12));
  }
}

TEST_CASE("evaluation: CUDA: eager and captured give the same bits, near those of the CPU") {
  if (skip_cuda()) return;
  for (const auto& [precision, tolerance] : {std::pair{"fp32", 1e-5}, {"tf32", 1e-2}, {"bf16", 5e-2}}) {
    CAPTURE(precision);
    const std::string mode = fmt::format("train.precision={}", precision);
    const EvaluationResult captured = evaluate(tiny_config({mode}), Backend::Cuda, 3);
    check_same(captured, evaluate(tiny_config({mode, "train.capture=false"}), Backend::Cuda, 2));
    const EvaluationResult cpu = evaluate(tiny_config());
    CHECK(captured.baselines == cpu.baselines);
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(captured.positions.mean[i] == doctest::Approx(cpu.positions.mean[i]).epsilon(tolerance));
    }
  }
}

TEST_CASE("evaluation: prompts have all dimensions and full length even at the start of a curriculum") {
  const EvaluationResult result =
      evaluate(tiny_config({"eval.prompts=2000", "eval.batch=100", "task.curriculum.dims_start=1"}));
  const std::vector<double>& zero = result.baselines.at("zero");
  REQUIRE(zero.size() == 5);
  // y^2 has mean 3 and, over prompts, variance 3 * (3 + 2) * 3 - 9 = 36.
  for (const double value : zero) CHECK(std::abs(value - 3) < 4 * 6 / std::sqrt(2000.0));
  const std::vector<double>& least_squares = result.baselines.at("least_squares");
  for (std::size_t i = 0; i < 3; ++i) {  // 3 - i directions of w are still unknown
    const double unknown = 3 - static_cast<double>(i);
    CHECK(least_squares[i] == doctest::Approx(unknown).epsilon(0.25));
  }
  CHECK(least_squares[3] < 1e-6);
  CHECK(least_squares[4] < 1e-6);
}

TEST_CASE("evaluation: the zero predictor of the study's linear regression scores 20") {
  const EvaluationResult result =
      evaluate(tiny_config({"task.dim=20", "task.points=41", "task.curriculum.points_start=2", "model.layers=1",
                            "model.width=8", "eval.prompts=512", "eval.batch=64", "eval.baselines=[\"zero\"]"}));
  const std::vector<double>& zero = result.baselines.at("zero");
  CHECK(result.baselines.size() == 1);
  REQUIRE(zero.size() == 41);
  double mean = 0;
  for (const double value : zero) mean += value / 41;
  // A prompt's mean has variance 2 d + 2 (d^2 + 2 d) / 41.
  CHECK(std::abs(mean - 20) < 4 * std::sqrt((40 + 880 / 41.0) / 512));
}

TEST_CASE("evaluation: baselines come from the cache the second time, and from nowhere else when it does not fit") {
  const TemporaryDirectory directory;
  const std::filesystem::path cache = directory / "baselines.json";
  const EvaluationResult first = evaluate(tiny_config(), Backend::Cpu, 1, cache);
  REQUIRE(std::filesystem::exists(cache));
  CHECK(evaluate(tiny_config(), Backend::Cpu, 1, cache).baselines == first.baselines);

  nlohmann::json saved = nlohmann::json::parse(contents(cache));
  saved["positions"]["zero"][0] = 12345.0;
  write_contents(cache, saved.dump());
  CHECK(evaluate(tiny_config(), Backend::Cpu, 1, cache).baselines.at("zero")[0] == 12345.0);

  const EvaluationResult other = evaluate(tiny_config({"run.seed=6"}), Backend::Cpu, 1, cache);
  CHECK(other.baselines.at("zero")[0] != 12345.0);
  CHECK(other.baselines.at("zero") != first.baselines.at("zero"));
  CHECK(evaluate(tiny_config(), Backend::Cpu, 1, cache).baselines == first.baselines);

  write_contents(cache, "{ damaged");
  CHECK(evaluate(tiny_config(), Backend::Cpu, 1, cache).baselines == first.baselines);
  for (const nlohmann::json& wrong : {nlohmann::json{1.0}, nlohmann::json::array(), nlohmann::json(6, 1.0)}) {
    saved = nlohmann::json::parse(contents(cache));
    saved.at("positions").at("zero") = wrong;  // another number of positions
    write_contents(cache, saved.dump());
    CHECK(evaluate(tiny_config(), Backend::Cpu, 1, cache).baselines == first.baselines);
  }
}

TEST_CASE("evaluation: baselines may be chosen, or none") {
  CHECK(evaluate(tiny_config({"eval.baselines=[]"})).baselines.empty());
  const EvaluationResult some = evaluate(tiny_config({"eval.baselines=[\"knn3\", \"zero\"]"}));
  CHECK(some.baselines.size() == 2);
  CHECK(some.baselines.contains("knn3"));
}

TEST_CASE("evaluation: expensive baselines answer some prompts at some positions") {
  const std::vector<std::string> few = {"eval.baselines=[\"tree_full\", \"zero\"]", "eval.baseline_prompts=8",
                                        "eval.baseline_positions=2"};
  const TemporaryDirectory directory;
  const std::filesystem::path cache = directory / "baselines.json";
  const EvaluationResult result = evaluate(tiny_config(few), Backend::Cpu, 1, cache);
  const std::vector<double>& tree = result.baselines.at("tree_full");
  REQUIRE(tree.size() == 5);
  const Experiment experiment(tiny_config(few));
  double squares = 0, one_point = 0;  // of a prompt's first label; of a tree grown to one point, which answers with it
  for (std::uint32_t i = 0; i < 8; ++i) {
    const Prompt prompt = experiment.task->prompt(5, RandomDomain::Evaluation, 0, i);
    squares += std::pow(double{prompt.ys[0]}, 2) / 8;
    one_point += std::pow(double{prompt.ys[1]} - double{prompt.ys[0]}, 2) / 8;
  }
  CHECK(tree[0] == doctest::Approx(squares));
  for (const std::size_t i : {2, 4}) CHECK(std::isfinite(tree[i]));
  for (const std::size_t i : {1, 3}) CHECK(std::isnan(tree[i]));
  for (const double value : result.baselines.at("zero")) CHECK(std::isfinite(value));

  const nlohmann::json line = nlohmann::json::parse(result.json().dump());
  CHECK(line.at("baselines").at("tree_full")[1] == "nan");
  const std::string table = summary_table(result, "transformer", "squared error");
  CHECK(table.find(fmt::format("~{:.4g}", (tree[2] + tree[4]) / 2)) != std::string::npos);
  CHECK(table.find("some positions only") != std::string::npos);
  CHECK(table.find("nan") == std::string::npos);
  CHECK(summary_table(evaluate(tiny_config()), "transformer", "squared error").find('~') == std::string::npos);

  const std::vector<double> cached = evaluate(tiny_config(few), Backend::Cpu, 1, cache).baselines.at("tree_full");
  CHECK(std::isnan(cached[1]));
  CHECK(cached[4] == tree[4]);
  // Other numbers of prompts or positions are another key.
  for (const char* key : {"eval.baseline_prompts=4", "eval.baseline_positions=4"}) {
    CAPTURE(key);
    const std::vector<double> all =
        evaluate(tiny_config({few[0], few[1], few[2], key}), Backend::Cpu, 1, cache).baselines.at("tree_full");
    CHECK((all[4] != tree[4] || std::isfinite(all[1])));
    if (std::isfinite(all[1])) CHECK(all[1] == doctest::Approx(one_point));
  }
}

TEST_CASE("evaluation: a baseline that lacks a single position is marked in the table") {
  const std::vector<std::string> keys = {"task.points=6", "task.curriculum.enabled=false",
                                         "eval.baselines=[\"tree_full\", \"zero\"]", "eval.baseline_prompts=24"};
  const auto table = [&keys](const std::string& positions, std::ptrdiff_t missing) {
    std::vector<std::string> overrides = keys;
    overrides.push_back("eval.baseline_positions=" + positions);
    const EvaluationResult result = evaluate(tiny_config(overrides));
    const std::vector<double>& tree = result.baselines.at("tree_full");
    CHECK(std::count_if(tree.begin(), tree.end(), [](double value) { return std::isnan(value); }) == missing);
    return summary_table(result, "transformer", "squared error");
  };
  const std::string one_missing = table("4", 1);
  const std::size_t tree = one_missing.find("tree_full");
  REQUIRE(tree != std::string::npos);
  CHECK(one_missing.substr(tree, one_missing.find('\n', tree) - tree).find('~') != std::string::npos);
  CHECK(one_missing.find("~: over some positions only") != std::string::npos);
  CHECK(table("5", 0).find('~') == std::string::npos);
}

TEST_CASE("evaluation: expensive baselines are left to a later evaluation when they are stopped") {
  const TemporaryDirectory directory;
  TinySession tiny(tiny_config({"eval.baselines=[\"tree_full\", \"zero\"]"}));
  tiny.session.initialize();
  Evaluator evaluator(tiny.session, directory / "baselines.json");
  bool stop = true;
  evaluator.watch([&stop] { return stop; }, {});
  CHECK_FALSE(evaluator.run(1).baselines.contains("tree_full"));
  CHECK_FALSE(std::filesystem::exists(directory / "baselines.json"));
  stop = false;
  const EvaluationResult result = evaluator.run(2);
  CHECK(result.baselines.contains("tree_full"));
  CHECK(result.baselines.contains("zero"));
  CHECK(std::filesystem::exists(directory / "baselines.json"));
}

TEST_CASE("evaluation: without resamples there is no band") {
  const EvaluationResult result = evaluate(tiny_config({"eval.bootstrap=0"}));
  CHECK(result.positions.mean.size() == 5);
  CHECK(result.positions.lower.empty());
  CHECK(result.json().at("lower").empty());
  CHECK_FALSE(result.json().contains("summary_lower"));
  CHECK(summary_table(result, "transformer", "squared error").find("bootstrap") == std::string::npos);
}

TEST_CASE("evaluation: the summary names the model and every baseline") {
  const EvaluationResult result = evaluate(tiny_config());
  const std::string table = summary_table(result, "transformer", "squared error");
  for (const char* name : {"transformer", "least_squares", "zero", "knn3", "averaging", "5% bootstrap", "i=4"}) {
    CAPTURE(name);
    CHECK(table.find(name) != std::string::npos);
  }
}

TEST_CASE("evaluation: non-finite scores are strings") {
  EvaluationResult result = evaluate(tiny_config());
  result.positions.mean[2] = std::nan("");
  result.summary.last = HUGE_VAL;
  const nlohmann::json line = nlohmann::json::parse(result.json().dump());
  CHECK(line.at("positions")[2] == "nan");
  CHECK(line.at("summary").at("last") == "inf");
}

}  // namespace
}  // namespace graft::test
