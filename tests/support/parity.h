#pragma once

#include <vector>

#include "tests/support/gradcheck.h"

namespace graft::test {

/// Bounds on max|x - reference| / max|reference|, per tensor.
struct Tolerance {
  double outputs = 0;
  double gradients = 0;
};

/// Runs the op on `backend` in `precision` and compares outputs and every gradient with the CPU in
/// float64 on inputs and cotangents rounded to the tested dtypes first. Reports through doctest, also that storing
/// and accumulating gradients agree and that a second run has the same bits.
void check_parity(Backend backend, Precision precision, const Op& op, const std::vector<HostTensor>& inputs,
                  Tolerance tolerance);

/// Prints once that CUDA cases are skipped, and why. Use: if (skip_cuda()) return;
[[nodiscard]] bool skip_cuda();

}  // namespace graft::test
