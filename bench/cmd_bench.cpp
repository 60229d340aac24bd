#include <CLI/CLI.hpp>
#include <memory>

#include "bench/step_bench.h"
#include "bench/support/op_runner.h"
#include "train/command.h"

namespace graft::bench {
namespace {

void add_common(CLI::App* command, std::string& device, std::string& filter, std::string& json, int& threads,
                bool& list) {
  command->add_option("--device", device, "cpu, cuda, cuda:<index>, or auto: a GPU if there is one")
      ->capture_default_str();
  command->add_option("--filter", filter, "regular expression over names");
  command->add_option("--json", json, "write the results to this file");
  command->add_option("--threads", threads, "CPU threads, 1-1024; 0: all")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command->add_flag("--list", list, "print the names and stop");
}

void add(CLI::App& app, std::function<int()>& action) {
  CLI::App* bench = app.add_subcommand("bench", "time kernels and training steps");
  bench->require_subcommand(1);

  const auto ops = std::make_shared<OpRunOptions>();
  CLI::App* ops_command = bench->add_subcommand("ops", "single ops, as captured replays");
  add_common(ops_command, ops->device, ops->filter, ops->json, ops->threads, ops->list);
  ops_command->add_option("--precision", ops->precision, "only this one")
      ->check(CLI::IsMember({"fp32", "tf32", "bf16", "fp64"}));
  ops_command->add_flag("--warm", ops->warm, "leave inputs in the caches");
  ops_command->footer("Example:  graft bench ops --filter 'attention/.*hd32' --precision bf16");
  ops_command->callback([ops, &action] { action = [ops] { return run_op_benchmarks(*ops); }; });

  const auto step = std::make_shared<StepRunOptions>();
  CLI::App* step_command = bench->add_subcommand("step", "whole training steps, sampling included");
  step_command->add_option("config", step->config, "a configuration instead of the built-in list");
  add_common(step_command, step->device, step->filter, step->json, step->threads, step->list);
  step_command->add_option("-o,--override", step->overrides, "override a key, e.g. -o train.batch=256; repeatable")
      ->allow_extra_args(false);
  step_command->add_flag("--profile", step->profile, "also the time of each kernel, captured alone");
  step_command->footer("Example:  graft bench step --filter 12x256_T82 --profile");
  step_command->callback([step, &action] { action = [step] { return run_step_benchmarks(*step); }; });
}

const RegisterCommand registered{{"bench", add}};

}  // namespace
}  // namespace graft::bench
