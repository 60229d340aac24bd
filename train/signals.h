#pragma once

#include <csignal>

namespace graft {

/// Turns SIGINT and SIGTERM into a flag while it lives. A second SIGINT leaves at once, without saving.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

  /// The signal that arrived; 0: none.
  [[nodiscard]] static int received();
};

}  // namespace graft
