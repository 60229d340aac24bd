#pragma once

#include <csignal>
#include <string>

#include "engine/error.h"

namespace graft {

/// The exit code of a command that `signal` (SIGINT, SIGTERM, SIGHUP or SIGXCPU) ended.
[[nodiscard]] ExitCode interrupted_code(int signal);

/// "SIGINT", "SIGTERM", "SIGHUP" or "SIGXCPU".
[[nodiscard]] const char* signal_name(int signal);

/// Whether an exit code is that of a command which one of these signals ended.
[[nodiscard]] bool is_interruption(ExitCode code);

/// A signal ended a command before it was done; the message says what is done and how to get the rest.
class InterruptedError : public Error {
 public:
  InterruptedError(const std::string& message, int signal) : Error(message, interrupted_code(signal)) {}
};

/// Turns SIGINT, SIGTERM, SIGXCPU (the soft limit of processor time) and SIGHUP (unless it is ignored, as under nohup)
/// into a flag while it lives; a second SIGINT leaves at once, without saving. A write that nobody reads, or beyond a
/// limit, is an error like any other meanwhile. A guard inside another one does nothing, so that a command and what it
/// calls may both have one. All guards belong to one thread.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

  /// The signal that arrived; 0: none, or there is no guard. What every loop polls, from any thread.
  [[nodiscard]] static int received();
  /// Throws InterruptedError("interrupted " + what) if one arrived.
  static void check(const std::string& what);
};

}  // namespace graft
