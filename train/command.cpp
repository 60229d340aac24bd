#include "train/command.h"

#include <map>
#include <utility>

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
