#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/task.h"
#include "train/command.h"
#include "train/config.h"
#include "train/signals.h"

namespace graft {
namespace {

struct SampleArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::int64_t count = 1;
  std::optional<std::int64_t> seed;  // none: run.seed
  bool json = false;
};

std::vector<float> row_of(const std::vector<float>& matrix, std::int64_t width, std::int64_t row) {
  const auto first = matrix.begin() + static_cast<std::ptrdiff_t>(row * width);
  return {first, first + static_cast<std::ptrdiff_t>(width)};
}

std::vector<float> y_token(const Prompt& prompt, std::int64_t i) {
  if (!prompt.y_vectors.empty()) return row_of(prompt.y_vectors, prompt.dim, i);
  std::vector<float> y(static_cast<std::size_t>(prompt.dim), 0.F);
  y[0] = prompt.ys[static_cast<std::size_t>(i)];
  return y;
}

bool counts(const Prompt& prompt, std::int64_t i) {
  return prompt.scored_points.empty() || prompt.scored_points[static_cast<std::size_t>(i)] != 0;
}

std::string numbers_text(const std::vector<float>& values) {
  std::string text;
  for (const float value : values) text += fmt::format(" {:>7.3f}", value);
  return text;
}

std::string json_text(const Task& task, const std::string& name, std::int64_t index, const Prompt& prompt) {
  nlohmann::ordered_json line;
  line["task"] = name;
  line["index"] = index;
  if (!prompt.ids.empty()) {
    line["ids"] = prompt.ids;
    std::vector<std::int32_t> targets;
    for (const std::int32_t position : prompt.scored) {
      targets.push_back(prompt.ids[static_cast<std::size_t>(position) + 1]);
    }
    line["targets"] = std::move(targets);
    line["scored"] = prompt.scored;
    line["truth"] = prompt.truth;
    return line.dump() + "\n";
  }
  if (!prompt.inputs.empty()) {
    line["inputs"] = prompt.inputs;
    line["targets"] = prompt.targets;
    line["scored"] = prompt.scored;
    line["truth"] = prompt.truth;
    return line.dump() + "\n";
  }
  nlohmann::ordered_json inputs = nlohmann::ordered_json::array();
  nlohmann::ordered_json targets = nlohmann::ordered_json::array();
  nlohmann::ordered_json scored = nlohmann::ordered_json::array();
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    inputs.push_back(row_of(prompt.xs, prompt.dim, i));
    inputs.push_back(y_token(prompt, i));
    if (!counts(prompt, i)) continue;
    targets.push_back(prompt.ys[static_cast<std::size_t>(i)]);
    scored.push_back(i * task.shape().tokens_per_point);
  }
  line["inputs"] = std::move(inputs);
  line["targets"] = std::move(targets);
  line["scored"] = std::move(scored);
  line["truth"] = prompt.truth;
  return line.dump() + "\n";
}

std::string ids_text(const Task& task, std::int64_t index, const Prompt& prompt) {
  std::string text = fmt::format("prompt {}:", index);
  std::size_t next = 0;  // of the scored positions
  for (std::size_t i = 0; i < prompt.ids.size(); ++i) {
    const bool target = next < prompt.scored.size() && static_cast<std::size_t>(prompt.scored[next]) + 1 == i;
    if (target) ++next;
    const std::string name = task.token_name(prompt.ids[i]);
    text += target ? fmt::format(" [{}]", name) : " " + name;
  }
  return text + "\n";
}

std::string inputs_text(const Task& task, std::int64_t index, const Prompt& prompt) {
  std::string text = fmt::format("prompt {}: {}\n{:>5}  token\n", index, task.truth_text(prompt), "i");
  std::size_t next = 0;  // of the scored positions
  for (std::size_t i = 0; i < prompt.inputs.size(); ++i) {
    text += fmt::format("{:>5}  {}\n", i, numbers_text(prompt.inputs[i]));
    if (next < prompt.scored.size() && static_cast<std::size_t>(prompt.scored[next]) == i) {
      text += fmt::format("{:>5}  {}\n", "->", numbers_text(prompt.targets[next++]));
    }
  }
  return text;
}

std::string points_text(const Task& task, std::int64_t index, const Prompt& prompt) {
  std::string text = fmt::format("prompt {}: {}\n{:>5}  {:>9}  {}\n", index, task.truth_text(prompt), "i", "y", "x");
  for (std::int64_t i = 0; i < prompt.points; ++i) {
    const std::vector<float> y = y_token(prompt, i);
    const bool vector = std::any_of(y.begin() + 1, y.end(), [](float value) { return value != 0; });
    text += fmt::format("{:>5}  {:>9}  {}{}\n", i, vector ? "vector" : fmt::format("{:.3f}", y[0]),
                        numbers_text(row_of(prompt.xs, prompt.dim, i)), counts(prompt, i) ? "" : "  outlier");
    if (vector) text += fmt::format("{:>5}  {:>9}  {}\n", "", "y =", numbers_text(y));
  }
  return text;
}

std::string table_text(const Task& task, std::int64_t index, const Prompt& prompt) {
  if (!prompt.ids.empty()) return ids_text(task, index, prompt);
  return prompt.inputs.empty() ? points_text(task, index, prompt) : inputs_text(task, index, prompt);
}

int sample(const SampleArguments& arguments) {
  const RunConfig config = load_config(arguments.config, arguments.overrides);
  const std::unique_ptr<Task> task = make_task(config.settings);
  const std::uint64_t seed = arguments.seed ? static_cast<std::uint64_t>(*arguments.seed) : config.run.seed;
  const SignalGuard signals;
  bool read = true;  // a reader who has seen enough, like head, is no error
  if (!arguments.json) {
    read = write_output(fmt::format("{}; training step 0 of seed {}, full length{}\n", task->description(), seed,
                                    task->shape().vocabulary > 0 ? "; [targets] in brackets" : ""));
  }
  for (std::int64_t i = 0; i < arguments.count && read; ++i) {
    SignalGuard::check(fmt::format("after {} of {} prompts; -n prints fewer", i, arguments.count));
    const Prompt prompt = task->prompt(seed, RandomDomain::Train, 0, static_cast<std::uint32_t>(i));
    read = write_output(arguments.json ? json_text(*task, config.task, i, prompt) : table_text(*task, i, prompt));
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
