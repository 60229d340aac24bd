#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace graft {

/// How far a run is: one line that is rewritten on a terminal, and an occasional line of its own elsewhere and where
/// TERM says that the terminal knows no escape sequences.
class Progress {
 public:
  /// `done` steps are behind, `total` is the run's length.
  Progress(std::FILE* out, std::int64_t done, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Reports that `step` steps are done. Rewrites at most ten times a second; elsewhere than on a terminal it
  /// prints after 1, 2, 5, 10, 20, 30 and then every 30 seconds.
  void update(std::int64_t step, double loss);
  /// A line above the progress line.
  void say(const std::string& line);
  /// Ends the line.
  void finish();
  /// Steps a second lately; 0 before the first update.
  [[nodiscard]] double steps_per_second() const { return rate_; }

 private:
  using Clock = std::chrono::steady_clock;
  void print(std::int64_t step, double loss);
  void write(const std::string& text);
  std::FILE* out_;
  bool terminal_;
  std::int64_t total_;
  Clock::time_point start_, shown_, rate_time_;
  std::int64_t rate_step_;
  double rate_ = 0;
  double next_plain_ = 0;  // seconds after the start
  bool line_open_ = false;
};

/// "1:02:03", "4:05"
[[nodiscard]] std::string duration_text(double seconds);
/// "9.48 M", "1.5 k"
[[nodiscard]] std::string count_text(double count);
/// "1.42 GiB"
[[nodiscard]] std::string bytes_text(double bytes);

}  // namespace graft
