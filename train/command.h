#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

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

/// The arguments of this process, quoted where a shell needs it; set by main, recorded with runs.
[[nodiscard]] const std::string& command_line();
void set_command_line(int argc, char** argv);

}  // namespace graft
