#pragma once

#include <cstddef>
#include <exception>
#include <string>
#include <string_view>

#include "engine/error.h"
#include "train/result_file.h"

namespace graft::bench {

/// The table on stdout, which ends quietly when nobody reads it any more, and remembers why it could not be written.
class Table {
 public:
  void print(std::string_view text);
  /// Whether what is printed arrives.
  [[nodiscard]] bool arrives() const { return arrives_; }
  /// Throws EnvironmentError if stdout could not be written, unless it is only that nobody reads it.
  void close(const ResultFile& file) const;

 private:
  bool arrives_ = true;
  std::string problem_;
};

/// Benchmarks that failed, while the others went on.
class Failures {
 public:
  /// Counts one; returns its message, as one line.
  std::string add(const std::string& name, const std::exception& error);
  /// Throws an error that names the first, with its exit code, if there was one; `all` benchmarks were to be timed.
  void check(std::string_view command, std::size_t all) const;

 private:
  std::size_t count_ = 0;
  std::string first_;  // "name: message"
  ExitCode code_ = ExitCode::kDone;
};

}  // namespace graft::bench
