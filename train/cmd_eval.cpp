#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/error.h"
#include "train/checkpoint.h"
#include "train/command.h"
#include "train/config.h"
#include "train/evaluation.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

struct EvalArguments {
  std::string target;
  std::string suite = "standard";
  std::vector<std::string> overrides;
  std::string device = "auto";
  std::string out;
  int threads = 0;
};

/// A run's directory or one of its checkpoints: where the configuration lies, and which checkpoint is meant.
struct Target {
  fs::path run;
  fs::path checkpoint;  // empty: the newest valid one
};

Target find_target(const std::string& text) {
  fs::path path = fs::path(text).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  if (fs::exists(path / "resolved.toml")) return {path, {}};
  const fs::path run = fs::absolute(path).parent_path().parent_path();
  if (fs::exists(path / "manifest.json") && fs::exists(run / "resolved.toml")) return {run, path};
  throw DataError(fmt::format(
      "eval: {} is neither a run's directory (with resolved.toml) nor a checkpoint in one (ckpt/step_<n>)", text));
}

/// The suites that `wanted` means. Throws ArgumentError naming those that exist.
std::vector<std::string> suites_of(const Task& task, const std::string& wanted) {
  std::vector<std::string> all = {kStandardSuite};
  for (std::string& name : task.suites()) all.push_back(std::move(name));
  if (wanted == "all") return all;
  if (wanted != kStandardSuite) static_cast<void>(task.suite(wanted));
  return {wanted};
}

int evaluate(const EvalArguments& arguments) {
  const Target target = find_target(arguments.target);
  const RunConfig config = load_config((target.run / "resolved.toml").string(), arguments.overrides);
  Experiment experiment(config);

  CheckpointReport report;
  std::optional<CheckpointData> checkpoint;
  if (target.checkpoint.empty()) {
    checkpoint = CheckpointDirectory(target.run / "ckpt").load_latest(&report, CheckpointParts::ModelOnly);
    for (const CheckpointReport::Skipped& skipped : report.skipped) {
      fmt::print(stderr, "graft: warning: {} skipped: {}\n", skipped.path.string(), skipped.reason);
    }
    if (!checkpoint) throw DataError(fmt::format("eval: {} holds no checkpoint yet", target.run.string()));
  } else {
    checkpoint = CheckpointDirectory::load(target.checkpoint, CheckpointParts::ModelOnly);
  }

  const std::vector<std::string> suites = suites_of(*experiment.task, arguments.suite);

  Session session(experiment, parse_device(arguments.device, config.train.precision), {arguments.threads}, false);
  session.restore(*checkpoint, false);
  std::string lines;
  for (const std::string& suite : suites) {
    Evaluator evaluator(session, suite == kStandardSuite ? target.run / "baselines.json" : fs::path(),
                        Evaluator::CacheUse::ReadOnly, suite);
    evaluator.watch({}, [](const std::string& line) { fmt::print(stderr, "{}\n", line); });
    const EvaluationResult result = evaluator.run(checkpoint->step);
    fmt::print("{} at step {}, suite {}, {} prompts, {}\n\n{}\n", config.run.name, result.step, suite, result.prompts,
               session.runtime().device_name(),
               summary_table(result, config.model_name(), experiment.task->score_name()));
    lines += result.json().dump() + '\n';
  }
  if (!arguments.out.empty()) {
    std::ofstream file(arguments.out);
    file << lines;
    if (!file.flush()) throw EnvironmentError(fmt::format("eval: {} cannot be written", arguments.out));
  }
  return static_cast<int>(ExitCode::kDone);
}

void add(CLI::App& app, std::function<int()>& action) {
  const auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand("eval", "evaluate a run or a checkpoint, as during training");
  command->add_option("target", arguments->target, "a run's directory, or one of its checkpoints")
      ->type_name("PATH")
      ->required();
  command->add_option("--suite", arguments->suite, "what to evaluate: standard, another one of the task's, or all")
      ->type_name("NAME")
      ->capture_default_str();
  add_override_option(*command, arguments->overrides, "eval.prompts=6400");
  add_device_options(*command, arguments->device, arguments->threads);
  command
      ->add_option("--out", arguments->out,
                   "also write the result, as one JSON line a suite, to this file (default: none)")
      ->type_name("FILE");
  command->footer("Example:  graft eval runs/quickstart-0123abcd --out eval.json");
  command->callback([arguments, &action] { action = [arguments] { return evaluate(*arguments); }; });
}

const RegisterCommand registered{{"eval", add}};

}  // namespace
}  // namespace graft
