#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "train/checkpoint.h"
#include "train/command.h"
#include "train/config.h"
#include "train/evaluation.h"
#include "train/file_io.h"
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
      const fs::path run = whole.parent_path().parent_path();
      if (fs::exists(run / "resolved.toml")) return {run, path};
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

/// A run's configuration with overrides. Where they make prompts shorter, the table of positions keeps the rows that
/// the run's weights have.
RunConfig overridden(const std::string& path, std::vector<std::string> overrides) {
  RunConfig config = load_config(path, overrides);
  check_same_model(load_config(path), config);
  if (overrides.empty() || config.settings.integer("model.position_rows") != 0) return config;
  const auto longest_prompt = [](const RunConfig& run) { return make_task(run.settings)->shape().max_tokens; };
  const std::int64_t rows = longest_prompt(load_config(path));
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

/// Whether training writes the file: those of a run's directory and all of its checkpoints.
bool belongs_to_a_run(const std::string& text) {
  const fs::path path = fs::weakly_canonical(text);
  const fs::path directory = path.parent_path(), above = directory.parent_path();
  if (fs::exists(directory / "run.json")) {
    for (const char* name : {"run.json", "config.toml", "resolved.toml", "metrics.jsonl", "eval.jsonl",
                             "baselines.json", "numerics.json", ".lock"}) {
      if (path.filename() == name) return true;
    }
  }
  return fs::exists(directory / "manifest.json") || (directory.filename() == "ckpt" && fs::exists(above / "run.json"));
}

/// The file of --out, which gets each result as soon as it is there; emptied with the first, so that an evaluation
/// without any leaves an earlier file alone. Whether it can be written is found out before the work.
class ResultFile {
 public:
  explicit ResultFile(std::string path) : path_(std::move(path)) {
    if (path_.empty()) return;
    if (fs::is_directory(path_))
      throw ArgumentError(fmt::format("eval: --out {} is a directory, expected a file", path_));
    if (belongs_to_a_run(path_)) {
      throw ArgumentError(fmt::format("eval: --out {} is a file that training writes; choose another one", path_));
    }
    const bool existed = fs::exists(path_);
    if (existed && !fs::is_regular_file(path_)) return;
    open(0);
    ::close(std::exchange(fd_, -1));
    if (!existed) fs::remove(fs::canonical(path_));  // where it is a link to nothing, what it leads to, not the link
  }
  ~ResultFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;

  /// Adds a line. Where it does not fit, the lines before it stay, whole, and EnvironmentError says how much room it
  /// takes.
  void append(const EvaluationResult& result) {
    if (path_.empty()) return;
    if (fd_ < 0) open(O_TRUNC);
    const std::string line = result.json().dump() + '\n';
    for (std::string_view rest = line; !rest.empty();) {
      const ssize_t written = ::write(fd_, rest.data(), rest.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) give_up(line.size(), written < 0 ? errno : ENOSPC);
      rest.remove_prefix(static_cast<std::size_t>(written));
    }
    whole_ += line.size();
  }

 private:
  void open(int how) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | how, 0666);
    if (fd_ < 0) throw_system_error("eval: cannot write", path_, errno);
  }
  [[noreturn]] void give_up(std::size_t needed, int reason) const {
    // Part of a line goes; a pipe or a device has nothing that could be cut.
    [[maybe_unused]] const int ignored = ::ftruncate(fd_, static_cast<off_t>(whole_));
    const fs::path directory = fs::absolute(path_).parent_path();
    throw EnvironmentError(fmt::format("{} is not written any further: {} ({})", path_,
                                       std::generic_category().message(reason),
                                       room_text(needed, directory, available_on_disk(directory))));
  }

  std::string path_;
  int fd_ = -1;
  std::uint64_t whole_ = 0;  // bytes of the lines that are in it
};

int evaluate(const EvalArguments& arguments) {
  const SignalGuard signals;
  const Target target = find_target(arguments.target);
  const RunConfig config = overridden((target.run / "resolved.toml").string(), arguments.overrides);
  ResultFile file(arguments.out);
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
      file.append(result);
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
