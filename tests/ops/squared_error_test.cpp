#include "ops/squared_error.h"

#include <doctest/doctest.h>

#include <vector>

#include "tests/ops/point_loss.h"

namespace graft::test {
namespace {

const std::vector<PointLossCase> kCases = {
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

std::vector<HostTensor> inputs_of(const PointLossCase& c) {
  return point_loss_inputs(c, constant(randn({c.batch, c.points, c.columns}, Role::Stream, 7)));
}

Op op_of(const PointLossCase& c) {
  return [options = c.options](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{squared_error(ctx, in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options)};
  };
}

void check_all_parities(Backend backend) {
  for (const PointLossCase& c : kCases) {
    check_parity(backend, Precision::Fp32, op_of(c), inputs_of(c), {2e-5, 2e-5});
    // the loss is float32; the gradient is rounded once to bfloat16, by at most 2^-8 = 3.9e-3
    check_parity(backend, Precision::Bf16, op_of(c), inputs_of(c), {2e-5, 4e-3});
  }
}

TEST_CASE("squared_error: loss and gradient match the formula") {
  const auto term = [](double prediction, double target) -> PointLoss {
    const double error = prediction - target;
    return {error * error, 2 * error};
  };
  for (const PointLossCase& c : kCases) {
    CAPTURE(c.tokens);
    CAPTURE(c.masked);
    check_point_loss(op_of(c), c, inputs_of(c), term, 1e-13);
  }
}

TEST_CASE("squared_error: gradients match finite differences") {
  for (const PointLossCase& c : kCases) {
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
  const PointLossCase c{2, 6, 8, 3, 1, true, {.position_stride = 2}};
  check_nothing_scored(op_of(c), c, inputs_of(c));
}

TEST_CASE("squared_error: what does not fit is refused") { check_point_loss_refusals("squared_error", squared_error); }

}  // namespace
}  // namespace graft::test
