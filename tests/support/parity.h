#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "tests/support/gradcheck.h"

namespace graft::test {

/// Bounds on max|x - reference| / max|reference|, per tensor.
struct Tolerance {
  double outputs = 0;
  double gradients = 0;
};

/// What errors of one input's gradient are relative to, if that is more than its largest entry: the sum of magnitudes
/// of what it is a sum of, where these partly cancel. Gets the result in float64.
struct GradientScale {
  std::size_t input = 0;
  std::function<double(const OpResult& expected)> scale;
};

/// Runs the op on `backend` in `precision` and compares outputs and every gradient with the CPU in
/// float64 on inputs and cotangents rounded to the tested dtypes first. Reports through doctest, also that storing
/// and accumulating gradients agree and that a second run has the same bits.
void check_parity(Backend backend, Precision precision, const Op& op, const std::vector<HostTensor>& inputs,
                  Tolerance tolerance, const GradientScale& scale = {});

/// Prints once that CUDA cases are skipped, and why. Use: if (skip_cuda()) return;
[[nodiscard]] bool skip_cuda();

}  // namespace graft::test
