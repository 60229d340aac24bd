// The command line of graft. Exceptions end here: one line on stderr, and the exit code that scripts rely on.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "engine/cpu_runtime.h"
#include "engine/error.h"
#include "train/command.h"
#include "train/suggest.h"

namespace {

/// All but the last line of a message come before it, so that the output ends with "graft: error: ...".
int report(std::string_view message, graft::ExitCode code) {
  std::signal(SIGPIPE, SIG_IGN);  // the exit code is this one whether or not anybody reads the message
  while (message.ends_with('\n')) message.remove_suffix(1);
  const auto newline = message.rfind('\n');
  if (newline != std::string_view::npos) {
    graft::write_note(message.substr(0, newline));
    message.remove_prefix(newline + 1);
  }
  graft::write_note(fmt::format("graft: error: {}", message));
  return static_cast<int>(code);
}

/// A file of the run must not get the number of a standard stream that was closed: messages would land in it. What
/// stands in for the stream is opened the wrong way round, so that using it is an error as before.
void fill_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one: those below it are taken.
    if (::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) {
      ::_exit(static_cast<int>(graft::ExitCode::kEnvironment));  // there may be nowhere to say why
    }
  }
}

int run(int argc, char** argv) {
  graft::set_command_line(argc, argv);
  CLI::App app{"graft trains and studies small sequence models on in-context learning and retrieval tasks"};
  app.name("graft");
  app.require_subcommand(1);
  app.footer("Start with:  graft train configs/quickstart.toml\nHelp on a command:  graft train --help");
  std::function<int()> action;
  for (const graft::Command& command : graft::registered_commands()) command.add(app, action);
  graft::add_version_flag(app);

  if (argc > 1 && argv[1][0] != '-') {  // CLI11 would only say that a command is missing
    std::vector<std::string> names;
    for (const graft::Command& command : graft::registered_commands()) names.push_back(command.name);
    if (std::find(names.begin(), names.end(), argv[1]) == names.end()) {
      const std::string nearest = graft::nearest_name(argv[1], names);
      return report(fmt::format("unknown command \"{:.40}\"{}", argv[1],
                                nearest.empty() ? "; see graft --help" : fmt::format("; did you mean `{}`?", nearest)),
                    graft::ExitCode::kUsage);
    }
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    std::ostringstream text;  // --help, --version
    const int code = app.exit(success, text, text);
    action = [text = text.str(), code] {
      graft::write_output(text);
      return code;
    };
  } catch (const CLI::ParseError& error) {
    return report(fmt::format("{}; see graft --help", error.what()), graft::ExitCode::kUsage);
  }

  try {
    return action ? action() : 0;
  } catch (const graft::Error& error) {
    return report(error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    return report("out of host memory; use a smaller batch or model", graft::ExitCode::kEnvironment);
  } catch (const std::exception& error) {
    return report(error.what(), graft::ExitCode::kEnvironment);
  }
}

}  // namespace

int main(int argc, char** argv) {
  fill_standard_streams();
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond a limit is an error with a line, in every command
  const int code = run(argc, argv);
  if (graft::address_limit()) {
    // A thread of OpenBLAS that found no addresses for its buffer asks again for ever, and exit() would wait for it.
    std::fflush(nullptr);
    ::_exit(code);
  }
  return code;
}
