#include "train/signals.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <string_view>

namespace graft {
namespace {

std::atomic<int> received_signal = 0;  // the handler runs on whichever thread the system chooses
static_assert(std::atomic<int>::is_always_lock_free);
int guards = 0;
constexpr std::array<int, 4> kSignals = {SIGHUP, SIGTERM, SIGINT, SIGXCPU};
std::array<struct sigaction, kSignals.size()> previous_actions;
struct sigaction previous_pipe_action;
struct sigaction previous_file_size_action;

void on_signal(int signal) {
  if (signal == SIGINT && received_signal != 0) {
    constexpr std::string_view kText =
        "\ngraft: error: stopped at once, without saving; what was on the disk before is intact, and the same command "
        "starts from it\n";
    static_cast<void>(!write(STDERR_FILENO, kText.data(), kText.size()));
    _exit(128 + SIGINT);
  }
  received_signal = signal;
}

}  // namespace

ExitCode interrupted_code(int signal) {
  switch (signal) {
    case SIGHUP:
      return ExitCode::kHungUp;
    case SIGTERM:
      return ExitCode::kTerminated;
    case SIGXCPU:
      return ExitCode::kOutOfProcessorTime;
    default:
      return ExitCode::kInterrupted;
  }
}

const char* signal_name(int signal) {
  switch (signal) {
    case SIGHUP:
      return "SIGHUP";
    case SIGTERM:
      return "SIGTERM";
    case SIGXCPU:
      return "SIGXCPU";
    default:
      return "SIGINT";
  }
}

SignalGuard::SignalGuard() {
  if (guards++ > 0) return;
  received_signal = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // a write that is under way goes on
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &previous_actions[i]);
    // nohup: whoever started it wants it to outlive the terminal.
    if (kSignals[i] == SIGHUP && previous_actions[i].sa_handler == SIG_IGN) continue;
    sigaction(kSignals[i], &action, nullptr);
  }
  // Whoever read the progress may leave, and a write beyond a limit is an error like any other; the run goes on.
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &previous_pipe_action);
  sigaction(SIGXFSZ, &ignore, &previous_file_size_action);
}

SignalGuard::~SignalGuard() {
  if (--guards > 0) return;
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
  sigaction(SIGPIPE, &previous_pipe_action, nullptr);
  sigaction(SIGXFSZ, &previous_file_size_action, nullptr);
  received_signal = 0;
}

int SignalGuard::received() { return received_signal; }

void SignalGuard::check(const std::string& what) {
  if (const int signal = received(); signal != 0) throw InterruptedError("interrupted " + what, signal);
}

}  // namespace graft
