#include "ops/squared_error.h"

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
};

const std::vector<Case> kCases = {
    {1, 1, 1, 1, 1, false, {}},
    {3, 14, 8, 7, 1, false, {.position_stride = 2}},
    {3, 14, 8, 7, 1, true, {.position_stride = 2}},
    {3, 14, 8, 7, 3, true, {.columns = 1, .position_stride = 2}},
    {4, 68, 24, 4, 20, false, {.position_offset = 64, .sum_columns = true}},
    {4, 33, 24, 11, 20, true, {.position_stride = 3, .position_offset = 2, .sum_columns = true}},
    {64, 202, 8, 101, 1, false, {.position_stride = 2}},
    {64, 200, 8, 200, 3, true, {}},  // several blocks
    {3,
     21,
     16,
     7,
     9,
     false,
     {.columns = 1, .position_stride = 3, .position_offset = 1, .first_column = 8, .target_column = 8}},
    {3, 14, 8, 7, 5, true, {.position_stride = 2, .sum_columns = true, .first_column = 4, .target_column = 2}},
    {2, 4, 8, 4, 3, false, {.columns = 2, .target_column = 1}},
};

std::vector<HostTensor> inputs_of(const Case& c) {
  std::vector<HostTensor> inputs{randn({c.batch, c.tokens, c.stored}),
                                 constant(randn({c.batch, c.points, c.columns}, Role::Stream, 7))};
  if (c.masked) inputs.push_back(integers({c.batch, c.points}, 2, Role::Byte));
  return inputs;
}

Op op_of(const Case& c) {
  return [options = c.options](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{squared_error(ctx, in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options)};
  };
}

/// Loss and gradient straight from the formula.
struct Reference {
  double loss = 0;
  std::vector<double> gradient;
};

Reference reference(const Case& c, const std::vector<HostTensor>& inputs) {
  const std::int64_t columns = c.options.columns == 0 ? c.columns - c.options.target_column : c.options.columns;
  Reference result{0, std::vector<double>(inputs[0].values.size(), 0.0)};
  double terms = 0;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < c.points; ++i) {
      if (c.masked && inputs[2].values[static_cast<std::size_t>(b * c.points + i)] == 0) continue;
      for (std::int64_t k = 0; k < columns; ++k) {
        const std::int64_t token = c.options.position_stride * i + c.options.position_offset;
        const auto at = static_cast<std::size_t>((b * c.tokens + token) * c.stored + c.options.first_column + k);
        const double error =
            inputs[0].values[at] -
            inputs[1].values[static_cast<std::size_t>((b * c.points + i) * c.columns + c.options.target_column + k)];
        result.loss += error * error;
        result.gradient[at] = 2 * error;
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
    check_parity(backend, Precision::Fp32, op_of(c), inputs_of(c), {2e-5, 2e-5});
    // the loss is float32; the gradient is rounded once to bfloat16, by at most 2^-8 = 3.9e-3
    check_parity(backend, Precision::Bf16, op_of(c), inputs_of(c), {2e-5, 4e-3});
  }
}

TEST_CASE("squared_error: loss and gradient match the formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const Case& c : kCases) {
    CAPTURE(c.tokens);
    CAPTURE(c.masked);
    const std::vector<HostTensor> inputs = inputs_of(c);
    const Reference expected = reference(c, inputs);
    const OpResult got = run_op(device, op_of(c), inputs, {{1.0}});
    CHECK(got.outputs[0][0] == doctest::Approx(expected.loss).epsilon(1e-13));
    double worst = 0;
    for (std::size_t i = 0; i < expected.gradient.size(); ++i) {
      worst = std::max(worst, std::abs(got.gradients[0][i] - expected.gradient[i]));
    }
    CHECK(worst < 1e-14);
  }
}

TEST_CASE("squared_error: gradients match finite differences") {
  for (const Case& c : kCases) {
    CAPTURE(c.tokens);
    CHECK(gradcheck(op_of(c), inputs_of(c)) < 1e-7);
  }
}

TEST_CASE("squared_error: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("squared_error: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("squared_error: nothing scored gives loss 0 and gradient 0") {
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

TEST_CASE("squared_error: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  CHECK_THROWS_WITH_AS(squared_error(ctx, zeros({2, 8, 8}), zeros({3, 4, 1})),
                       doctest::Contains("squared_error: targets are [3, 4, 1], expected [2, N, columns]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(squared_error(ctx, zeros({2, 8, 8}), zeros({2, 5, 1}), {}, {.position_stride = 2}),
                       doctest::Contains("target 4 is predicted at token 8, but there are 8 tokens"), ArgumentError);
  CHECK_THROWS_WITH_AS(squared_error(ctx, zeros({2, 8, 8}), zeros({2, 4, 9})),
                       doctest::Contains("9 columns, but predictions are [2, 8, 8] and targets [2, 4, 9]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(squared_error(ctx, zeros({2, 8, 8}), zeros({2, 4, 4}), {}, {.columns = 2, .first_column = 7}),
                       doctest::Contains("2 columns, from 7 on of predictions [2, 8, 8] and from 0 on of targets"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(squared_error(ctx, zeros({2, 8, 8}), zeros({2, 4, 4}), {}, {.first_column = -1}),
                       doctest::Contains("first column -1 of predictions and 0 of targets"), ArgumentError);
  CHECK_THROWS_WITH_AS(squared_error(ctx, zeros({2, 8, 8}), zeros({2, 4, 1}), zeros({2, 4})),
                       doctest::Contains("the mask is float32 [2, 4], expected uint8 [2, 4]"), ArgumentError);
  CHECK_THROWS_WITH_AS(squared_error(ctx, zeros({2, 8, 8}), zeros({2, 4, 1}, DType::F64)),
                       doctest::Contains("targets are float64, expected float32 in fp32"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
