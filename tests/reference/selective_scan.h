#pragma once

#include <cstdint>
#include <vector>

namespace graft::test {

/// Inputs of the selective scan as plain arrays: row-major, B and C apart, empty vectors where an input is absent.
struct ScanProblem {
  std::int64_t batch = 0, tokens = 0, width = 0, state = 0;
  std::vector<double> u, delta;    // [B, T, D]
  std::vector<double> a;           // [D, N], negative
  std::vector<double> b, c;        // [B, T, N]
  std::vector<double> skip, bias;  // [D]
  std::vector<double> z;           // [B, T, D]
  bool softplus = true;
};

struct ScanSolution {
  std::vector<double> y;            // [B, T, D]
  std::vector<double> final_state;  // [B, D, N]
};

/// The selective scan as its definition reads, one number after the other in double precision. No overflow guard: for
/// step sizes before softplus below 700.
[[nodiscard]] ScanSolution sequential_scan(const ScanProblem& problem);

}  // namespace graft::test
