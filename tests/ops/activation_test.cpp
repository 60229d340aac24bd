#include "ops/activation.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "engine/error.h"
#include "ops/activation_formula.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

const std::vector<Shape> kShapes = {Shape{1, 1}, Shape{3, 33}, Shape{2, 5, 128}, Shape{2049}};

constexpr std::array kKinds = {Activation::Silu, Activation::Softplus, Activation::Relu, Activation::GeluTanh,
                               Activation::GeluErf};

bool is_gelu(Activation kind) { return kind == Activation::GeluTanh || kind == Activation::GeluErf; }

Op activation_op(Activation kind) {
  return [kind](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{activation(ctx, in[0], kind)};
  };
}

/// Normal inputs, for ReLU none so near its kink that a finite difference would reach across.
HostTensor smooth_inputs(const Shape& shape, Activation kind) {
  HostTensor x = randn(shape);
  if (kind != Activation::Relu) return x;
  for (double& value : x.values) value += std::copysign(0.1, value);
  return x;
}

void check_all_parities(Backend backend) {
  for (const Shape& shape : kShapes) {
    for (const Activation kind : kKinds) {
      const double single = is_gelu(kind) ? 2e-5 : 2e-6;
      check_parity(backend, Precision::Fp32, activation_op(kind), {randn(shape, Role::Activation, 1, 3)},
                   {single, single});
      // one rounding to bfloat16: at most 2^-8 = 3.9e-3 of the value
      check_parity(backend, Precision::Bf16, activation_op(kind), {randn(shape, Role::Activation, 1, 3)}, {4e-3, 4e-3});
    }
  }
}

TEST_CASE("activation: matches its formulas") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::vector<double> points{-40, -6, -1.5, -0.1, 0, 0.3, 2, 19.9, 20.1, 40};
  const Tensor x = device.tensor({10}, DType::F64, points);
  const std::vector<double> silu = device.values(activation(device.ctx(), x, Activation::Silu));
  const std::vector<double> relu = device.values(activation(device.ctx(), x, Activation::Relu));
  const std::vector<double> softplus = device.values(activation(device.ctx(), x, Activation::Softplus));
  const std::vector<double> gelu_tanh = device.values(activation(device.ctx(), x, Activation::GeluTanh));
  const std::vector<double> gelu_erf = device.values(activation(device.ctx(), x, Activation::GeluErf));
  for (std::size_t i = 0; i < points.size(); ++i) {
    const double v = points[i];
    CHECK(silu[i] == doctest::Approx(v / (1 + std::exp(-v))).epsilon(1e-13));
    CHECK(softplus[i] == doctest::Approx(v > 20 ? v : std::log1p(std::exp(v))).epsilon(1e-13));
    CHECK(relu[i] == std::max(v, 0.0));
    const double u = std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
    CHECK(gelu_tanh[i] == doctest::Approx(0.5 * v * (1 + std::tanh(u))).epsilon(1e-13));
    CHECK(gelu_erf[i] == doctest::Approx(0.5 * v * (1 + std::erf(v / std::sqrt(2.0)))).epsilon(1e-13));
  }
}

TEST_CASE("activation: gradients match finite differences") {
  for (const Shape& shape : kShapes) {
    for (const Activation kind : kKinds) {
      CAPTURE(shape.str());
      CHECK(gradcheck(activation_op(kind), {smooth_inputs(shape, kind)}) < 1e-7);
    }
  }
}

TEST_CASE("activation: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("activation: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("activation: extreme inputs stay finite") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    const Tensor x = device.tensor({4}, DType::F32, {-1e4, -100, 100, 1e4});
    for (const Activation kind : kKinds) {
      const std::vector<double> y = device.values(activation(device.ctx(), x, kind));
      CHECK(y[0] == 0);
      CHECK(std::abs(y[1]) <= (is_gelu(kind) ? 0 : 1e-40));
      CHECK(y[2] == 100);
      CHECK(y[3] == 1e4);
    }
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("activation: ReLU has slope 0 at 0 and lets NaN through") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    const Op op = activation_op(Activation::Relu);
    const double nan = std::nan("");
    const OpResult result = run_op(device, op, {{Shape{4}, {-1, 0, 2, nan}, Role::Activation, true}}, {{5, 5, 5, 5}});
    CHECK(result.outputs[0][0] == 0);
    CHECK(result.outputs[0][1] == 0);
    CHECK(result.outputs[0][2] == 2);
    CHECK(std::isnan(result.outputs[0][3]));
    CHECK(std::vector<double>(result.gradients[0].begin(), result.gradients[0].begin() + 3) ==
          std::vector<double>{0, 0, 5});
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("activation: integers are refused") {
  const TestDevice device;
  const Tensor x = device.tensor({2}, DType::I32, {1, 2});
  CHECK_THROWS_WITH_AS(static_cast<void>(activation(device.ctx(), x, Activation::Silu)),
                       doctest::Contains("activation: x is int32, expected float32"), ArgumentError);
}

TEST_CASE("activation: none is refused") {
  const TestDevice device;
  const Tensor x = device.tensor({2}, DType::F32, {1, 2});
  CHECK_THROWS_WITH_AS(static_cast<void>(activation(device.ctx(), x, Activation::None)),
                       doctest::Contains("activation: the activation is none, expected a function"), ArgumentError);
}

TEST_CASE("activation: a kind without a kernel is an internal error that names it, not a result left unwritten") {
  const auto unknown = static_cast<Activation>(77);
  int calls = 0;
  const auto count = [&](auto) { ++calls; };
  CHECK_THROWS_WITH_AS(with_activation(unknown, count), doctest::Contains("internal error: activation 77 (unknown)"),
                       DeviceError);
  CHECK_THROWS_WITH_AS(with_activation(Activation::None, count), doctest::Contains("activation 0 (none)"), DeviceError);
  const auto one_of_two = [&](Activation kind) { with_one_of<Activation::None, Activation::GeluErf>(kind, count); };
  CHECK_THROWS_WITH_AS(one_of_two(Activation::Silu),
                       doctest::Contains("activation 1 (silu) has no kernel here, expected one of: none, gelu_erf"),
                       DeviceError);
  CHECK(calls == 0);
  for (const Activation kind : kKinds) with_activation(kind, count);
  one_of_two(Activation::None);
  CHECK(calls == 6);

  const TestDevice device;
  const Tensor x = device.tensor({2}, DType::F32, {1, 2});
  CHECK_THROWS_AS(static_cast<void>(activation(device.ctx(), x, unknown)), DeviceError);
}

}  // namespace
}  // namespace graft::test
