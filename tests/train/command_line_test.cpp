// The program as its users meet it: exit codes, messages, files, signals.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/runtime.h"
#include "tests/support/process_limits.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

/// A directory with tiny.toml in it.
struct Workplace {
  explicit Workplace(const std::string& config = kTinyConfig) { write_contents(directory / "tiny.toml", config); }
  [[nodiscard]] fs::path path() const { return directory.path(); }
  [[nodiscard]] fs::path operator/(std::string_view name) const { return directory / name; }
  [[nodiscard]] Result graft(const std::vector<std::string>& arguments) const { return run_graft(path(), arguments); }
  TemporaryDirectory directory;
};

/// Names and contents of all files below a directory.
std::vector<std::pair<std::string, std::string>> files_in(const fs::path& directory) {
  std::vector<std::pair<std::string, std::string>> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) files.emplace_back(entry.path().string(), contents(entry.path()));
  }
  std::sort(files.begin(), files.end());
  return files;
}

void check_refused(const Result& result, int code, const std::string& names) {
  CAPTURE(result.err);
  CHECK(result.code == code);
  CHECK(result.last_error_line().starts_with("graft: error: "));
  CHECK(result.last_error_line().size() > std::string("graft: error: ").size());
  CHECK(result.err.find(names) != std::string::npos);
  CHECK(result.err.find("terminate called") == std::string::npos);
}

TEST_CASE("command line: bad input ends with exit code 2, one clear line and no run directory") {
  const Workplace place;
  fs::create_directory(place / "folder");
  write_contents(place / "long.toml", std::string(kTinyConfig) + "[" + std::string(1 << 20, 'k') + "]\nx = 1\n");
  write_contents(place / "long_key.toml", std::string(1 << 20, 'k') + " = 1\n");
  write_contents(place / "binary.toml", std::string("\x00\xff\xfe[task", 8));
  write_contents(place / "empty.toml", "");
  write_contents(place / "broken.toml", "[task\nname = \n");
  struct Bad {
    std::vector<std::string> arguments;
    const char* names;
  };
  const std::vector<Bad> cases = {
      {{"tiny.toml", "-o", "model.widht=32"}, "model.width"},
      {{"tiny.toml", "-o", "nonsense.key=1"}, "nonsense"},
      {{"tiny.toml", "-o", "model.preset=transfomer"}, "transformer"},
      {{"tiny.toml", "-o", "task.name=linear_regresion"}, "linear_regression"},
      {{"tiny.toml", "-o", "model.pattern=(AQ)*2"}, "Q"},
      {{"tiny.toml", "-o", "model.pattern=(AF"}, "pattern"},
      {{"tiny.toml", "-o", "model.heads=3"}, "heads"},
      {{"tiny.toml", "-o", "optimizer.lr=-1e-3"}, "optimizer.lr"},
      {{"tiny.toml", "-o", "optimizer.lr=0"}, "optimizer.lr"},
      {{"tiny.toml", "-o", "optimizer.lr=nan"}, "optimizer.lr"},
      {{"tiny.toml", "-o", "optimizer.lr=inf"}, "optimizer.lr"},
      {{"tiny.toml", "-o", "optimizer.lr="}, "optimizer.lr"},
      {{"tiny.toml", "-o", "optimizer.lr"}, "optimizer.lr"},
      {{"tiny.toml", "-o", "train.batch=2.5"}, "train.batch"},
      {{"tiny.toml", "-o", "train.steps=99999999999999999999"}, "train.steps"},
      {{"tiny.toml", "-o", "eval.baselines=[\"magic\"]"}, "magic"},
      {{"tiny.toml", "-o", "eval.prompts=25"}, "eval.prompts"},
      {{"tiny.toml", "-o", "train.precision=fp16"}, "bf16"},
      {{"tiny.toml", "-o", "task.dim=0"}, "task.dim"},
      {{"folder"}, "folder"},
      {{"missing.toml"}, "missing.toml"},
      {{"long.toml"}, "long.toml"},
      {{"long_key.toml"}, "long_key.toml"},
      {{"binary.toml"}, "binary.toml"},
      {{"empty.toml"}, "task.name"},
      {{"broken.toml"}, "broken.toml"},
      {{}, "config"},
      {{"tiny.toml", "--device", "tpu"}, "tpu"},
      {{"tiny.toml", "--threads", "-1"}, "threads"},
      {{"tiny.toml", "--threads", "many"}, "threads"},
      {{"tiny.toml", "--no-such-option"}, "--no-such-option"},
  };
  const auto before = files_in(place.path()).size() + 2;  // stdout.txt and stderr.txt
  for (const char* command : {"train", "inspect", "sample"}) {
    const std::string name = command;
    CAPTURE(name);
    for (const Bad& bad : cases) {
      // What only one command takes, or checks.
      if (name != "train" && bad.arguments.size() > 1 && bad.arguments[1].starts_with("--")) continue;
      if (name == "sample" && bad.arguments.size() > 2 && bad.arguments[2].starts_with("model.p") &&
          bad.arguments[2].find('(') != std::string::npos) {
        continue;
      }
      std::vector<std::string> arguments = {command};
      arguments.insert(arguments.end(), bad.arguments.begin(), bad.arguments.end());
      CAPTURE(fmt::format("{}", fmt::join(bad.arguments, " ")));
      check_refused(place.graft(arguments), 2, bad.names);
    }
  }
  CHECK_FALSE(fs::exists(place / "runs"));
  CHECK(files_in(place.path()).size() == before);
}

TEST_CASE("command line: no command and unknown commands are usage errors") {
  const Workplace place;
  check_refused(place.graft({}), 2, "graft --help");
  check_refused(place.graft({"trian", "tiny.toml"}), 2, "did you mean `train`");
  check_refused(place.graft({"config"}), 2, "graft --help");
}

TEST_CASE("command line: a mistake is shown with its line and a suggestion") {
  const Workplace place("[task]\nname = \"linear_regression\"\n[model]\npreset = \"transformer\"\nwidht = 64\n");
  const Result result = place.graft({"train", "tiny.toml"});
  check_refused(result, 2, "tiny.toml:5:1");
  CHECK(result.err.find("did you mean `model.width`") != std::string::npos);
  CHECK(result.out.empty());
}

TEST_CASE("command line: a GPU that is not there is exit code 3, saying what was looked for") {
  if (cuda_available()) return;
  const Workplace place;
  const Result result = place.graft({"train", "tiny.toml", "--device", "cuda"});
  check_refused(result, 3, "no usable GPU");
  CHECK(result.err.find("--device cpu") != std::string::npos);
  CHECK_FALSE(fs::exists(place / "runs"));
}

TEST_CASE("command line: a dry run prints the plan and touches nothing") {
  const Workplace place;
  const Result result = place.graft({"train", "tiny.toml", "--dry-run"});
  CHECK(result.code == 0);
  CHECK(result.err.empty());
  for (const char* text : {"width = 16", "FLOPs", "parameters", "activations", "60 steps", "directory  runs/tiny-"}) {
    CAPTURE(text);
    CHECK(result.out.find(text) != std::string::npos);
  }
  CHECK(files_in(place.path()).size() == 3);  // the configuration and the two outputs
  CHECK(place.graft({"train", "tiny.toml", "--dry-run", "--run-dir", "elsewhere"}).code == 0);
  CHECK_FALSE(fs::exists(place / "elsewhere"));
}

TEST_CASE("command line: a run that does not fit says what takes the memory and what would fit") {
  const Workplace place;
  const std::vector<std::string> large = {"train", "tiny.toml",           "--device", "cpu",
                                          "-o",    "train.batch=1000000", "-o",       "model.width=512",
                                          "-o",    "task.points=100"};
  const Result result = place.graft(large);
  check_refused(result, 3, "out of memory: a step needs ");
  for (const char* text : {"; most of it is 2 x mlp ", "what would fit: train.batch = ", "train.recompute = true"}) {
    CAPTURE(result.err);
    CHECK(result.err.find(text) != std::string::npos);
  }
  CHECK_FALSE(fs::exists(place / "runs"));

  const Result evaluation = place.graft({"train", "tiny.toml", "--device", "cpu", "-o", "train.steps=1", "-o",
                                         "schedule.warmup=0", "-o", "eval.batch=1000000", "-o", "eval.prompts=1000000",
                                         "-o", "model.width=512", "-o", "task.points=100", "-o", "train.batch=1"});
  check_refused(evaluation, 3, "out of memory: a step needs ");
  CHECK(evaluation.err.find("eval.batch = 1000000 prompts at once, lower it") != std::string::npos);

  write_contents(place / "fit.sweep.toml", "[sweep]\nbase = \"tiny.toml\"\n[[sweep.grid]]\ntrain.batch = [1000000]\n");
  const Result sweep = place.graft(
      {"sweep", "run", "fit.sweep.toml", "--device", "cpu", "-o", "model.width=512", "-o", "task.points=100"});
  CHECK(sweep.code == 3);
  CHECK(sweep.err.find("what would fit: train.batch = ") != std::string::npos);
  CHECK(sweep.err.find("--jobs") == std::string::npos);  // it was alone

  write_contents(place / "two.sweep.toml",
                 "[sweep]\nbase = \"tiny.toml\"\n[[sweep.grid]]\ntrain.batch = [1000000]\nrun.seed = [0, 1]\n");
  const Result two = place.graft({"sweep", "run", "two.sweep.toml", "--jobs", "2", "--device", "cpu", "-o",
                                  "model.width=512", "-o", "task.points=100"});
  CHECK(two.code == 3);
  CHECK(two.err.find("2 runs share the memory: a smaller --jobs") != std::string::npos);
}

TEST_CASE("command line: plans show what recomputation saves") {
  const Workplace place;
  const auto activations = [&](const char* recompute) {
    const Result result = place.graft({"inspect", "tiny.toml", "--json", "-o", "model.layers=6", "-o", recompute});
    REQUIRE(result.code == 0);
    const nlohmann::json out = nlohmann::json::parse(result.out);
    return std::pair(out.at("memory").at("activations").get<double>(), out.at("flops"));
  };
  const auto [kept, flops] = activations("train.recompute=false");
  const auto [recomputed, flops_again] = activations("train.recompute=true");
  CHECK(recomputed < kept / 2);
  CHECK(flops_again == flops);
  const Result plan = place.graft({"train", "tiny.toml", "--dry-run", "-o", "train.recompute=true"});
  CHECK(plan.out.find("recompute = true") != std::string::npos);
}

TEST_CASE("command line: every command explains itself on a screen, with an example") {
  const Workplace place;
  const Result all = place.graft({"--help"});
  CHECK(all.code == 0);
  for (const char* command : {"train", "eval", "inspect", "sample", "config"}) {
    CAPTURE(command);
    CHECK(all.out.find(command) != std::string::npos);
    const Result help = place.graft({command, "--help"});
    CHECK(help.code == 0);
    CHECK(help.err.empty());
    CHECK(std::count(help.out.begin(), help.out.end(), '\n') < 50);
    CHECK(help.out.find(fmt::format("Example:  graft {} ", command)) != std::string::npos);
    CHECK(help.out.find("Start with:") == std::string::npos);  // the footer of graft itself
    const Result version = place.graft({command, "--version"});
    CHECK(version.code == 0);
    CHECK(version.out.starts_with("graft "));
  }
  for (const char* command : {"check", "explain", "schema"}) {
    const Result help = place.graft({"config", command, "--help"});
    CHECK(help.code == 0);
    CHECK(help.out.find(fmt::format("Example:  graft config {}", command)) != std::string::npos);
  }
  const Result version = place.graft({"--version"});
  CHECK(version.code == 0);
  CHECK(version.out.starts_with("graft "));
}

TEST_CASE("command line: benchmarks go by the names that are listed") {
  const Workplace place;
  const Result all = place.graft({"--help"});
  if (all.out.find("bench") == std::string::npos) return;  // built without them
  for (const char* what : {"ops", "step"}) {
    CAPTURE(what);
    check_refused(place.graft({"bench", what, "--filter", "(["}), 2, "([");
    check_refused(place.graft({"bench", what, "--filter", "no such benchmark"}), 2, "no such benchmark");
    const Result list = place.graft({"bench", what, "--list", "--device", "cpu"});
    CHECK(list.code == 0);
    CHECK(list.out.find("/fp32\n") != std::string::npos);
    CHECK(list.out.find("iterations") == std::string::npos);
    CHECK(place.graft({"bench", what, "--help"}).out.find(fmt::format("Example:  graft bench {} ", what)) !=
          std::string::npos);
  }
  const Result timed = place.graft({"bench", "ops", "--device", "cpu", "--threads", "1", "--filter",
                                    "^activation/forward/gelu_tanh/5248x512/fp32$", "--json", "ops.json", "--warm"});
  CAPTURE(timed.err);
  REQUIRE(timed.code == 0);
  for (const nlohmann::json& row : nlohmann::json::parse(contents(place / "ops.json")).at("benchmarks")) {
    CHECK(row.at("name").get<std::string>().ends_with("/fp32"));
    CHECK(row.at("real_time").get<double>() > 0);
    CHECK(row.at("of_copy").get<double>() > 0);
  }
}

bool has_bench(const Workplace& place) { return place.graft({"--help"}).out.find("bench") != std::string::npos; }

/// How many rows of a benchmark's JSON have `error` in them.
std::size_t failed_rows(const nlohmann::json& rows, const char* error) {
  return static_cast<std::size_t>(
      std::count_if(rows.begin(), rows.end(), [&](const nlohmann::json& row) { return row.contains(error); }));
}

TEST_CASE("command line: a benchmark that fails is in the results with its error, and the others are timed") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return;  // their own memory is beyond every limit
#endif
  const Workplace place;
  if (!has_bench(place)) return;
  constexpr std::uint64_t kEnough = 1'000'000'000;
  if (!ProcessLimit(RLIMIT_DATA, kEnough).holds()) {
    MESSAGE("skipped: this process may not have " << kEnough << " bytes of data");
    return;
  }
  const auto limited = [&](const std::vector<std::string>& arguments) {
    const ProcessLimit memory(RLIMIT_DATA, kEnough);
    return place.graft(arguments);
  };
  const Result ops = limited({"bench", "ops", "--device", "cpu", "--threads", "1", "--warm", "--json", "ops.json",
                              "--filter", "^adam/(2400000|85000000|9500032)/fp32$"});
  check_refused(ops, 3, "bench ops: 1 of 3 benchmarks failed, first adam/85000000/fp32: out of ");
  CHECK(ops.out.find("ERROR OCCURRED: 'out of ") != std::string::npos);
  const nlohmann::json timed = nlohmann::json::parse(contents(place / "ops.json")).at("benchmarks");
  REQUIRE(timed.size() == 3);
  CHECK(failed_rows(timed, "error_message") == 1);
  CHECK(timed[1].at("error_message").get<std::string>().starts_with("out of "));
  CHECK(timed[2].at("real_time").get<double>() > 0);

  const Result step = limited({"bench", "step", "--device", "cpu", "--threads", "1", "--json", "step.json", "-o",
                               "train.batch=24", "--filter", "^icl_transformer_(12x256_T202|2x128_T82)/fp32$"});
  check_refused(step, 3, "bench step: 1 of 2 benchmarks failed, first icl_transformer_12x256_T202/fp32: out of memory");
  CHECK(step.out.find("failed: out of memory") != std::string::npos);
  const nlohmann::json rows = nlohmann::json::parse(contents(place / "step.json")).at("rows");
  REQUIRE(rows.size() == 2);
  CHECK(failed_rows(rows, "error") == 1);
  CHECK(rows[0].at("error").get<std::string>().starts_with("out of memory"));
  CHECK(rows[1].at("captured_ms").get<double>() > 0);

  // A mistake in a configuration is found before anything is timed.
  const Result mistake =
      place.graft({"bench", "step", "--device", "cpu", "--json", "none.json", "-o", "model.heads=3"});
  check_refused(mistake, 2, "model.heads");
  CHECK(mistake.out.empty());
  CHECK_FALSE(fs::exists(place / "none.json"));
  check_refused(place.graft({"bench", "step", "--device", "cpu", "--json", "nowhere/out.json"}), 3, "nowhere/out.json");
}

TEST_CASE("command line: the results of benchmarks are whole in their file while others run") {
  const Workplace place;
  if (!has_bench(place)) return;
  write_contents(place / "ops.json", "earlier");
  Process process(place.path(), {"bench", "ops", "--device", "cpu", "--threads", "1", "--warm", "--json", "ops.json",
                                 "--filter", "^activation/.*fp32$"});
  for (int i = 0; i < 60000 && contents(place / "ops.json") == "earlier"; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  process.signal(SIGKILL);
  static_cast<void>(process.wait());
  const nlohmann::json written = nlohmann::json::parse(contents(place / "ops.json"));
  CHECK(written.at("context").at("device").is_string());
  REQUIRE_FALSE(written.at("benchmarks").empty());
  CHECK(written.at("benchmarks")[0].at("real_time").get<double>() > 0);
}

TEST_CASE("command line: results that cannot be printed are exit code 3") {
  const Workplace place;
  REQUIRE(place
              .graft({"train", "tiny.toml", "--device", "cpu", "--threads", "1", "--run-dir", "run", "-o",
                      "train.steps=4", "-o", "schedule.warmup=0"})
              .code == 0);
  write_contents(place / "few.sweep.toml", "[sweep]\nbase = \"tiny.toml\"\n[[sweep.grid]]\nrun.seed = [0, 1]\n");
  const std::string checkpoint = "run/ckpt/step_4";
  std::vector<std::vector<std::string>> commands = {{"--help"},
                                                    {"--version"},
                                                    {"train", "--help"},
                                                    {"train", "tiny.toml", "--dry-run"},
                                                    {"eval", "run", "--device", "cpu"},
                                                    {"eval", "run", "--device", "cpu", "--out", "eval.jsonl"},
                                                    {"inspect", "tiny.toml"},
                                                    {"inspect", "tiny.toml", "--json"},
                                                    {"sample", "tiny.toml"},
                                                    {"sample", "tiny.toml", "--json"},
                                                    {"config", "check", "tiny.toml"},
                                                    {"config", "check", "tiny.toml", "--resolved"},
                                                    {"config", "explain"},
                                                    {"config", "explain", "optimizer.lr"},
                                                    {"config", "schema"},
                                                    {"ckpt", "ls", "run"},
                                                    {"ckpt", "ls", "run", "--json"},
                                                    {"ckpt", "verify", "run"},
                                                    {"ckpt", "gc", "run", "--dry-run"},
                                                    {"ckpt", "diff", checkpoint, checkpoint},
                                                    {"ckpt", "diff", checkpoint, checkpoint, "--json"},
                                                    {"sweep", "plan", "few.sweep.toml"},
                                                    {"sweep", "status", "few.sweep.toml"}};
  const std::vector<std::string> ops = {"bench",  "ops",       "--device",
                                        "cpu",    "--threads", "1",
                                        "--warm", "--filter",  "^activation/forward/gelu_tanh/5248x512/fp32$"};
  if (has_bench(place)) {
    commands.push_back({"bench", "ops", "--device", "cpu", "--list"});
    commands.push_back({"bench", "step", "--list"});
    commands.push_back(ops);
    commands.push_back({"bench", "step", "--device", "cpu"});
    commands.push_back(ops);
    commands.back().insert(commands.back().end(), {"--json", "ops.json"});
  }
  const int full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  REQUIRE(full >= 0);
  for (const std::vector<std::string>& arguments : commands) {
    CAPTURE(fmt::format("{}", fmt::join(arguments, " ")));
    Process process(place.path(), arguments, {.out = full});
    const int code = process.wait();
    check_refused({code, {}, process.err()}, 3, "graft: error: stdout cannot be written: No space left on device");
  }
  ::close(full);
  CHECK_FALSE(contents(place / "eval.jsonl").empty());
  if (has_bench(place)) {  // somebody wants the file
    CHECK(nlohmann::json::parse(contents(place / "ops.json")).at("benchmarks").size() == 1);
  }
}

TEST_CASE("command line: inspect --json has what scripts read") {
  const Workplace place;
  const Result result = place.graft({"inspect", "tiny.toml", "--json", "-o", "model.width=128", "-o", "model.layers=2",
                                     "-o", "model.heads=8", "-o", "task.dim=20", "-o", "task.points=41"});
  REQUIRE(result.code == 0);
  CHECK(result.err.empty());
  const nlohmann::json json = nlohmann::json::parse(result.out);
  CHECK(json.at("parameters_backbone") == 396800);
  CHECK(json.at("parameters_without_embeddings") == 396800 + 20 * 128 + 128 + 129);
  CHECK(json.at("parameters") == 396800 + 20 * 128 + 128 + 129 + 82 * 128);
  CHECK(json.at("blocks") == 4);
  for (const char* kind : {"flops", "flops_causal"}) {
    for (const char* what : {"forward_per_sequence", "train_step", "train_total"}) {
      CHECK(json.at(kind).at(what).get<double>() > 0);
    }
  }
  CHECK(json.at("flops").at("train_step").get<double>() ==
        3 * 8 * json.at("flops").at("forward_per_sequence").get<double>());
  CHECK(json.at("flops_causal").at("train_step") < json.at("flops").at("train_step"));
  const nlohmann::json& memory = json.at("memory");
  CHECK(memory.at("parameters").get<std::int64_t>() >= 4 * json.at("parameters").get<std::int64_t>());
  CHECK(memory.at("gradients") == memory.at("parameters"));
  CHECK(memory.at("optimizer").get<std::int64_t>() == 2 * memory.at("parameters").get<std::int64_t>());
  CHECK(memory.at("activations").get<std::int64_t>() > 0);
  std::int64_t sum = 0;
  for (const auto& [name, count] : json.at("modules").items()) sum += count.get<std::int64_t>();
  CHECK(sum == json.at("parameters").get<std::int64_t>());

  const Result table = place.graft({"inspect", "tiny.toml"});
  CHECK(table.code == 0);
  CHECK(table.out.find("blocks.0.attention") != std::string::npos);
  CHECK(files_in(place.path()).size() == 3);
}

TEST_CASE("command line: sample --json prints one prompt a line, as it is in training") {
  const Workplace place;
  const Result result = place.graft({"sample", "tiny.toml", "-n", "3", "--json", "--seed", "11"});
  REQUIRE(result.code == 0);
  std::istringstream lines(result.out);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const nlohmann::json json = nlohmann::json::parse(line);
    CHECK(json.at("task") == "linear_regression");
    CHECK(json.at("index") == count);
    const auto inputs = json.at("inputs").get<std::vector<std::vector<double>>>();
    const auto targets = json.at("targets").get<std::vector<double>>();
    const auto weights = json.at("truth").get<std::vector<double>>();
    REQUIRE(inputs.size() == 10);
    REQUIRE(targets.size() == 5);
    REQUIRE(weights.size() == 3);
    CHECK(json.at("scored") == nlohmann::json({0, 2, 4, 6, 8}));
    for (std::size_t i = 0; i < 5; ++i) {
      double label = 0;
      for (std::size_t j = 0; j < 3; ++j) label += weights[j] * inputs[2 * i][j];
      CHECK(targets[i] == doctest::Approx(label).epsilon(1e-5));
      CHECK(inputs[2 * i + 1] == std::vector<double>{targets[i], 0, 0});
    }
  }
  CHECK(count == 3);
  CHECK(place.graft({"sample", "tiny.toml", "-n", "3", "--json", "--seed", "11"}).out == result.out);
  CHECK(place.graft({"sample", "tiny.toml", "-n", "3", "--json", "--seed", "12"}).out != result.out);
  const Result table = place.graft({"sample", "tiny.toml"});
  CHECK(table.code == 0);
  CHECK(table.out.find("prompt 0") != std::string::npos);
}

std::vector<std::string> train_arguments(const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {"train", "tiny.toml", "--device", "cpu", "--threads", "1", "--run-dir", "run"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST_CASE("command line: train leaves a whole run, and eval finds the same numbers in it") {
  const Workplace place;
  const Result trained = place.graft(train_arguments());
  CAPTURE(trained.err);
  REQUIRE(trained.code == 0);
  CHECK(trained.err.empty());
  for (const char* name : {"config.toml", "resolved.toml", "run.json", "metrics.jsonl", "eval.jsonl", "ckpt/latest",
                           "ckpt/step_60/manifest.json"}) {
    CAPTURE(name);
    CHECK(fs::exists(place / "run" / name));
  }
  CHECK(contents(place / "run/config.toml") == kTinyConfig);
  const nlohmann::json record = nlohmann::json::parse(contents(place / "run/run.json"));
  CHECK(record.at("exit_status") == 0);
  CHECK(record.at("seed") == 5);
  CHECK(record.at("command_line").get<std::string>().find("--threads 1") != std::string::npos);

  fs::create_directory(place / "run/ckpt/abandoned_1");
  fs::copy(place / "run/ckpt/step_60", place / "run/ckpt/abandoned_1/step_60");
  for (const char* target :
       {"run", "run/", "run/ckpt/step_60", "./run/ckpt/step_60/", "run/ckpt/abandoned_1/step_60"}) {
    CAPTURE(target);
    fs::remove(place / "eval.json");
    const Result evaluated = place.graft({"eval", target, "--out", "eval.json", "--device", "cpu", "--threads", "2"});
    CAPTURE(evaluated.err);
    REQUIRE(evaluated.code == 0);
    CHECK(lines_without_times(place / "eval.json") ==
          std::vector<nlohmann::json>{lines_without_times(place / "run/eval.jsonl").back()});
  }
  check_refused(place.graft({"eval", "nowhere"}), 4, "nowhere");
  check_refused(place.graft({"eval", "run", "--suite", "nothing"}), 2, "suite");
  // Weights that fit a model they were not trained for.
  const std::string resolved = contents(place / "run/resolved.toml");
  const std::size_t heads = resolved.find("heads = 2");
  REQUIRE(heads != std::string::npos);
  write_contents(place / "run/resolved.toml", std::string(resolved).replace(heads, 9, "heads = 1"));
  check_refused(place.graft({"eval", "run", "--device", "cpu"}), 2, "belongs to a configuration with hash");
  write_contents(place / "run/resolved.toml", resolved);

  // Again: nothing is left to do.
  const auto metrics = contents(place / "run/metrics.jsonl");
  CHECK(place.graft(train_arguments()).code == 0);
  CHECK(contents(place / "run/metrics.jsonl") == metrics);
}

TEST_CASE("command line: a run's directory takes no other configuration, and --resume never no run at all") {
  const Workplace place;
  REQUIRE(place.graft(train_arguments({"-o", "train.steps=4"})).code == 0);
  const auto before = files_in(place / "run");
  check_refused(place.graft(train_arguments({"-o", "optimizer.lr=1e-2"})), 2, ", now 0.01\n");
  check_refused(place.graft(train_arguments({"--resume", "never"})), 2, "run");
  CHECK(files_in(place / "run") == before);
  fs::create_directory(place / "folder");
  write_contents(place / "folder/file", "x");
  std::vector<std::string> arguments = train_arguments();
  arguments.back() = "folder";
  check_refused(place.graft(arguments), 2, "folder");
  CHECK(files_in(place / "folder").size() == 1);
}

TEST_CASE("command line: eval on a disk that fills up keeps the lines that fit, and prints the one that does not") {
  const Workplace place;
  REQUIRE(place.graft(train_arguments({"-o", "train.steps=4", "-o", "schedule.warmup=0"})).code == 0);
  const std::vector<std::string> arguments = {"eval",  "run",       "--suite", "all", "--device",
                                              "cpu",   "--threads", "1",       "-o",  "eval.baselines=[]",
                                              "--out", "eval.jsonl"};
  REQUIRE(place.graft(arguments).code == 0);
  const std::vector<nlohmann::json> whole = lines_without_times(place / "eval.jsonl");
  REQUIRE(whole.size() > 3);
  const std::string text = contents(place / "eval.jsonl");
  const std::size_t first = text.find('\n') + 1, second = text.find('\n', first) + 1;

  int ends[2];  // the limit is on files
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  int code = 0;
  std::string err;
  {
    const ProcessLimit size(RLIMIT_FSIZE, (first + second) / 2);
    REQUIRE(size.holds());
    Process process(place.path(), arguments, {.out = ends[1]});
    code = process.wait();
    err = process.err();
  }
  ::close(ends[1]);
  std::string out(1U << 16U, '\0');
  out.resize(static_cast<std::size_t>(std::max<ssize_t>(::read(ends[0], out.data(), out.size()), 0)));
  ::close(ends[0]);

  const std::string suite = whole[1].at("suite").get<std::string>();
  check_refused({code, {}, err}, 3,
                fmt::format("eval: suite {} is on stdout only, 1 of {} evaluations are in the file: eval.jsonl is not "
                            "written any further: File too large (",
                            suite, whole.size()));
  CHECK(err.find(fmt::format(" bytes are needed in {} and ", place.path().string())) != std::string::npos);
  CHECK(lines_without_times(place / "eval.jsonl") == std::vector<nlohmann::json>{whole[0]});
  CHECK(contents(place / "eval.jsonl").ends_with("}\n"));
  CHECK(out.find(fmt::format(", suite {}, ", suite)) != std::string::npos);
  CHECK(out.find(fmt::format(", suite {}, ", whole[2].at("suite").get<std::string>())) == std::string::npos);
}

/// A longer run of the same model: time for a signal to arrive.
std::vector<std::string> long_run() {
  return train_arguments({"-o", "train.steps=1500", "-o", "schedule.total=1500", "-o", "train.log_every=50", "-o",
                          "checkpoint.every=100", "-o", "eval.every=300"});
}

std::string hash_line(const std::string& out) {
  const auto at = out.find("parameters' hash ");
  REQUIRE(at != std::string::npos);
  return out.substr(at, out.find("  run directory", at) - at);
}

/// Waits until the run has written its first line of metrics, so that a signal meets it at work.
void wait_for_steps(const fs::path& run) {
  for (int i = 0; i < 2000 && (!fs::exists(run / "metrics.jsonl") || fs::file_size(run / "metrics.jsonl") == 0); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_CASE("command line: an interrupted or killed run is continued to the same numbers") {
  const Workplace whole;
  const Result uninterrupted = whole.graft(long_run());
  REQUIRE(uninterrupted.code == 0);
  struct End {
    int signal, code;
  };
  for (const End& end : {End{SIGINT, 130}, {SIGTERM, 143}, {SIGKILL, -SIGKILL}}) {
    CAPTURE(end.signal);
    const Workplace place;
    Process process(place.path(), long_run());
    wait_for_steps(place / "run");
    process.signal(end.signal);
    const int code = process.wait();
    CHECK(code == end.code);
    if (end.signal != SIGKILL && code == end.code) {
      CHECK(process.err().find("graft: error: interrupted after step") != std::string::npos);
      CHECK(nlohmann::json::parse(contents(place / "run/run.json")).at("exit_status") == end.code);
    }
    const Result resumed = place.graft(long_run());
    CAPTURE(resumed.err);
    CHECK(resumed.code == 0);
    CHECK(hash_line(resumed.out) == hash_line(uninterrupted.out));
    CHECK(lines_without_times(place / "run/metrics.jsonl") == lines_without_times(whole / "run/metrics.jsonl"));
    CHECK(lines_without_times(place / "run/eval.jsonl") == lines_without_times(whole / "run/eval.jsonl"));
  }
}

}  // namespace
}  // namespace graft::test
