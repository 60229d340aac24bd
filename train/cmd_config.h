#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace graft {

/// Adds `graft config check|explain|schema`. When one of them is on the command line, parsing leaves in `action` what
/// main has to run; its result is the exit code. A wrong configuration is thrown as ConfigError.
void add_config_command(CLI::App& app, std::function<int()>& action);

}  // namespace graft
