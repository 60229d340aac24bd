#include "train/command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "engine/error.h"
#include "engine/version.h"

namespace graft {
namespace {

std::map<std::string, Command>& commands() {
  static std::map<std::string, Command> entries;
  return entries;
}

std::string& line() {
  static std::string text;
  return text;
}

}  // namespace

RegisterCommand::RegisterCommand(Command command) {
  std::string name = command.name;
  commands().emplace(std::move(name), std::move(command));
}

std::vector<Command> registered_commands() {
  std::vector<Command> result;
  for (const auto& [name, command] : commands()) result.push_back(command);
  return result;
}

std::string version_text() {
  const BuildInfo& build = build_info();
  std::string text = fmt::format("graft {} ({}), {} {}", build.version, build.git, build.compiler, build.build_type);
  text += *build.cuda == '\0' ? std::string(", without CUDA")
                              : fmt::format(", CUDA {} for SM {}", build.cuda, build.architectures);
  return text;
}

void add_version_flag(CLI::App& app) {
  app.set_version_flag("--version", version_text, "print version, compiler and CUDA architectures, and stop");
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) add_version_flag(*command);
}

void add_override_option(CLI::App& command, std::vector<std::string>& overrides, const std::string& example) {
  command.add_option("-o,--override", overrides, fmt::format("override a key, e.g. -o {}; repeatable", example))
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->take_all();
}

CLI::Option* require_not_empty(CLI::Option* option) {
  return option->check(
      [](const std::string& text) { return text.empty() ? std::string("is empty, expected a path") : std::string(); });
}

void add_device_options(CLI::App& command, std::string& device, int& threads) {
  command.add_option("--device", device, "cpu, cuda, cuda:<index>, or auto: a GPU if there is one")
      ->type_name("NAME")
      ->capture_default_str();
  constexpr int kMostThreads = 1024;
  command.add_option("--threads", threads, "CPU threads; 0: all")
      ->capture_default_str()
      ->check(CLI::Range(0, kMostThreads));
}

bool write_output(std::string_view text) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (std::fflush(stdout) == 0 && written) return true;
  if (errno == EPIPE) return false;
  throw EnvironmentError(fmt::format("stdout cannot be written: {}", std::strerror(errno)));
}

void show_output(std::string_view text) {
  static_cast<void>(std::fwrite(text.data(), 1, text.size(), stdout));
  static_cast<void>(std::fflush(stdout));
}

void write_note(std::string_view line) {
  const std::string text = std::string(line) + '\n';  // in one piece: lines of threads must not mix
  static_cast<void>(std::fwrite(text.data(), 1, text.size(), stderr));
}

const std::string& command_line() { return line(); }

void set_command_line(int argc, char** argv) {
  line().clear();
  for (int i = 0; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool plain = !argument.empty() && argument.find_first_of(" \t\n'\"\\$`*?[](){}<>|&;!#~") == std::string::npos;
    std::string quoted = argument;
    if (!plain) {
      quoted = "'";
      for (const char c : argument) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
      quoted += "'";
    }
    line() += (i == 0 ? "" : " ") + quoted;
  }
}

}  // namespace graft
