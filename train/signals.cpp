#include "train/signals.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string_view>

namespace graft {
namespace {

std::atomic<int> received_signal = 0;  // the handler runs on whichever thread the system chooses
static_assert(std::atomic<int>::is_always_lock_free);
int guards = 0;
struct Interruption {
  int signal;
  const char* name;
  ExitCode code;
};
constexpr std::array<Interruption, 4> kInterruptions = {{{SIGINT, "SIGINT", ExitCode::kInterrupted},
                                                         {SIGTERM, "SIGTERM", ExitCode::kTerminated},
                                                         {SIGHUP, "SIGHUP", ExitCode::kHungUp},
                                                         {SIGXCPU, "SIGXCPU", ExitCode::kOutOfProcessorTime}}};
std::array<struct sigaction, kInterruptions.size()> previous_actions;
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

const Interruption& interruption_by(int signal) {
  const auto* found = std::find_if(kInterruptions.begin(), kInterruptions.end(),
                                   [&](const Interruption& each) { return each.signal == signal; });
  return found == kInterruptions.end() ? kInterruptions.front() : *found;
}

}  // namespace

ExitCode interrupted_code(int signal) { return interruption_by(signal).code; }

const char* signal_name(int signal) { return interruption_by(signal).name; }

bool is_interruption(ExitCode code) {
  return std::any_of(kInterruptions.begin(), kInterruptions.end(),
                     [&](const Interruption& each) { return each.code == code; });
}

SignalGuard::SignalGuard() {
  if (guards++ > 0) return;
  received_signal = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // a write that is under way goes on
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kInterruptions.size(); ++i) {
    const int signal = kInterruptions[i].signal;
    sigaction(signal, nullptr, &previous_actions[i]);
    // nohup: whoever started it wants it to outlive the terminal.
    if (signal == SIGHUP && previous_actions[i].sa_handler == SIG_IGN) continue;
    sigaction(signal, &action, nullptr);
  }
  // Whoever read the progress may leave, and a write beyond a limit is an error like any other; the run goes on.
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &previous_pipe_action);
  sigaction(SIGXFSZ, &ignore, &previous_file_size_action);
}

SignalGuard::~SignalGuard() {
  if (--guards > 0) return;
  for (std::size_t i = 0; i < kInterruptions.size(); ++i) {
    sigaction(kInterruptions[i].signal, &previous_actions[i], nullptr);
  }
  sigaction(SIGPIPE, &previous_pipe_action, nullptr);
  sigaction(SIGXFSZ, &previous_file_size_action, nullptr);
  received_signal = 0;
}

int SignalGuard::received() { return received_signal; }

void SignalGuard::check(const std::string& what) {
  if (const int signal = received(); signal != 0) throw InterruptedError("interrupted " + what, signal);
}

}  // namespace graft
