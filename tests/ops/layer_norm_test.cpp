#include "ops/layer_norm.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

// one element, ragged, aligned; and for each register layout of the CUDA kernels a full and a partly filled one
const std::vector<Shape> kSmallShapes = {Shape{1, 1}, Shape{3, 33}, Shape{2, 5, 128}};
const std::vector<Shape> kParityShapes = {
    Shape{1, 1},    Shape{3, 33},   Shape{2, 5, 128}, Shape{300, 64}, Shape{41, 256},  Shape{37, 250},
    Shape{7, 512},  Shape{19, 300}, Shape{9, 768},    Shape{3, 1024}, Shape{3, 1001},  Shape{2, 2048},
    Shape{5, 2000}, Shape{2, 8192}, Shape{2, 5003},   Shape{5248, 8}, Shape{4100, 256}};

// float32: two sums over a row. bfloat16: inputs enter both sides rounded and sums are float32, so what differs is the
// rounding of the result, at most 2^-8 = 3.9e-3 of it.
constexpr Tolerance kFloatTolerance{2e-5, 2e-5};
constexpr Tolerance kBf16Tolerance{4e-3, 4e-3};

std::vector<HostTensor> norm_inputs(const Shape& shape, Role role) {
  const std::int64_t width = shape.columns();
  return {randn(shape, role), uniform({width}, 0.5, 1.5, Role::Master, 2), randn({width}, Role::Master, 3)};
}

enum class Use { Both, Normed, Residual, Last };

std::vector<HostTensor> add_inputs(const Shape& shape, Use use = Use::Both, Role branch = Role::Activation) {
  const std::int64_t width = shape.columns();
  std::vector<HostTensor> inputs{randn(shape, Role::Stream), randn(shape, branch, 4),
                                 uniform({width}, 0.5, 1.5, Role::Master, 2), randn({width}, Role::Master, 3)};
  if (use == Use::Residual) {  // gain and bias are not used: nobody writes their gradients
    inputs[2] = constant(inputs[2]);
    inputs[3] = constant(inputs[3]);
  }
  return inputs;
}

std::vector<Tensor> norm_op(const Context& ctx, const std::vector<Tensor>& in) {
  return {layer_norm(ctx, in[0], in[1], in[2])};
}

/// add_layer_norm of which only some outputs are used; the others have no gradient in backward.
Op add_op(Use use) {
  return [use](const Context& ctx, const std::vector<Tensor>& in) {
    const AddLayerNorm result = add_layer_norm(ctx, in[0], in[1], in[2], in[3], use != Use::Last);
    if (use == Use::Both) return std::vector<Tensor>{result.residual, result.normed};
    if (use == Use::Residual) return std::vector<Tensor>{result.residual};
    return std::vector<Tensor>{result.normed};
  };
}

/// Two blocks of a pre-norm network: the residual stream is shared by norms and sums.
std::vector<Tensor> stack_op(const Context& ctx, const std::vector<Tensor>& in) {
  const Tensor first = layer_norm(ctx, in[0], in[2], in[3]);
  const AddLayerNorm second = add_layer_norm(ctx, in[0], first, in[2], in[3]);
  const AddLayerNorm third = add_layer_norm(ctx, second.residual, second.normed, in[2], in[3]);
  const AddLayerNorm last = add_layer_norm(ctx, third.residual, in[1], in[2], in[3], false);
  return {last.normed};
}

void check_all_parities(Backend backend) {
  for (const Shape& shape : kParityShapes) {
    check_parity(backend, Precision::Fp32, norm_op, norm_inputs(shape, Role::Stream), kFloatTolerance);
    check_parity(backend, Precision::Bf16, norm_op, norm_inputs(shape, Role::Stream), kBf16Tolerance);
    check_parity(backend, Precision::Bf16, norm_op, norm_inputs(shape, Role::Activation), kBf16Tolerance);
    for (const Use use : {Use::Both, Use::Normed, Use::Residual, Use::Last}) {
      check_parity(backend, Precision::Fp32, add_op(use), add_inputs(shape, use), kFloatTolerance);
      check_parity(backend, Precision::Bf16, add_op(use), add_inputs(shape, use), kBf16Tolerance);
    }
    check_parity(backend, Precision::Bf16, add_op(Use::Both), add_inputs(shape, Use::Both, Role::Stream),
                 kBf16Tolerance);
  }
}

TEST_CASE("layer_norm: matches its formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const Tensor x = device.tensor({1, 4}, DType::F64, {1, 2, 3, 6});  // mean 3, variance 3.5
  const Tensor gain = device.tensor({4}, DType::F64, {1, 2, 1, 1});
  const Tensor bias = device.tensor({4}, DType::F64, {0, 0, 0.5, 0});
  const double rstd = 1 / std::sqrt(3.5 + 1e-5);
  const std::vector<double> expected{-2 * rstd, -2 * rstd, 0.5, 3 * rstd};
  const std::vector<double> got = device.values(layer_norm(device.ctx(), x, gain, bias));
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-14));
}

TEST_CASE("layer_norm: gradients match finite differences") {
  for (const Shape& shape : kSmallShapes) {
    CAPTURE(shape.str());
    CHECK(gradcheck(norm_op, norm_inputs(shape, Role::Stream)) < 1e-7);
  }
  CHECK(gradcheck(norm_op, norm_inputs({70, 24}, Role::Stream)) < 1e-7);  // several blocks of rows
}

TEST_CASE("add_layer_norm: gradients match finite differences, whichever outputs are used") {
  for (const Shape& shape : kSmallShapes) {
    for (const Use use : {Use::Both, Use::Normed, Use::Residual, Use::Last}) {
      CAPTURE(shape.str());
      CAPTURE(static_cast<int>(use));
      CHECK(gradcheck(add_op(use), add_inputs(shape, use)) < 1e-7);
    }
  }
}

TEST_CASE("add_layer_norm: gradients of a stack that shares the residual stream match finite differences") {
  for (const Shape& shape : {Shape{3, 33}, Shape{2, 5, 128}}) {
    CAPTURE(shape.str());
    CHECK(gradcheck(stack_op, add_inputs(shape)) < 1e-7);
  }
}

TEST_CASE("add_layer_norm: is the sum followed by the norm") {
  const TestDevice device;
  const std::vector<HostTensor> inputs = add_inputs({6, 40});
  std::vector<Tensor> in;
  for (const HostTensor& input : inputs) in.push_back(device.tensor(input));
  const AddLayerNorm fused = add_layer_norm(device.ctx(), in[0], in[1], in[2], in[3]);
  const Tensor normed = layer_norm(device.ctx(), fused.residual, in[2], in[3]);
  CHECK(device.bytes(fused.normed) == device.bytes(normed));
  const AddLayerNorm last = add_layer_norm(device.ctx(), in[0], in[1], in[2], in[3], false);
  CHECK_FALSE(static_cast<bool>(last.residual));
  CHECK(device.bytes(last.normed) == device.bytes(normed));
}

TEST_CASE("layer_norm: a large common offset does not spoil the variance") {
  HostTensor x = randn({4, 256}, Role::Stream);
  for (double& value : x.values) value += 1000;
  // rounding x to float32 moves it by up to 3e-5, the deviation of its columns being 1
  check_parity(Backend::Cpu, Precision::Fp32, norm_op,
               {x, uniform({256}, 0.5, 1.5, Role::Master, 2), randn({256}, Role::Master, 3)}, {1e-3, 1e-3});
}

TEST_CASE("layer_norm: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("layer_norm: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("layer_norm: results do not depend on the number of threads") {
  const std::vector<HostTensor> inputs = add_inputs({200, 48});
  const auto cotangents = random_cotangents(add_op(Use::Both), inputs);
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), add_op(Use::Both), inputs, cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), add_op(Use::Both), inputs, cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("layer_norm: what does not fit is refused") {
  const TestDevice device;
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  const Context& ctx = device.ctx();
  CHECK_THROWS_WITH_AS(layer_norm(ctx, zeros({3, 33}), zeros({32}), zeros({33})),
                       doctest::Contains("layer_norm: gain is [32], expected [33]"), ArgumentError);
  CHECK_THROWS_WITH_AS(layer_norm(ctx, zeros({3, 33}), zeros({33}), zeros({1, 33})),
                       doctest::Contains("layer_norm: bias is [1, 33], expected [33]"), ArgumentError);
  CHECK_THROWS_WITH_AS(layer_norm(ctx, zeros({1, 8200}), zeros({8200}), zeros({8200})),
                       doctest::Contains("width is 8200, expected 1 to 8192"), ArgumentError);
  CHECK_THROWS_WITH_AS(layer_norm(ctx, zeros({3, 8}, DType::BF16), zeros({8}), zeros({8})),
                       doctest::Contains("x is bfloat16, expected float32 or float32 in fp32"), ArgumentError);
  CHECK_THROWS_WITH_AS(layer_norm(ctx, zeros({3, 8}), zeros({8}, DType::BF16), zeros({8})),
                       doctest::Contains("gain is bfloat16 and bias is float32, expected float32"), ArgumentError);
  CHECK_THROWS_WITH_AS(add_layer_norm(ctx, zeros({3, 8}), zeros({2, 8}), zeros({8}), zeros({8})),
                       doctest::Contains("branch is [2, 8], expected [3, 8]"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
