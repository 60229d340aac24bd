#pragma once

#include <string>
#include <vector>

namespace graft::bench {

struct StepRunOptions {
  std::string device = "auto";
  std::string filter;                  // regular expression over names; empty: all
  std::string json;                    // file for the results; empty: none
  std::vector<std::string> overrides;  // -o, for all of them
  std::string config;                  // a configuration of the user's instead of the built-in list
  int threads = 0;
  bool list = false;
  bool profile = false;  // time of each kernel, captured alone
};

/// Times whole training steps, sampling included: captured against eager, launches, host time, memory, the share
/// of the measured GEMM ceiling, and (with `profile`) the share of each kernel.
int run_step_benchmarks(const StepRunOptions& options);

}  // namespace graft::bench
