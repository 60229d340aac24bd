#pragma once

#include <functional>
#include <vector>

#include "engine/context.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace graft::test {

/// An op under test: tensors in (one per HostTensor, in order), floating-point outputs.
///   [](const Context& ctx, const std::vector<Tensor>& in) { return std::vector<Tensor>{add(ctx, in[0], in[1])}; }
using Op = std::function<std::vector<Tensor>(const Context&, const std::vector<Tensor>&)>;

/// Outputs and gradients of an op for given cotangents.
struct OpResult {
  std::vector<std::vector<double>> outputs;
  std::vector<std::vector<double>> gradients;  // one per input; empty where it has none
};

/// Runs an op forward and backward. Gradients of Weight and Master inputs are kept by a sink, in
/// memory that held NaN before; with `accumulate` they start from 0.5 instead (subtracted again), which tests `+=`.
[[nodiscard]] OpResult run_op(const TestDevice& device, const Op& op, const std::vector<HostTensor>& inputs,
                              const std::vector<std::vector<double>>& cotangents, bool accumulate = false);
/// Random cotangents for the outputs of an op.
[[nodiscard]] std::vector<std::vector<double>> random_cotangents(const Op& op, const std::vector<HostTensor>& inputs);

/// Relative error of the gradients in float64 on the CPU against central differences (extrapolated), along random
/// directions: one backward, a few forwards, whatever the size. Above 1e-7 it goes entry by entry and reports
/// the worst one. Also checks that accumulating and storing gradients agree.
[[nodiscard]] double gradcheck(const Op& op, const std::vector<HostTensor>& inputs);

/// max|got - expected| / max|expected|, not divided where nothing is expected; infinite if anything is not finite or if
/// the sizes differ.
[[nodiscard]] double relative_error(const std::vector<double>& got, const std::vector<double>& expected);

}  // namespace graft::test
