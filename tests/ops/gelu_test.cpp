#include "ops/gelu.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

const std::vector<Shape> kShapes = {Shape{1, 1}, Shape{3, 33}, Shape{2, 5, 128}, Shape{2049}};

Op gelu_op(GeluKind kind) {
  return
      [kind](const Context& ctx, const std::vector<Tensor>& in) { return std::vector<Tensor>{gelu(ctx, in[0], kind)}; };
}

void check_all_parities(Backend backend) {
  for (const Shape& shape : kShapes) {
    for (const GeluKind kind : {GeluKind::Tanh, GeluKind::Erf}) {
      check_parity(backend, Precision::Fp32, gelu_op(kind), {randn(shape, Role::Activation, 1, 3)}, {2e-5, 2e-5});
      // one rounding to bfloat16: at most 2^-8 = 3.9e-3 of the value
      check_parity(backend, Precision::Bf16, gelu_op(kind), {randn(shape, Role::Activation, 1, 3)}, {4e-3, 4e-3});
    }
  }
}

TEST_CASE("gelu: matches its formulas") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::vector<double> points{-40, -6, -1.5, -0.1, 0, 0.3, 2, 40};
  const Tensor x = device.tensor({8}, DType::F64, points);
  const std::vector<double> tanh_form = device.values(gelu(device.ctx(), x, GeluKind::Tanh));
  const std::vector<double> erf_form = device.values(gelu(device.ctx(), x, GeluKind::Erf));
  for (std::size_t i = 0; i < points.size(); ++i) {
    const double v = points[i];
    const double u = std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
    CHECK(tanh_form[i] == doctest::Approx(0.5 * v * (1 + std::tanh(u))).epsilon(1e-13));
    CHECK(erf_form[i] == doctest::Approx(0.5 * v * (1 + std::erf(v / std::sqrt(2.0)))).epsilon(1e-13));
  }
}

TEST_CASE("gelu: gradients match finite differences") {
  for (const Shape& shape : kShapes) {
    for (const GeluKind kind : {GeluKind::Tanh, GeluKind::Erf}) {
      CAPTURE(shape.str());
      CHECK(gradcheck(gelu_op(kind), {randn(shape)}) < 1e-7);
    }
  }
}

TEST_CASE("gelu: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("gelu: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("gelu: extreme inputs stay finite") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    const Tensor x = device.tensor({4}, DType::F32, {-1e4, -100, 100, 1e4});
    for (const GeluKind kind : {GeluKind::Tanh, GeluKind::Erf}) {
      const std::vector<double> y = device.values(gelu(device.ctx(), x, kind));
      CHECK(y[0] == 0);
      CHECK(y[1] == 0);
      CHECK(y[2] == 100);
      CHECK(y[3] == 1e4);
    }
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("gelu: integers are refused") {
  const TestDevice device;
  const Tensor x = device.tensor({2}, DType::I32, {1, 2});
  CHECK_THROWS_WITH_AS(gelu(device.ctx(), x), doctest::Contains("gelu: x is int32, expected float32"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
