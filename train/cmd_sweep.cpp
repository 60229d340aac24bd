#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/error.h"
#include "train/command.h"
#include "train/progress.h"
#include "train/signals.h"
#include "train/sweep_run.h"

namespace graft {
namespace {

struct SweepArguments {
  std::string file;
  std::vector<std::string> overrides;
  std::string runs_dir = "runs";
  std::string device = "auto";
  int threads = 0;
  int jobs = 1;
};

/// Width of a column that holds these texts.
std::size_t width_of(const Sweep& sweep) {
  std::size_t width = 4;
  for (const SweepPoint& point : sweep.points) width = std::max(width, point.name.size());
  return width;
}

int plan(const SweepArguments& arguments) {
  const Sweep sweep = load_sweep(arguments.file, arguments.overrides);
  const std::size_t width = width_of(sweep);
  std::string text;
  for (const SweepPoint& point : sweep.points) {
    const auto directory = directory_of(sweep, point, arguments.runs_dir);
    text += fmt::format("{:<{}}  {}  {:<12}  {}\n", point.name, width, point.hash,
                        name_of(status_of(point, directory).state), directory.string());
  }
  write_output(text);
  return static_cast<int>(ExitCode::kDone);
}

std::string number(double value) { return std::isfinite(value) ? fmt::format("{:.4g}", value) : "-"; }

int status(const SweepArguments& arguments) {
  const Sweep sweep = load_sweep(arguments.file, arguments.overrides);
  const std::size_t width = width_of(sweep);
  const bool rule =
      std::any_of(sweep.points.begin(), sweep.points.end(), [](const SweepPoint& point) { return point.stop.given(); });
  std::string text = fmt::format("{:<{}}  {:<12}  {:>17}  {:>8}  {:>9}  {:>9}{}\n", "run", width, "state", "step",
                                 "ETA", "eval step", "eval mean", rule ? "  stop mean" : "");
  std::size_t done = 0;
  for (const SweepPoint& point : sweep.points) {
    const RunStatus now = status_of(point, directory_of(sweep, point, arguments.runs_dir));
    done += now.state == RunState::Done ? 1 : 0;
    const bool known = now.evaluated.has_value();
    text += fmt::format(
        "{:<{}}  {:<12}  {:>17}  {:>8}  {:>9}  {:>9}", point.name, width, name_of(now.state),
        now.state == RunState::NotStarted ? "-" : fmt::format("{}/{}", now.step, point.steps),
        now.state == RunState::Running && !std::isnan(now.seconds_left) ? duration_text(now.seconds_left) : "-",
        known ? fmt::format("{}", *now.evaluated) : "-", known ? number(now.mean) : "-");
    if (rule) text += fmt::format("  {:>9}", known && point.stop.given() ? number(now.stop_value) : "-");
    if (!now.message.empty()) text += "  " + now.message;
    text += "\n";
  }
  text += fmt::format("{} of {} runs done\n", done, sweep.points.size());
  write_output(text);
  return static_cast<int>(ExitCode::kDone);
}

int run(const SweepArguments& arguments) {
  const Sweep sweep = load_sweep(arguments.file, arguments.overrides);
  const SignalGuard signals;
  SweepOptions options;
  options.root = arguments.runs_dir;
  options.device = arguments.device;
  options.jobs = arguments.jobs;
  options.threads = arguments.threads;
  const SweepReport report = run_sweep(sweep, options);

  std::vector<const SweepOutcome*> failed;
  std::size_t finished = report.done_before;
  for (const SweepOutcome& outcome : report.outcomes) {
    if (!outcome.error.empty()) {
      failed.push_back(&outcome);
    } else if (outcome.training.signal == 0) {
      ++finished;
    }
  }
  show_output(fmt::format("{} of {} runs done, {} of them before{}\n", finished, sweep.points.size(),
                          report.done_before, failed.empty() ? "" : fmt::format(", {} failed", failed.size())));
  for (const SweepOutcome* outcome : failed) {
    write_note(fmt::format("{}: {}", directory_of(sweep, *outcome->point, options.root).string(), outcome->error));
  }
  if (report.signal != 0) {
    throw InterruptedError(
        fmt::format("interrupted with {} of {} runs done; the others are saved. The same command continues: {}",
                    finished, sweep.points.size(), command_line()),
        report.signal);
  }
  if (!failed.empty()) {
    throw Error(fmt::format("{} of {} runs failed, {} first; the same command tries them again", failed.size(),
                            sweep.points.size(), failed.front()->point->name),
                failed.front()->code);
  }
  return static_cast<int>(ExitCode::kDone);
}

using Action = int (*)(const SweepArguments&);

CLI::App* add_action(CLI::App& sweep, const char* name, const char* doc, Action function,
                     const std::shared_ptr<SweepArguments>& arguments, std::function<int()>& action) {
  CLI::App* command = sweep.add_subcommand(name, doc);
  command->add_option("sweep", arguments->file, "sweep file (TOML)")->type_name("FILE")->required();
  command->add_option("--runs-dir", arguments->runs_dir, "runs lie in DIR/<sweep's name>/<run>")
      ->type_name("DIR")
      ->capture_default_str();
  add_override_option(*command, arguments->overrides, "train.steps=1000");
  command->callback(
      [arguments, function, &action] { action = [arguments, function] { return function(*arguments); }; });
  return command;
}

void add(CLI::App& app, std::function<int()>& action) {
  const auto arguments = std::make_shared<SweepArguments>();
  CLI::App* sweep = app.add_subcommand("sweep", "grids of runs over one configuration");
  sweep->require_subcommand(1);
  sweep->footer("Example:  graft sweep run configs/icl/short/fig3a_fig5_parity.sweep.toml --jobs 4");
  add_action(*sweep, "plan", "list the runs, each with its hash, state and directory; writes nothing", plan, arguments,
             action)
      ->footer("Example:  graft sweep plan configs/icl/short/fig3a_fig5_parity.sweep.toml");
  add_action(*sweep, "status", "how far the runs are, with the last evaluation of each", status, arguments, action)
      ->footer("Example:  graft sweep status configs/icl/short/fig3a_fig5_parity.sweep.toml");
  CLI::App* command = add_action(*sweep, "run", "run what is not done; unfinished runs go on from their checkpoints",
                                 run, arguments, action);
  constexpr int kMostJobs = 256;
  command->add_option("--jobs", arguments->jobs, "runs at once, on one device")
      ->type_name("K")
      ->capture_default_str()
      ->check(CLI::Range(1, kMostJobs));
  add_device_options(*command, arguments->device, arguments->threads);
  command->footer("Example:  graft sweep run configs/icl/short/fig3a_fig5_parity.sweep.toml --jobs 4");
}

const RegisterCommand registered{{"sweep", add}};

}  // namespace
}  // namespace graft
