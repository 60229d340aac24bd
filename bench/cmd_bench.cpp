#include <CLI/CLI.hpp>
#include <memory>

#include "bench/step_bench.h"
#include "bench/support/op_runner.h"
#include "train/command.h"

namespace graft::bench {
namespace {

void add_common(CLI::App* command, std::string& device, std::string& filter, std::string& json, int& threads,
                bool& list) {
  add_device_options(*command, device, threads);
  command->add_option("--filter", filter, "regular expression over names (default: all)")->type_name("REGEX");
  command->add_option("--json", json, "also write the results to this file (default: none)")->type_name("FILE");
  command->add_flag("--list", list, "print the names and stop");
}

void add(CLI::App& app, std::function<int()>& action) {
  CLI::App* bench = app.add_subcommand("bench", "time kernels and training steps");
  bench->require_subcommand(1);
  bench->footer("Example:  graft bench step --filter 12x256\nHelp on one of them:  graft bench ops --help");

  const auto ops = std::make_shared<OpRunOptions>();
  CLI::App* ops_command = bench->add_subcommand("ops", "single ops, as captured replays");
  add_common(ops_command, ops->device, ops->filter, ops->json, ops->threads, ops->list);
  ops_command->add_option("--precision", ops->precision, "only this one (default: all that an op has)")
      ->check(CLI::IsMember({"fp32", "tf32", "bf16", "fp64"}));
  ops_command->add_flag("--warm", ops->warm, "leave inputs in the caches (default: rotate them)");
  ops_command->footer("Example:  graft bench ops --filter 'attention/.*hd32' --precision bf16");
  ops_command->callback([ops, &action] { action = [ops] { return run_op_benchmarks(*ops); }; });

  const auto step = std::make_shared<StepRunOptions>();
  CLI::App* step_command = bench->add_subcommand("step", "whole training steps, sampling included");
  step_command->add_option("config", step->config, "a configuration (TOML; default: the built-in list)")
      ->type_name("FILE");
  add_common(step_command, step->device, step->filter, step->json, step->threads, step->list);
  add_override_option(*step_command, step->overrides, "train.batch=256");
  step_command->add_flag("--profile", step->profile, "also the time of each kernel, captured alone");
  step_command->footer("Example:  graft bench step --filter 12x256_T82 --profile");
  step_command->callback([step, &action] { action = [step] { return run_step_benchmarks(*step); }; });
}

const RegisterCommand registered{{"bench", add}};

}  // namespace
}  // namespace graft::bench
