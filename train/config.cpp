#include "train/config.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "engine/error.h"
#include "train/config_check.h"
#include "train/config_file.h"
#include "train/config_schema.h"

namespace graft {
namespace {

Precision precision_of(const std::string& name) {
  if (name == "tf32") return Precision::Tf32;
  if (name == "bf16") return Precision::Bf16;
  if (name == "fp64") return Precision::Fp64;
  return Precision::Fp32;  // the schema lets nothing else through
}

std::string text_or_empty(const Settings& settings, std::string_view path) {
  return settings.has(path) ? settings.text(path) : std::string();
}

RunConfig structs_from(Settings settings) {
  RunConfig config;
  const Settings& s = settings;
  config.run.name = s.text("run.name");
  config.run.seed = static_cast<std::uint64_t>(s.integer("run.seed"));
  config.run.deterministic = s.boolean("run.deterministic");
  config.task = s.text("task.name");
  config.model.preset = text_or_empty(s, "model.preset");
  config.model.pattern = text_or_empty(s, "model.pattern");
  config.model.width = s.integer("model.width");
  if (s.has("model.layers")) config.model.layers = s.integer("model.layers");
  config.model.heads = s.integer("model.heads");
  config.model.state = s.integer("model.state");
  config.model.mlp_ratio = s.integer("model.mlp_ratio");
  if (s.has("model.positions")) config.model.positions = s.boolean("model.positions");
  config.optimizer.name = s.text("optimizer.name");
  config.optimizer.lr = s.number("optimizer.lr");
  config.optimizer.beta1 = s.number("optimizer.beta1");
  config.optimizer.beta2 = s.number("optimizer.beta2");
  config.optimizer.eps = s.number("optimizer.eps");
  config.optimizer.weight_decay = s.number("optimizer.weight_decay");
  config.optimizer.clip = s.number("optimizer.clip");
  config.schedule.name = s.text("schedule.name");
  config.schedule.warmup = s.integer("schedule.warmup");
  config.schedule.total = s.integer("schedule.total");
  config.schedule.final = s.number("schedule.final");
  config.schedule.every = s.integer("schedule.every");
  config.train.batch = s.integer("train.batch");
  config.train.steps = s.integer("train.steps");
  config.train.precision = precision_of(s.text("train.precision"));
  config.train.capture = s.boolean("train.capture");
  config.train.recompute = s.boolean("train.recompute");
  config.train.log_every = s.integer("train.log_every");
  config.eval.every = s.integer("eval.every");
  config.eval.prompts = s.integer("eval.prompts");
  config.eval.batch = s.integer("eval.batch");
  config.eval.bootstrap = s.integer("eval.bootstrap");
  config.eval.suites = s.texts("eval.suites");
  config.eval.baselines = s.texts("eval.baselines");
  config.eval.baseline_prompts = s.integer("eval.baseline_prompts");
  config.eval.baseline_positions = s.integer("eval.baseline_positions");
  if (s.has("eval.stop_above")) config.eval.stop_above = s.number("eval.stop_above");
  if (s.has("eval.stop_below")) config.eval.stop_below = s.number("eval.stop_below");
  if (s.has("eval.stop_from")) config.eval.stop_from = s.integer("eval.stop_from");
  if (s.has("eval.stop_to")) config.eval.stop_to = s.integer("eval.stop_to");
  config.checkpoint.every = s.integer("checkpoint.every");
  config.checkpoint.keep = s.integer("checkpoint.keep");
  config.checkpoint.keep_every = s.integer("checkpoint.keep_every");
  config.dist.ranks = s.integer("dist.ranks");
  config.settings = std::move(settings);
  return config;
}

std::string stem_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.ends_with(".toml")) name.resize(name.size() - 5);
  return name;
}

RunConfig config_from(const RawConfig& raw, const std::vector<RawOverride>& overrides, std::string_view text,
                      const std::string& label) {
  RunConfig config = structs_from(check_config(Schema(), raw, overrides, text, label, stem_of(label)));
  config.path = label;
  config.text = std::string(text);
  return config;
}

/// `falling`: whether the learning rate falls after the warm-up, so that schedule.total, final and every count.
bool in_identity(const std::string& path, bool falling) {
  for (const std::string_view table : {"eval.", "checkpoint.", "dist."}) {
    if (path.starts_with(table)) return false;
  }
  if (path == "run.name" || path == "train.steps" || path == "train.recompute") return false;
  return falling || (path != "schedule.total" && path != "schedule.final" && path != "schedule.every");
}

bool has_falling_schedule(const Settings& settings) { return settings.text("schedule.name") != "constant"; }

using ValueTexts = std::map<std::string, std::string>;  // values as TOML, by path

ValueTexts identity_values(const Settings& settings) {
  const bool falling = has_falling_schedule(settings);
  ValueTexts values;
  for (const auto& [path, entry] : settings.entries()) {
    if (in_identity(path, falling)) values[path] = toml_text(entry.value);
  }
  return values;
}

/// Reads what canonical_text() wrote: a "[table]" or a "name = value" a line.
ValueTexts identity_values(std::string_view text) {
  ValueTexts values;
  std::string table;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.starts_with('[') && line.ends_with(']')) {
      table = std::string(line.substr(1, line.size() - 2));
    } else if (const std::size_t equals = line.find(" = "); equals != std::string_view::npos) {
      values[fmt::format("{}.{}", table, line.substr(0, equals))] = std::string(line.substr(equals + 3));
    }
  }
  const bool falling = values["schedule.name"] != "\"constant\"";
  std::erase_if(values, [&](const auto& entry) { return entry.second.empty() || !in_identity(entry.first, falling); });
  return values;
}

std::vector<std::string> differences(const ValueTexts& before, const ValueTexts& now) {
  std::map<std::string, std::array<std::string, 2>> sides;
  for (const auto& [path, value] : before) sides[path][0] = value;
  for (const auto& [path, value] : now) sides[path][1] = value;
  std::vector<std::string> list;
  for (const auto& [path, values] : sides) {
    if (values[0] == values[1]) continue;
    list.push_back(fmt::format("{}: {}, now {}", path, values[0].empty() ? "not set" : values[0],
                               values[1].empty() ? "not set" : values[1]));
  }
  return list;
}

/// Keys grouped by table. A table's own keys come before its sub-tables, since a map sorts "task" before
/// "task.curriculum".
template <class Keep>
std::string canonical_text(const Settings& settings, const Keep& keep) {
  std::map<std::string, std::map<std::string, std::string>> tables;
  for (const auto& [path, entry] : settings.entries()) {
    if (!keep(path)) continue;
    const std::size_t dot = path.rfind('.');
    tables[path.substr(0, dot)][path.substr(dot + 1)] = toml_text(entry.value);
  }
  std::string text;
  for (const auto& [table, keys] : tables) {
    text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", table);
    for (const auto& [name, value] : keys) text += fmt::format("{} = {}\n", name, value);
  }
  return text;
}

}  // namespace

RunConfig parse_config(std::string_view text, const std::string& label, const std::vector<std::string>& overrides) {
  RawConfig raw = parse_toml(text, label);
  std::vector<RawOverride> parsed;
  parsed.reserve(overrides.size());
  for (const std::string& argument : overrides) {
    if (auto entry = parse_override(argument, raw.mistakes)) parsed.push_back(std::move(*entry));
  }
  return config_from(raw, parsed, text, label);
}

RunConfig parse_config_with(std::string_view text, const std::string& label,
                            const std::vector<RawOverride>& overrides) {
  return config_from(parse_toml(text, label), overrides, text, label);
}

RunConfig load_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_config(read_config_file(path), path, overrides);
}

std::string resolved_toml(const RunConfig& config) {
  return canonical_text(config.settings, [](const std::string&) { return true; });
}

std::string identity_toml(const RunConfig& config) {
  const bool falling = has_falling_schedule(config.settings);
  return canonical_text(config.settings, [&](const std::string& path) { return in_identity(path, falling); });
}

std::string config_hash8(const RunConfig& config) {
  const std::string text = identity_toml(config);
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size())).substr(0, 8);
}

std::vector<std::string> identity_differences(const RunConfig& before, const RunConfig& now) {
  return differences(identity_values(before.settings), identity_values(now.settings));
}

std::vector<std::string> identity_differences(std::string_view before, std::string_view now) {
  return differences(identity_values(before), identity_values(now));
}

}  // namespace graft
