#pragma once
// What the tests of losses have in common that a function of one prediction and its target defines.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "ops/squared_error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {

struct PointLossCase {
  std::int64_t batch, tokens, stored, points, columns;
  bool masked;
  SquaredErrorOptions options;
};

/// Normal predictions of a spread, the targets, and a random mask where the case has one.
inline std::vector<HostTensor> point_loss_inputs(const PointLossCase& c, HostTensor targets, double spread = 1) {
  std::vector<HostTensor> inputs{randn({c.batch, c.tokens, c.stored}, Role::Activation, 1, spread), std::move(targets)};
  if (c.masked) inputs.push_back(integers({c.batch, c.points}, 2, Role::Byte));
  return inputs;
}

/// One element's loss and its derivative to the prediction.
struct PointLoss {
  double value, slope;
};

/// Compares loss and gradient in float64 with the formula, of which of(prediction, target) is the term.
template <class Of>
void check_point_loss(const Op& op, const PointLossCase& c, const std::vector<HostTensor>& inputs, const Of& of,
                      double epsilon) {
  const std::int64_t columns = c.options.columns == 0 ? c.columns - c.options.target_column : c.options.columns;
  double loss = 0, terms = 0;
  std::vector<double> gradient(inputs[0].values.size(), 0.0);
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < c.points; ++i) {
      if (c.masked && inputs[2].values[static_cast<std::size_t>(b * c.points + i)] == 0) continue;
      for (std::int64_t k = 0; k < columns; ++k) {
        const std::int64_t token = c.options.position_stride * i + c.options.position_offset;
        const auto at = static_cast<std::size_t>((b * c.tokens + token) * c.stored + c.options.first_column + k);
        const auto target = static_cast<std::size_t>((b * c.points + i) * c.columns + c.options.target_column + k);
        const PointLoss point = of(inputs[0].values[at], inputs[1].values[target]);
        loss += point.value;
        gradient[at] = point.slope;
        terms += k == 0 || !c.options.sum_columns ? 1 : 0;
      }
    }
  }
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const OpResult got = run_op(device, op, inputs, {{1.0}});
  CHECK(got.outputs[0][0] == doctest::Approx(loss / terms).epsilon(epsilon));
  double worst = 0;
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    worst = std::max(worst, std::abs(got.gradients[0][i] - gradient[i] / terms));
  }
  CHECK(worst < 1e-14);
}

/// Loss and gradient are 0 where the mask has no position.
inline void check_nothing_scored(const Op& op, const PointLossCase& c, std::vector<HostTensor> inputs) {
  std::fill(inputs[2].values.begin(), inputs[2].values.end(), 0.0);
  const auto check = [&](Backend backend) {
    const OpResult got = run_op(TestDevice(backend), op, inputs, {{1.0}});
    CHECK(got.outputs[0] == std::vector<double>{0.0});
    CHECK(got.gradients[0] == std::vector<double>(static_cast<std::size_t>(c.batch * c.tokens * c.stored), 0.0));
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

/// `loss` is called with (context, predictions, targets, mask, options).
template <class Loss>
void check_point_loss_refusals(const char* op, const Loss& loss) {
  const TestDevice device;
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  const auto refused = [&](const Tensor& targets, const Tensor& mask, const SquaredErrorOptions& options,
                           const char* why) {
    const std::string message = std::string(op) + ": " + why;
    CHECK_THROWS_WITH_AS(static_cast<void>(loss(device.ctx(), zeros({2, 8, 8}), targets, mask, options)),
                         doctest::Contains(message.c_str()), ArgumentError);
  };
  refused(zeros({3, 4, 1}), {}, {}, "targets are [3, 4, 1], expected [2, N, columns]");
  refused(zeros({2, 5, 1}), {}, {.position_stride = 2}, "target 4 is predicted at token 8, but there are 8 tokens");
  refused(zeros({2, 4, 9}), {}, {}, "9 columns, but predictions are [2, 8, 8] and targets [2, 4, 9]");
  refused(zeros({2, 4, 4}), {}, {.columns = 2, .first_column = 7},
          "2 columns, from 7 on of predictions [2, 8, 8] and from 0 on of targets");
  refused(zeros({2, 4, 4}), {}, {.first_column = -1}, "first column -1 of predictions and 0 of targets");
  refused(zeros({2, 4, 1}), zeros({2, 4}), {}, "the mask is float32 [2, 4], expected uint8 [2, 4]");
  refused(zeros({2, 4, 1}, DType::F64), {}, {}, "targets are float64, expected float32 in fp32");
}

}  // namespace graft::test
