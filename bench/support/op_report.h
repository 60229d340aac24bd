#pragma once

#include <benchmark/benchmark.h>

#include <cstddef>
#include <sstream>
#include <vector>

#include "bench/support/results.h"

namespace graft::bench {

/// Google Benchmark's table on the screen and, if one is wanted, its JSON in a file, under the names that --filter
/// reads: without what the harness adds to them ("/iterations:1/manual_time").
class OpReport : public benchmark::BenchmarkReporter {
 public:
  /// What a run is skipped with that appears nowhere: the command was interrupted, or nobody reads the table.
  static constexpr const char* kNotRun = "not run";

  /// `width`: of the longest name.
  OpReport(std::size_t width, Table& table, ResultFile& file);

  bool ReportContext(const Context& context) override;
  /// Prints the runs, those that failed with their error, and has them in the file before the next one starts.
  void ReportRuns(const std::vector<Run>& runs) override;
  void Finalize() override;

 private:
  void show();
  void save();
  std::size_t width_;
  Table& table_;
  ResultFile& file_;
  std::ostringstream text_, json_text_;
  benchmark::ConsoleReporter console_;
  benchmark::JSONReporter json_;
};

}  // namespace graft::bench
