#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "train/checkpoint.h"
#include "train/command.h"
#include "train/config.h"
#include "train/evaluation.h"
#include "train/file_io.h"
#include "train/result_file.h"
#include "train/signals.h"

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
  const fs::path path = tidy_path(text);
  if (fs::exists(path / "resolved.toml")) return {path, {}};
  if (fs::exists(path / "manifest.json")) {
    for (const fs::path& whole : {fs::absolute(path), fs::canonical(path)}) {
      const fs::path folder = whole.parent_path();  // ckpt, or a branch set aside in it
      for (const fs::path& run : {folder.parent_path(), folder.parent_path().parent_path()}) {
        if (fs::exists(run / "resolved.toml")) return {run, path};
      }
    }
  }
  throw DataError(fmt::format(
      "eval: {} is neither a run's directory (with resolved.toml) nor a checkpoint in one (ckpt/step_<n>)", text));
}

/// Refuses overrides that make another model than the one that was trained: its weights would be read into whatever has
/// the same shapes.
void check_same_model(const RunConfig& trained, const RunConfig& config) {
  for (const std::string& difference : identity_differences(trained, config)) {
    if (!difference.starts_with("model.")) continue;
    throw ConfigError(
        fmt::format("eval: {}: the model was trained as it is in {}; leave that -o out", difference, trained.path));
  }
}

/// Refuses a checkpoint of another configuration: its weights may fit and mean something else.
void check_same_run(const CheckpointData& checkpoint, const RunConfig& trained) {
  const std::string hash = config_hash8(trained);
  const nlohmann::json saved = checkpoint.state.value("config_hash", nlohmann::json());
  if (saved == hash) return;
  throw ConfigError(fmt::format(
      "eval: the checkpoint of step {} belongs to a configuration with hash {}, that of {} is {}: one of them is "
      "another run's, or was edited",
      checkpoint.step, saved.is_string() ? saved.get<std::string>() : saved.dump(), trained.path, hash));
}

/// A run's configuration with overrides. Where they make prompts shorter, the table of positions keeps the rows that
/// the run's weights have.
RunConfig overridden(const RunConfig& trained, std::vector<std::string> overrides) {
  const std::string& path = trained.path;
  if (overrides.empty()) return trained;
  RunConfig config = load_config(path, overrides);
  check_same_model(trained, config);
  if (config.settings.integer("model.position_rows") != 0) return config;
  const auto longest_prompt = [](const RunConfig& run) { return make_task(run.settings)->shape().max_tokens; };
  const std::int64_t rows = longest_prompt(trained);
  if (longest_prompt(config) >= rows) return config;
  overrides.push_back(fmt::format("model.position_rows={}", rows));
  return load_config(path, overrides);
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
  const SignalGuard signals;
  const Target target = find_target(arguments.target);
  const RunConfig trained = load_config((target.run / "resolved.toml").string());
  const RunConfig config = overridden(trained, arguments.overrides);
  ResultFile file("eval", "--out", arguments.out);
  Experiment experiment(config);

  CheckpointReport report;
  std::optional<CheckpointData> checkpoint;
  if (target.checkpoint.empty()) {
    checkpoint = CheckpointDirectory(target.run / "ckpt").load_latest(&report, CheckpointParts::ModelOnly);
    for (const CheckpointReport::Skipped& skipped : report.skipped) {
      write_note(fmt::format("graft: warning: {} skipped: {}", skipped.path.string(), skipped.reason));
    }
    if (!checkpoint) throw DataError(fmt::format("eval: {} holds no checkpoint yet", target.run.string()));
  } else {
    checkpoint = CheckpointDirectory::load(target.checkpoint, CheckpointParts::ModelOnly);
  }
  check_same_run(*checkpoint, trained);

  const std::vector<std::string> suites = suites_of(*experiment.task, arguments.suite);

  std::size_t done = 0;
  const auto check_signals = [&] {
    SignalGuard::check(fmt::format("with {} of {} evaluations done{}; the same command starts again: {}", done,
                                   suites.size(), arguments.out.empty() || done == 0 ? "" : " and in " + arguments.out,
                                   command_line()));
  };
  check_signals();
  Session session(experiment, parse_device(arguments.device, config.train.precision), {arguments.threads}, false);
  check_signals();
  session.restore(*checkpoint, false);
  for (const std::string& suite : suites) {
    Evaluator evaluator(session, suite == kStandardSuite ? target.run / "baselines.json" : fs::path(),
                        Evaluator::CacheUse::ReadOnly, suite);
    evaluator.watch([] { return SignalGuard::received() != 0; }, write_note);
    const EvaluationResult result = evaluator.run(checkpoint->step);
    if (result.interrupted) check_signals();
    std::string lost;
    try {
      if (file.wanted()) file.append(result.json().dump() + '\n');
      ++done;
    } catch (const EnvironmentError& error) {
      lost = error.what();  // the table is printed all the same: the numbers may have taken hours
    }
    const bool read = write_output(fmt::format(
        "{} at step {}, suite {}, {} prompts, {}\n\n{}\n", config.run.name, result.step, suite, result.prompts,
        session.runtime().device_name(), summary_table(result, config.model_name(), experiment.task->score_name())));
    if (!lost.empty()) {
      throw EnvironmentError(fmt::format(
          "eval: suite {} is {}, {} of {} evaluations are in the file: {}; make room, or choose another --out", suite,
          read ? "on stdout only" : "lost", done, suites.size(), lost));
    }
    if (!read && arguments.out.empty()) break;  // nobody wants the others
  }
  return static_cast<int>(ExitCode::kDone);
}

void add(CLI::App& app, std::function<int()>& action) {
  const auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand("eval", "evaluate a run or a checkpoint, as during training");
  require_not_empty(command->add_option("target", arguments->target, "a run's directory, or one of its checkpoints"))
      ->type_name("PATH")
      ->required();
  command->add_option("--suite", arguments->suite, "what to evaluate: standard, another one of the task's, or all")
      ->type_name("NAME")
      ->capture_default_str();
  add_override_option(*command, arguments->overrides, "eval.prompts=6400");
  add_device_options(*command, arguments->device, arguments->threads);
  require_not_empty(
      command->add_option("--out", arguments->out,
                          "also write the result, as one JSON line a suite, to this file (default: none)"))
      ->type_name("FILE");
  command->footer("Example:  graft eval runs/quickstart-0123abcd --out eval.json");
  command->callback([arguments, &action] { action = [arguments] { return evaluate(*arguments); }; });
}

const RegisterCommand registered{{"eval", add}};

}  // namespace
}  // namespace graft
