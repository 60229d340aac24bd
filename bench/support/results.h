#pragma once

#include <cstddef>
#include <exception>
#include <string>
#include <string_view>

#include "engine/error.h"

namespace graft::bench {

/// The file of --json: whole at any time, with all rows that are finished. It is replaced, not changed, so that neither
/// a crash nor a full disk leaves a part of it; what cannot be replaced (a pipe, a device, a link, a file in a folder
/// that takes no other) is written once, at the end.
class ResultFile {
 public:
  /// `path` empty: none. Throws EnvironmentError if it cannot be written, before the work.
  ResultFile(std::string_view command, std::string path);

  [[nodiscard]] bool wanted() const { return !path_.empty(); }
  [[nodiscard]] const std::string& path() const { return path_; }
  /// What the file is to hold from now on. A disk that refuses is asked again with the next one.
  void write(std::string text);
  /// Throws EnvironmentError if the file does not hold what was written last, with the bytes needed and available.
  void close();

 private:
  void put();
  std::string command_, path_, text_, problem_;
  bool replaces_ = false;
};

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
