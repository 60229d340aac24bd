#pragma once

#include <string>
#include <string_view>

namespace graft::bench {

struct OpRunOptions {
  std::string device = "auto";
  std::string filter;     // regular expression over names; empty: all
  std::string precision;  // only this one; empty: all that a benchmark names
  std::string json;       // file for the results; empty: none
  int threads = 0;
  bool list = false;
  bool warm = false;  // keep inputs in the caches instead of rotating among sets larger than L2
};

/// Times the registered ops as captured replays and prints shape, median, spread, GB/s and TFLOP/s with their share of
/// the device's measured ceilings. Google Benchmark is the harness, its JSON is what --json writes.
int run_op_benchmarks(const OpRunOptions& options);

}  // namespace graft::bench
