#include "ops/glu.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

const std::vector<Shape> kShapes = {Shape{1, 2}, Shape{3, 66}, Shape{2, 5, 128}, Shape{2050}, Shape{7, 3, 24}};

std::vector<Tensor> glu_op(const Context& ctx, const std::vector<Tensor>& in) { return {glu(ctx, in[0])}; }

void check_all_parities(Backend backend) {
  for (const Shape& shape : kShapes) {
    check_parity(backend, Precision::Fp32, glu_op, {randn(shape, Role::Activation, 1, 3)}, {2e-6, 2e-6});
    check_parity(backend, Precision::Tf32, glu_op, {randn(shape, Role::Activation, 1, 3)}, {2e-6, 2e-6});
    // one rounding to bfloat16: at most 2^-8 = 3.9e-3 of the value
    check_parity(backend, Precision::Bf16, glu_op, {randn(shape, Role::Activation, 1, 3)}, {4e-3, 4e-3});
  }
}

TEST_CASE("glu: matches its formula and stays finite") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::vector<double> y =
      device.values(glu(device.ctx(), device.tensor({2, 4}, DType::F64, {1.5, -2, 0.3, -0.7, 3, -4, -1e4, 1e4})));
  CHECK(y[0] == doctest::Approx(1.5 / (1 + std::exp(-0.3))).epsilon(1e-14));
  CHECK(y[1] == doctest::Approx(-2 / (1 + std::exp(0.7))).epsilon(1e-14));
  CHECK(y[2] == 0);
  CHECK(y[3] == -4);
}

TEST_CASE("glu: gradients match finite differences") {
  for (const Shape& shape : kShapes) {
    CAPTURE(shape.str());
    CHECK(gradcheck(glu_op, {randn(shape)}) < 1e-7);
  }
}

TEST_CASE("glu: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("glu: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("glu: what does not fit is refused") {
  const TestDevice device;
  CHECK_THROWS_WITH_AS(static_cast<void>(glu(device.ctx(), device.tensor({3}, DType::F32, {1, 2, 3}))),
                       doctest::Contains("glu: x is [3], expected [..., 2H]"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(glu(device.ctx(), device.tensor({2}, DType::I32, {1, 2}))),
                       doctest::Contains("glu: x is int32, expected float32"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
