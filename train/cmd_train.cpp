#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/error.h"
#include "train/command.h"
#include "train/config.h"
#include "train/experiment.h"
#include "train/flops.h"
#include "train/progress.h"
#include "train/run_directory.h"
#include "train/run_record.h"
#include "train/signals.h"
#include "train/trainer.h"

namespace graft {
namespace {

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string device = "auto";
  std::string resume = "auto";
  std::string run_dir;
  int threads = 0;
  bool dry_run = false;
};

std::string plan_text(const Experiment& experiment, const MemoryReport& memory) {
  const RunConfig& config = experiment.config;
  const FlopsReport flops = count_flops(*experiment.model, *experiment.task, config.train.batch, config.train.steps);
  std::string text = fmt::format("task       {}\n", experiment.task->description());
  text += fmt::format("model      {} {} ({} blocks), width {}, {} parameters\n", config.model_name(),
                      experiment.model_options.pattern, experiment.model->blocks(), config.model.width,
                      count_text(static_cast<double>(experiment.params.count())));
  text +=
      fmt::format("training   {} steps of {} prompts, {}, {} lr {}, clip {}\n", config.train.steps, config.train.batch,
                  name_of(config.train.precision), config.optimizer.name, config.optimizer.lr, config.optimizer.clip);
  if (const std::int64_t epoch = experiment.task->steps_per_epoch(); epoch > 0) {
    const std::int64_t every = config.schedule.every;
    text += fmt::format("epoch      {} steps; the run has {:.6g} epochs{}\n", epoch,
                        static_cast<double>(config.train.steps) / static_cast<double>(epoch),
                        config.schedule.name == "constant" || every == epoch
                            ? ""
                            : fmt::format("; the learning rate changes every {} steps, not every epoch", every));
  }
  text += fmt::format("cost       {:.3g} FLOPs a step, {:.3g} in all\n", flops.train_step, flops.train_total);
  text +=
      fmt::format("memory     {} planned: parameters {}, gradients {}, optimizer {}, activations {}\n",
                  bytes_text(static_cast<double>(memory.total())), bytes_text(static_cast<double>(memory.parameters)),
                  bytes_text(static_cast<double>(memory.gradients)), bytes_text(static_cast<double>(memory.optimizer)),
                  bytes_text(static_cast<double>(memory.activations)));
  return text;
}

int finish(const Experiment& experiment, const RunDirectory& directory, const TrainingOutcome& outcome,
           Resume::Mode resume) {
  if (outcome.signal != 0) {
    throw InterruptedError(
        fmt::format("interrupted after step {}; saved. The same command{} continues: {}", outcome.step,
                    resume == Resume::Mode::Auto ? "" : " with --resume auto", command_line()),
        outcome.signal);
  }
  show_output(
      fmt::format("\n{}\nsteps {}  parameters' hash {:016x}  run directory {}\n",
                  summary_table(outcome.evaluation, experiment.config.model_name(), experiment.task->score_name()),
                  outcome.step, outcome.parameter_hash, directory.path().string()));
  return static_cast<int>(ExitCode::kDone);
}

/// Records how the run ended; a disk that refuses must not hide the error that ended it.
void record_end(RunDirectory& directory, ExitCode code, const std::string& message) {
  try {
    directory.finish(static_cast<int>(code), message);
  } catch (const Error& error) {
    write_note(fmt::format("graft: warning: run.json not written: {}", error.what()));
  }
}

int train(const TrainArguments& arguments) {
  const SignalGuard signals;
  const auto check_signals = [] {
    SignalGuard::check("before the first step; the same command starts again: " + command_line());
  };
  const RunConfig config = load_config(arguments.config, arguments.overrides);
  Experiment experiment(config);
  const MemoryReport memory = plan_memory_on_paper(config);

  RunOptions options = run_options(config);
  options.directory = arguments.run_dir;
  options.resume = Resume::parse(arguments.resume);

  if (arguments.dry_run) {
    write_output(fmt::format("{}\n{}directory  {}\n", options.resolved_text, plan_text(experiment, memory),
                             RunDirectory::locate(options).string()));
    return static_cast<int>(ExitCode::kDone);
  }
  RunDirectory::check(options);
  const Device device = parse_device(arguments.device, config.train.precision);
  std::optional<CheckpointData> checkpoint;
  if (options.resume.mode == Resume::Mode::Path) {
    checkpoint = CheckpointDirectory::load(options.resume.path);
    require_continuable(*checkpoint, config);  // before there is a directory for it
    require_own_state(*checkpoint, experiment);
  }

  check_signals();
  const std::unique_ptr<Session> session =
      open_training_session(experiment, memory, device, RuntimeOptions{arguments.threads});
  check_signals();
  options.info = run_info(config, *session);
  RunDirectory directory(options);
  for (const std::string& warning : directory.warnings()) write_note("graft: warning: " + warning);
  show_output(fmt::format("{}device     {}\ndirectory  {}\n\n", plan_text(experiment, memory),
                          session->runtime().device_name(), directory.path().string()));

  int status = static_cast<int>(ExitCode::kDone);
  try {
    Trainer trainer(*session, directory, stdout);
    if (!checkpoint) {
      checkpoint = load_newest_own(CheckpointDirectory(directory.checkpoints()), experiment, write_note);
    }
    if (checkpoint) {
      trainer.resume(*checkpoint, options.resume.mode == Resume::Mode::Path);
      show_output(fmt::format("continuing after step {}\n", checkpoint->step));
    } else {
      session->initialize();
    }
    const TrainingOutcome outcome = trainer.run();
    status = finish(experiment, directory, outcome, options.resume.mode);
    directory.finish(status);
  } catch (const Error& error) {
    record_end(directory, error.exit_code(), error.what());
    throw;
  } catch (const std::exception& error) {
    record_end(directory, ExitCode::kEnvironment, error.what());
    throw;
  }
  return status;
}

void add(CLI::App& app, std::function<int()>& action) {
  const auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "train a model as a configuration says");
  require_not_empty(command->add_option("config", arguments->config, "configuration file (TOML)"))
      ->type_name("FILE")
      ->required();
  add_override_option(*command, arguments->overrides, "optimizer.lr=3e-4");
  add_device_options(*command, arguments->device, arguments->threads);
  command
      ->add_option("--resume", arguments->resume, "auto: continue the run's newest checkpoint; never; or a checkpoint")
      ->capture_default_str();
  require_not_empty(
      command->add_option("--run-dir", arguments->run_dir, "the run's own directory (default: runs/<name>-<hash>)"))
      ->type_name("DIR");
  command->add_flag("--dry-run", arguments->dry_run,
                    "print the resolved configuration and its cost; touch nothing (default: off)");
  command->footer("Example:  graft train configs/quickstart.toml -o train.steps=500 --device cpu");
  command->callback([arguments, &action] { action = [arguments] { return train(*arguments); }; });
}

const RegisterCommand registered{{"train", add}};

}  // namespace
}  // namespace graft
