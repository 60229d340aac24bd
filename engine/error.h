#pragma once
// Free of fmt, so that CUDA sources can include it. Checks with formatted messages are in require.h.

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

namespace graft {

/// Exit codes of the program; scripts rely on them.
enum class ExitCode : int {
  kDone = 0,
  kUsage = 2,        // configuration or command line
  kEnvironment = 3,  // GPU, NCCL, file system
  kData = 4,         // data or checkpoint invalid
  kNumerics = 5,     // non-finite numbers stopped the run
  kPeer = 6,         // another rank or the network failed
  kRequeue = 85,     // saved, asks to be requeued
  kHungUp = 129,
  kInterrupted = 130,
  kTerminated = 143,
  kOutOfProcessorTime = 152,
};

/// Base of every exception graft throws. `what()` is one line for people; `exit_code()` is for main.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ExitCode code = ExitCode::kUsage)
      : std::runtime_error(message), code_(code) {}
  [[nodiscard]] ExitCode exit_code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

/// A caller passed something an op or a command cannot take.
class ArgumentError : public Error {
 public:
  explicit ArgumentError(const std::string& message) : Error(message, ExitCode::kUsage) {}
};

/// The configuration is wrong; the message may hold several lines, one a mistake.
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message) : Error(message, ExitCode::kUsage) {}
};

/// The machine cannot do it: no GPU, out of memory, a file system that refuses.
class EnvironmentError : public Error {
 public:
  explicit EnvironmentError(const std::string& message) : Error(message, ExitCode::kEnvironment) {}
};

/// More memory was asked for than the device has.
class OutOfMemoryError : public EnvironmentError {
 public:
  explicit OutOfMemoryError(const std::string& message, std::size_t room = 0)
      : EnvironmentError(message), room_(room) {}
  /// Bytes that a step could have had, where it was a step's memory that did not fit; otherwise 0.
  [[nodiscard]] std::size_t room() const { return room_; }

 private:
  std::size_t room_;
};

/// A library or a device returned an error status.
class DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& message) : Error(message, ExitCode::kEnvironment) {}
};

/// A file (checkpoint, data, cache) is damaged or not what it should be.
class DataError : public Error {
 public:
  explicit DataError(const std::string& message) : Error(message, ExitCode::kData) {}
};

/// Non-finite numbers ended the run.
class NumericsError : public Error {
 public:
  explicit NumericsError(const std::string& message) : Error(message, ExitCode::kNumerics) {}
};

}  // namespace graft
