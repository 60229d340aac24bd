#pragma once

#include <benchmark/benchmark.h>

#include <cstddef>
#include <fstream>
#include <string>
#include <vector>

namespace graft::bench {

/// Google Benchmark's table on the screen and, if a path is given, its JSON in a file, under the names that
/// --filter reads: without what the harness adds to them ("/iterations:1/manual_time").
class OpReport : public benchmark::BenchmarkReporter {
 public:
  /// `width`: of the longest name. Throws EnvironmentError if the file cannot be written.
  OpReport(std::size_t width, const std::string& json_path);

  bool ReportContext(const Context& context) override;
  /// Runs that were skipped, because the command was interrupted, appear nowhere.
  void ReportRuns(const std::vector<Run>& runs) override;
  void Finalize() override;
  /// Throws EnvironmentError if not all of the file was written.
  void close();

 private:
  std::size_t width_;
  std::string path_;
  std::ofstream file_;
  benchmark::ConsoleReporter table_;
  benchmark::JSONReporter json_;
};

}  // namespace graft::bench
