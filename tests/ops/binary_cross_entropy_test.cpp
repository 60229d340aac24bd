#include "ops/binary_cross_entropy.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Case {
  std::int64_t batch, tokens, stored, points, columns;
  bool masked;
  SquaredErrorOptions options;
  BinaryTargets kind = BinaryTargets::Signs;
};

constexpr BinaryTargets kProbabilities = BinaryTargets::Probabilities;

const std::vector<Case> kCases = {
    {1, 1, 1, 1, 1, false, {}},
    {3, 14, 8, 7, 1, false, {.position_stride = 2}},
    {3, 14, 8, 7, 1, true, {.position_stride = 2}, kProbabilities},
    {3, 14, 8, 7, 3, true, {.columns = 1, .position_stride = 2}},
    {4, 68, 24, 4, 20, false, {.position_offset = 64, .sum_columns = true}, kProbabilities},
    {4, 33, 24, 11, 20, true, {.position_stride = 3, .position_offset = 2, .sum_columns = true}},
    {64, 280, 8, 140, 1, false, {.position_stride = 2}},  // two blocks
    {64, 200, 8, 200, 3, true, {}, kProbabilities},       // several
};

std::vector<HostTensor> inputs_of(const Case& c) {
  HostTensor targets = integers({c.batch, c.points, c.columns}, 2, Role::Stream, 7);
  if (c.kind == BinaryTargets::Signs) {
    for (double& target : targets.values) target = 2 * target - 1;
  }
  std::vector<HostTensor> inputs{randn({c.batch, c.tokens, c.stored}, Role::Activation, 1, 3), targets};
  if (c.masked) inputs.push_back(integers({c.batch, c.points}, 2, Role::Byte));
  return inputs;
}

Op op_of(const Case& c) {
  return [c](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        binary_cross_entropy_with_logits(ctx, in[0], in[1], in.size() > 2 ? in[2] : Tensor(), c.options, c.kind)};
  };
}

/// Loss and gradient straight from the formula.
struct Reference {
  double loss = 0;
  std::vector<double> gradient;
};

Reference reference(const Case& c, const std::vector<HostTensor>& inputs) {
  const std::int64_t columns = c.options.columns == 0 ? c.columns : c.options.columns;
  Reference result{0, std::vector<double>(inputs[0].values.size(), 0.0)};
  double terms = 0;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < c.points; ++i) {
      if (c.masked && inputs[2].values[static_cast<std::size_t>(b * c.points + i)] == 0) continue;
      for (std::int64_t k = 0; k < columns; ++k) {
        const std::int64_t token = c.options.position_stride * i + c.options.position_offset;
        const auto at = static_cast<std::size_t>((b * c.tokens + token) * c.stored + k);
        const double z = inputs[0].values[at];
        const double target = inputs[1].values[static_cast<std::size_t>((b * c.points + i) * c.columns + k)];
        const double p = c.kind == BinaryTargets::Signs ? (target + 1) / 2 : target;
        const double one = 1 / (1 + std::exp(-z));
        result.loss -= p * std::log(one) + (1 - p) * std::log(1 - one);
        result.gradient[at] = one - p;
        terms += k == 0 || !c.options.sum_columns ? 1 : 0;
      }
    }
  }
  result.loss /= terms;
  for (double& d : result.gradient) d /= terms;
  return result;
}

void check_all_parities(Backend backend) {
  for (const Case& c : kCases) {
    check_parity(backend, Precision::Fp32, op_of(c), inputs_of(c), {1e-5, 1e-5});
    // the loss is float32; the gradient is rounded once to bfloat16, by at most 2^-8 = 3.9e-3
    check_parity(backend, Precision::Bf16, op_of(c), inputs_of(c), {1e-5, 4e-3});
  }
}

TEST_CASE("binary_cross_entropy: loss and gradient match the formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const Case& c : kCases) {
    CAPTURE(c.tokens);
    CAPTURE(c.masked);
    const std::vector<HostTensor> inputs = inputs_of(c);
    const Reference expected = reference(c, inputs);
    const OpResult got = run_op(device, op_of(c), inputs, {{1.0}});
    CHECK(got.outputs[0][0] == doctest::Approx(expected.loss).epsilon(1e-12));
    double worst = 0;
    for (std::size_t i = 0; i < expected.gradient.size(); ++i) {
      worst = std::max(worst, std::abs(got.gradients[0][i] - expected.gradient[i]));
    }
    CHECK(worst < 1e-14);
  }
}

TEST_CASE("binary_cross_entropy: gradients match finite differences") {
  for (const Case& c : kCases) {
    CAPTURE(c.tokens);
    CHECK(gradcheck(op_of(c), inputs_of(c)) < 1e-7);
  }
}

TEST_CASE("binary_cross_entropy: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("binary_cross_entropy: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("binary_cross_entropy: nothing scored gives loss 0 and gradient 0") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    const Case c{2, 6, 8, 3, 1, true, {.position_stride = 2}};
    std::vector<HostTensor> inputs = inputs_of(c);
    inputs[2].values.assign(6, 0.0);
    const OpResult got = run_op(device, op_of(c), inputs, {{1.0}});
    CHECK(got.outputs[0] == std::vector<double>{0.0});
    CHECK(got.gradients[0] == std::vector<double>(96, 0.0));
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
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
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  CHECK_THROWS_WITH_AS(static_cast<void>(binary_cross_entropy_with_logits(ctx, zeros({2, 8, 8}), zeros({3, 4, 1}))),
                       doctest::Contains("binary_cross_entropy: targets are [3, 4, 1], expected [2, N, columns]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(binary_cross_entropy_with_logits(ctx, zeros({2, 8, 8}), zeros({2, 5, 1}), {},
                                                                          {.position_stride = 2})),
                       doctest::Contains("target 4 is predicted at token 8, but there are 8 tokens"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(binary_cross_entropy_with_logits(ctx, zeros({2, 8, 8}), zeros({2, 4, 9}))),
                       doctest::Contains("9 columns, but predictions are [2, 8, 8] and targets [2, 4, 9]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(
      static_cast<void>(binary_cross_entropy_with_logits(ctx, zeros({2, 8, 8}), zeros({2, 4, 1}), zeros({2, 4}))),
      doctest::Contains("the mask is float32 [2, 4], expected uint8 [2, 4]"), ArgumentError);
  CHECK_THROWS_WITH_AS(
      static_cast<void>(binary_cross_entropy_with_logits(ctx, zeros({2, 8, 8}), zeros({2, 4, 1}, DType::F64))),
      doctest::Contains("targets are float64, expected float32 in fp32"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
