#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/error.h"
#include "train/command.h"
#include "train/config.h"
#include "train/experiment.h"
#include "train/flops.h"
#include "train/progress.h"

namespace graft {
namespace {

struct InspectArguments {
  std::string config;
  std::vector<std::string> overrides;
  bool json = false;
};

nlohmann::ordered_json flops_json(const FlopsReport& flops) {
  return {{"forward_per_sequence", flops.forward_per_sequence},
          {"train_step", flops.train_step},
          {"train_total", flops.train_total}};
}

/// The module a parameter belongs to: "blocks.3.attention" of "blocks.3.attention.qkv.weight", else the first part.
std::string module_of(const std::string& name) {
  std::size_t end = name.find('.');
  if (name.starts_with("blocks.")) {
    end = name.find('.', end + 1);
    if (end != std::string::npos) end = name.find('.', end + 1);
  }
  return name.substr(0, end);
}

int inspect(const InspectArguments& arguments) {
  const RunConfig config = load_config(arguments.config, arguments.overrides);
  const Experiment experiment(config);
  const MemoryReport memory = plan_memory_on_paper(config);
  std::int64_t backbone = 0;
  std::int64_t without_embeddings = 0;
  std::vector<std::pair<std::string, std::int64_t>> modules;  // in order of the model
  for (const ParameterStore::Entry& entry : experiment.params.entries()) {
    const std::int64_t count = entry.shape.elements();
    if (entry.name.starts_with("blocks.") || entry.name.starts_with("final_norm.")) backbone += count;
    if (!entry.options.embedding) without_embeddings += count;
    const std::string module = module_of(entry.name);
    if (modules.empty() || modules.back().first != module) modules.emplace_back(module, 0);
    modules.back().second += count;
  }
  const auto flops = [&](bool causal) {
    return count_flops(*experiment.model, *experiment.task, config.train.batch, config.train.steps, causal);
  };

  if (arguments.json) {
    nlohmann::ordered_json out;
    out["parameters"] = experiment.params.count();
    out["parameters_backbone"] = backbone;
    out["parameters_without_embeddings"] = without_embeddings;
    out["blocks"] = experiment.model->blocks();
    out["pattern"] = experiment.model_options.pattern;
    out["flops"] = flops_json(flops(false));
    out["flops_causal"] = flops_json(flops(true));
    out["memory"] = {{"parameters", memory.parameters},
                     {"gradients", memory.gradients},
                     {"optimizer", memory.optimizer},
                     {"activations", memory.activations}};
    for (const auto& [name, count] : modules) out["modules"][name] = count;
    write_output(out.dump(2) + "\n");
    return static_cast<int>(ExitCode::kDone);
  }
  std::string text = fmt::format("{}\npattern {}\n\n{:<32} {:>14}\n", experiment.task->description(),
                                 experiment.model_options.pattern, "module", "parameters");
  for (const auto& [name, count] : modules) text += fmt::format("{:<32} {:>14}\n", name, count);
  text += fmt::format("{:<32} {:>14}\n{:<32} {:>14}\n{:<32} {:>14}\n", "blocks and final norm", backbone,
                      "without embeddings", without_embeddings, "all", experiment.params.count());
  const FlopsReport dense = flops(false);
  text += fmt::format("\nFLOPs      {:.4g} forward a sequence, {:.4g} a training step, {:.4g} in all ({} steps)\n",
                      dense.forward_per_sequence, dense.train_step, dense.train_total, config.train.steps);
  text +=
      fmt::format("memory     parameters {}, gradients {}, optimizer {}, activations {} ({})\n",
                  bytes_text(static_cast<double>(memory.parameters)), bytes_text(static_cast<double>(memory.gradients)),
                  bytes_text(static_cast<double>(memory.optimizer)),
                  bytes_text(static_cast<double>(memory.activations)), name_of(config.train.precision));
  write_output(text);
  return static_cast<int>(ExitCode::kDone);
}

void add(CLI::App& app, std::function<int()>& action) {
  const auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = app.add_subcommand("inspect", "parameters, FLOPs and memory of a configuration; needs no GPU");
  command->add_option("config", arguments->config, "configuration file (TOML)")->type_name("FILE")->required();
  add_override_option(*command, arguments->overrides, "model.layers=6");
  command->add_flag("--json", arguments->json, "print one JSON object (default: a table)");
  command->footer("Example:  graft inspect configs/icl/linear_regression.toml -o model.width=256");
  command->callback([arguments, &action] { action = [arguments] { return inspect(*arguments); }; });
}

const RegisterCommand registered{{"inspect", add}};

}  // namespace
}  // namespace graft
