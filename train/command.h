#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace graft {

/// A command of the program: `add` puts its subcommand into the parser and, if it was chosen, leaves in `action` what
/// main runs after parsing; the action returns the exit code.
struct Command {
  std::string name;
  void (*add)(CLI::App& app, std::function<int()>& action);
};

/// Adds a command when the file that holds it is loaded.
struct RegisterCommand {
  explicit RegisterCommand(Command command);
};

/// All commands, sorted by name.
[[nodiscard]] std::vector<Command> registered_commands();

/// "graft 0.1.0 (1a2b3c4), gcc 12.2 Release, CUDA 13.0 for SM 90a".
[[nodiscard]] std::string version_text();
/// --version for the program and every subcommand.
void add_version_flag(CLI::App& app);

/// -o KEY=VALUE, repeatable, for commands that read a configuration; `example` is one that makes sense there.
void add_override_option(CLI::App& command, std::vector<std::string>& overrides, const std::string& example);
/// For an option or argument that is a path: an empty one, as from a variable that is not set, is a usage error.
/// Returns `option`.
CLI::Option* require_not_empty(CLI::Option* option);
/// --device and --threads, for commands that compute.
void add_device_options(CLI::App& command, std::string& device, int& threads);

/// Writes to stdout and flushes. False if whoever read it is gone, which under a SignalGuard does not end the process;
/// throws EnvironmentError where the text cannot be written otherwise.
bool write_output(std::string_view text);
/// The same for what goes on whether or not anybody reads it or it can be written.
void show_output(std::string_view text);
/// Writes a line to stderr, whether or not anybody reads it; from any thread.
void write_note(std::string_view line);

/// The arguments of this process, quoted where a shell needs it; set by main, recorded with runs.
[[nodiscard]] const std::string& command_line();
void set_command_line(int argc, char** argv);

}  // namespace graft
