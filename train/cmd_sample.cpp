#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/task.h"
#include "train/command.h"
#include "train/config.h"

namespace graft {
namespace {

struct SampleArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::int64_t count = 1;
  std::optional<std::int64_t> seed;  // none: run.seed
  bool json = false;
};

void print_json(const Task& task, const std::string& name, std::int64_t index, const Prompt& prompt) {
  nlohmann::ordered_json line;
  line["task"] = name;
  line["index"] = index;
  nlohmann::ordered_json inputs = nlohmann::ordered_json::array();
  nlohmann::ordered_json scored = nlohmann::ordered_json::array();
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    const float* x = &prompt.xs[static_cast<std::size_t>(i * prompt.dim)];
    inputs.push_back(std::vector<float>(x, x + prompt.dim));
    std::vector<float> y(static_cast<std::size_t>(prompt.dim), 0.F);
    y[0] = prompt.ys[static_cast<std::size_t>(i)];
    inputs.push_back(std::move(y));
    scored.push_back(i * task.shape().tokens_per_point);
  }
  line["inputs"] = std::move(inputs);
  line["targets"] = prompt.ys;
  line["scored"] = std::move(scored);
  line["truth"] = prompt.truth;
  fmt::print("{}\n", line.dump());
}

void print_table(std::int64_t index, const Prompt& prompt) {
  fmt::print("prompt {}: truth", index);
  for (const float value : prompt.truth) fmt::print(" {:.3f}", value);
  fmt::print("\n{:>5}  {:>9}  {}\n", "i", "y", "x");
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    fmt::print("{:>5}  {:>9.3f} ", i, prompt.ys[static_cast<std::size_t>(i)]);
    for (std::int64_t j = 0; j < prompt.dim; ++j)
      fmt::print(" {:>7.3f}", prompt.xs[static_cast<std::size_t>(i * prompt.dim + j)]);
    fmt::print("\n");
  }
}

int sample(const SampleArguments& arguments) {
  const RunConfig config = load_config(arguments.config, arguments.overrides);
  const std::unique_ptr<Task> task = make_task(config.settings);
  const std::uint64_t seed = arguments.seed ? static_cast<std::uint64_t>(*arguments.seed) : config.run.seed;
  if (!arguments.json) fmt::print("{}; training step 0 of seed {}, full length\n", task->description(), seed);
  for (std::int64_t i = 0; i < arguments.count; ++i) {
    const Prompt prompt = task->prompt(seed, RandomDomain::Train, 0, static_cast<std::uint32_t>(i));
    if (arguments.json) {
      print_json(*task, config.task, i, prompt);
    } else {
      print_table(i, prompt);
    }
  }
  return static_cast<int>(ExitCode::kDone);
}

void add(CLI::App& app, std::function<int()>& action) {
  const auto arguments = std::make_shared<SampleArguments>();
  CLI::App* command = app.add_subcommand("sample", "print prompts of a configuration's task");
  command->add_option("config", arguments->config, "configuration file (TOML)")->type_name("FILE")->required();
  add_override_option(*command, arguments->overrides, "task.dim=3");
  command->add_option("-n,--count", arguments->count, "prompts to print")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  command->add_option("--seed", arguments->seed, "seed of the prompts (default: run.seed)")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 53));
  command->add_flag("--json", arguments->json, "print one JSON object a line (default: a table)");
  command->footer("Example:  graft sample configs/quickstart.toml -n 2");
  command->callback([arguments, &action] { action = [arguments] { return sample(*arguments); }; });
}

const RegisterCommand registered{{"sample", add}};

}  // namespace
}  // namespace graft
