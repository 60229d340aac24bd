#include "ops/rms_norm.h"

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

// float32: one sum over a row. bfloat16: inputs enter both sides rounded and sums are float32, so what differs is the
// rounding of the result, at most 2^-8 = 3.9e-3 of it.
constexpr Tolerance kFloatTolerance{2e-5, 2e-5};
constexpr Tolerance kBf16Tolerance{4e-3, 4e-3};

std::vector<HostTensor> norm_inputs(const Shape& shape, Role role) {
  const std::int64_t width = shape.columns();
  return {randn(shape, role), uniform({width}, 0.5, 1.5, Role::Master, 2)};
}

enum class Use { Both, Normed, Residual, Last };

std::vector<HostTensor> add_inputs(const Shape& shape, Use use = Use::Both, Role branch = Role::Activation) {
  const std::int64_t width = shape.columns();
  std::vector<HostTensor> inputs{randn(shape, Role::Stream), randn(shape, branch, 4),
                                 uniform({width}, 0.5, 1.5, Role::Master, 2)};
  if (use == Use::Residual) inputs[2] = constant(inputs[2]);  // not used: nobody writes its gradient
  return inputs;
}

/// A single column is normalised to its sign: with a small eps its gradient is what is left of a cancellation.
double eps_for(const Tensor& x) { return x.shape().columns() == 1 ? 0.5 : 1e-5; }

std::vector<Tensor> norm_op(const Context& ctx, const std::vector<Tensor>& in) {
  return {rms_norm(ctx, in[0], in[1], eps_for(in[0]))};
}

/// add_rms_norm of which only some outputs are used; the others have no gradient in backward.
Op add_op(Use use) {
  return [use](const Context& ctx, const std::vector<Tensor>& in) {
    const AddRmsNorm result = add_rms_norm(ctx, in[0], in[1], in[2], use != Use::Last, eps_for(in[0]));
    if (use == Use::Both) return std::vector<Tensor>{result.residual, result.normed};
    if (use == Use::Residual) return std::vector<Tensor>{result.residual};
    return std::vector<Tensor>{result.normed};
  };
}

/// Two blocks of a pre-norm network: the residual stream is shared by norms and sums.
std::vector<Tensor> stack_op(const Context& ctx, const std::vector<Tensor>& in) {
  const Tensor first = rms_norm(ctx, in[0], in[2]);
  const AddRmsNorm second = add_rms_norm(ctx, in[0], first, in[2]);
  const AddRmsNorm third = add_rms_norm(ctx, second.residual, second.normed, in[2]);
  const AddRmsNorm last = add_rms_norm(ctx, third.residual, in[1], in[2], false);
  return {last.normed};
}

void check_all_parities(Backend backend) {
  for (const Shape& shape : kParityShapes) {
    check_parity(backend, Precision::Fp32, norm_op, norm_inputs(shape, Role::Stream), kFloatTolerance);
    check_parity(backend, Precision::Tf32, norm_op, norm_inputs(shape, Role::Stream), kFloatTolerance);
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

TEST_CASE("rms_norm: matches its formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const Tensor x = device.tensor({1, 4}, DType::F64, {1, 2, -3, 6});  // mean square 12.5
  const Tensor weight = device.tensor({4}, DType::F64, {1, 2, 1, -1});
  const double rstd = 1 / std::sqrt(12.5 + 1e-5);
  const std::vector<double> expected{rstd, 4 * rstd, -3 * rstd, -6 * rstd};
  const std::vector<double> got = device.values(rms_norm(device.ctx(), x, weight));
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-14));
}

TEST_CASE("rms_norm: gradients match finite differences") {
  for (const Shape& shape : kSmallShapes) {
    CAPTURE(shape.str());
    CHECK(gradcheck(norm_op, norm_inputs(shape, Role::Stream)) < 1e-7);
  }
  CHECK(gradcheck(norm_op, norm_inputs({70, 24}, Role::Stream)) < 1e-7);  // several blocks of rows
}

TEST_CASE("add_rms_norm: gradients match finite differences, whichever outputs are used") {
  for (const Shape& shape : kSmallShapes) {
    for (const Use use : {Use::Both, Use::Normed, Use::Residual, Use::Last}) {
      CAPTURE(shape.str());
      CAPTURE(static_cast<int>(use));
      CHECK(gradcheck(add_op(use), add_inputs(shape, use)) < 1e-7);
    }
  }
}

TEST_CASE("add_rms_norm: gradients of a stack that shares the residual stream match finite differences") {
  for (const Shape& shape : {Shape{3, 33}, Shape{2, 5, 128}}) {
    CAPTURE(shape.str());
    CHECK(gradcheck(stack_op, add_inputs(shape)) < 1e-7);
  }
}

TEST_CASE("add_rms_norm: is the sum followed by the norm") {
  const TestDevice device;
  const std::vector<HostTensor> inputs = add_inputs({6, 40});
  std::vector<Tensor> in;
  for (const HostTensor& input : inputs) in.push_back(device.tensor(input));
  const AddRmsNorm fused = add_rms_norm(device.ctx(), in[0], in[1], in[2]);
  const Tensor normed = rms_norm(device.ctx(), fused.residual, in[2]);
  CHECK(device.bytes(fused.normed) == device.bytes(normed));
  const AddRmsNorm last = add_rms_norm(device.ctx(), in[0], in[1], in[2], false);
  CHECK_FALSE(static_cast<bool>(last.residual));
  CHECK(device.bytes(last.normed) == device.bytes(normed));
}

TEST_CASE("rms_norm: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("rms_norm: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("rms_norm: results do not depend on the number of threads") {
  const std::vector<HostTensor> inputs = add_inputs({200, 48});
  const auto cotangents = random_cotangents(add_op(Use::Both), inputs);
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), add_op(Use::Both), inputs, cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), add_op(Use::Both), inputs, cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("rms_norm: what does not fit is refused") {
  const TestDevice device;
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  const Context& ctx = device.ctx();
  CHECK_THROWS_WITH_AS(rms_norm(ctx, zeros({3, 33}), zeros({32})),
                       doctest::Contains("rms_norm: weight is [32], expected [33]"), ArgumentError);
  CHECK_THROWS_WITH_AS(rms_norm(ctx, zeros({1, 8200}), zeros({8200})),
                       doctest::Contains("width is 8200, expected 1 to 8192"), ArgumentError);
  CHECK_THROWS_WITH_AS(rms_norm(ctx, zeros({3, 8}, DType::BF16), zeros({8})),
                       doctest::Contains("x is bfloat16, expected float32 or float32 in fp32"), ArgumentError);
  CHECK_THROWS_WITH_AS(rms_norm(ctx, zeros({3, 8}), zeros({8}, DType::BF16)),
                       doctest::Contains("weight is bfloat16, expected float32"), ArgumentError);
  CHECK_THROWS_WITH_AS(add_rms_norm(ctx, zeros({3, 8}), zeros({2, 8}), zeros({8})),
                       doctest::Contains("branch is [2, 8], expected [3, 8]"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
