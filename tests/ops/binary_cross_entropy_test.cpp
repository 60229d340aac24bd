#include "ops/binary_cross_entropy.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/ops/point_loss.h"

namespace graft::test {
namespace {

struct Case {
  PointLossCase points;
  BinaryTargets kind = BinaryTargets::Signs;
};

constexpr BinaryTargets kProbabilities = BinaryTargets::Probabilities;

const std::vector<Case> kCases = {
    {{1, 1, 1, 1, 1, false, {}}},
    {{3, 14, 8, 7, 1, false, {.position_stride = 2}}},
    {{3, 14, 8, 7, 1, true, {.position_stride = 2}}, kProbabilities},
    {{3, 14, 8, 7, 3, true, {.columns = 1, .position_stride = 2}}},
    {{4, 68, 24, 4, 20, false, {.position_offset = 64, .sum_columns = true}}, kProbabilities},
    {{4, 33, 24, 11, 20, true, {.position_stride = 3, .position_offset = 2, .sum_columns = true}}},
    {{3, 14, 8, 7, 5, true, {.position_stride = 2, .first_column = 4, .target_column = 2}}},
    {{64, 280, 8, 140, 1, false, {.position_stride = 2}}},  // two blocks
    {{64, 200, 8, 200, 3, true, {}}, kProbabilities},       // several
};

std::vector<HostTensor> inputs_of(const Case& c) {
  HostTensor targets = integers({c.points.batch, c.points.points, c.points.columns}, 2, Role::Stream, 7);
  if (c.kind == BinaryTargets::Signs) {
    for (double& target : targets.values) target = 2 * target - 1;
  }
  return point_loss_inputs(c.points, targets, 3);
}

Op op_of(const Case& c) {
  return [options = c.points.options, kind = c.kind](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        binary_cross_entropy_with_logits(ctx, in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options, kind)};
  };
}

void check_all_parities(Backend backend) {
  for (const Case& c : kCases) {
    check_parity(backend, Precision::Fp32, op_of(c), inputs_of(c), {1e-5, 1e-5});
    // the loss is float32; the gradient is rounded once to bfloat16, by at most 2^-8 = 3.9e-3
    check_parity(backend, Precision::Bf16, op_of(c), inputs_of(c), {1e-5, 4e-3});
  }
}

TEST_CASE("binary_cross_entropy: loss and gradient match the formula") {
  for (const Case& c : kCases) {
    CAPTURE(c.points.tokens);
    CAPTURE(c.points.masked);
    const auto term = [&](double z, double target) -> PointLoss {
      const double p = c.kind == BinaryTargets::Signs ? (target + 1) / 2 : target;
      const double one = 1 / (1 + std::exp(-z));
      return {-p * std::log(one) - (1 - p) * std::log(1 - one), one - p};
    };
    check_point_loss(op_of(c), c.points, inputs_of(c), term, 1e-12);
  }
}

TEST_CASE("binary_cross_entropy: gradients match finite differences") {
  for (const Case& c : kCases) {
    CAPTURE(c.points.tokens);
    CHECK(gradcheck(op_of(c), inputs_of(c)) < 1e-7);
  }
}

TEST_CASE("binary_cross_entropy: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("binary_cross_entropy: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("binary_cross_entropy: nothing scored gives loss 0 and gradient 0") {
  const Case c{{2, 6, 8, 3, 1, true, {.position_stride = 2}}};
  check_nothing_scored(op_of(c), c.points, inputs_of(c));
}

TEST_CASE("binary_cross_entropy: extreme logits neither overflow nor cancel") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    const Tensor z = device.tensor({1, 4, 1}, DType::F32, {1e4, -1e4, 30, -30});
    const Tensor targets = device.tensor({1, 4, 1}, DType::F32, {1, -1, 1, 1});
    const auto loss_of = [&](std::int64_t point) {
      const Tensor one =
          device.tensor({1, 1, 1}, DType::F32, {device.values(targets)[static_cast<std::size_t>(point)]});
      const SquaredErrorOptions positions{.position_offset = point};
      return device.values(binary_cross_entropy_with_logits(device.ctx(), z, one, {}, positions))[0];
    };
    CHECK(loss_of(0) == 0);
    CHECK(loss_of(1) == 0);
    CHECK(loss_of(2) == doctest::Approx(std::exp(-30.0)).epsilon(1e-5));
    CHECK(loss_of(3) == doctest::Approx(30.0));
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("binary_cross_entropy: what does not fit is refused") {
  check_point_loss_refusals("binary_cross_entropy",
                            [](const Context& ctx, const Tensor& predictions, const Tensor& targets, const Tensor& mask,
                               const SquaredErrorOptions& options) {
                              return binary_cross_entropy_with_logits(ctx, predictions, targets, mask, options);
                            });
}

}  // namespace
}  // namespace graft::test
