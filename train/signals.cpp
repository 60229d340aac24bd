#include "train/signals.h"

#include <unistd.h>

#include <array>

namespace graft {
namespace {

volatile std::sig_atomic_t received_signal = 0;
std::array<struct sigaction, 2> previous_actions;
constexpr std::array<int, 2> kSignals = {SIGINT, SIGTERM};

void on_signal(int signal) {
  if (signal == SIGINT && received_signal != 0) _exit(128 + SIGINT);
  received_signal = signal;
}

}  // namespace

SignalGuard::SignalGuard() {
  received_signal = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous_actions[i]);
}

SignalGuard::~SignalGuard() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
}

int SignalGuard::received() { return received_signal; }

}  // namespace graft
