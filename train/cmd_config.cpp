#include "train/cmd_config.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "engine/error.h"
#include "train/command.h"
#include "train/config.h"
#include "train/config_schema.h"

namespace graft {
namespace {

int check(const std::string& file, const std::vector<std::string>& overrides, bool resolved) {
  const RunConfig config = load_config(file, overrides);
  if (resolved) {
    write_output(resolved_toml(config));
    return static_cast<int>(ExitCode::kDone);
  }
  write_output(fmt::format("ok: {}: {} with {}, {} steps of {} prompts, hash {}\n", file, config.task,
                           config.model_name(), config.train.steps, config.train.batch, config_hash8(config)));
  return static_cast<int>(ExitCode::kDone);
}

std::string list_keys(const Schema& schema, const std::string& table) {
  std::string text;
  for (const Schema::Declaration& declaration : schema.all()) {
    const SettingKey& key = *declaration.key;
    if (!table.empty() && key.table() != table && !key.table().starts_with(table + ".")) continue;
    const std::string owner = declaration.group == nullptr || declaration.group->owner.empty()
                                  ? std::string()
                                  : fmt::format(" (with {} = {})", selector_of(declaration.group->table),
                                                quoted_text(declaration.group->owner));
    text += fmt::format("{:<34} {}; {}{}\n", key.path, key.expected(), key.default_text(), owner);
  }
  return text;
}

int explain(const std::string& key) {
  const Schema schema;
  if (key.empty() || schema.is_table(key)) {
    write_output(list_keys(schema, key));
    return static_cast<int>(ExitCode::kDone);
  }
  const std::string text = explain_key(schema, key);
  if (text.empty()) {
    const std::string nearest = nearest_key(key, schema.candidates({}));
    throw ConfigError(fmt::format(
        "config explain: unknown key {}{}", quoted_text(key),
        nearest.empty() ? "; `graft config explain` lists all keys" : fmt::format("; did you mean `{}`?", nearest)));
  }
  write_output(text);
  return static_cast<int>(ExitCode::kDone);
}

}  // namespace

void add_config_command(CLI::App& app, std::function<int()>& action) {
  struct Arguments {
    std::string file, key;
    std::vector<std::string> overrides;
    bool resolved = false;
  };
  // Shared by the callbacks, which run after this function has returned.
  const auto arguments = std::make_shared<Arguments>();

  CLI::App* config = app.add_subcommand("config", "check a configuration, explain keys, print the schema");
  config->require_subcommand(1);
  config->footer("Example:  graft config explain optimizer.lr\nHelp on one of them:  graft config check --help");

  CLI::App* check_command = config->add_subcommand("check", "read a configuration and report every mistake in it");
  check_command->add_option("FILE", arguments->file, "the TOML file")->required();
  add_override_option(*check_command, arguments->overrides, "optimizer.lr=3e-4");
  check_command->add_flag("--resolved", arguments->resolved,
                          "print the configuration with every default filled in (default: one line)");
  check_command->footer("Example:  graft config check configs/quickstart.toml -o model.layers=6");
  check_command->callback([arguments, &action] {
    action = [arguments] { return check(arguments->file, arguments->overrides, arguments->resolved); };
  });

  CLI::App* explain_command = config->add_subcommand("explain", "what a key means, takes and defaults to");
  explain_command->add_option("KEY", arguments->key, "a key (optimizer.lr), a table (optimizer), or nothing for all");
  explain_command->footer("Example:  graft config explain schedule.total");
  explain_command->callback([arguments, &action] { action = [arguments] { return explain(arguments->key); }; });

  CLI::App* schema_command =
      config->add_subcommand("schema", "the JSON Schema (draft 7) of configurations, for editors");
  schema_command->footer("Example:  graft config schema > graft.schema.json");
  schema_command->callback([&action] {
    action = [] {
      write_output(json_schema(Schema()) + "\n");
      return static_cast<int>(ExitCode::kDone);
    };
  });
}

namespace {

const RegisterCommand registered{{"config", add_config_command}};

}  // namespace
}  // namespace graft
