#include "ops/add.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

const std::vector<Shape> kShapes = {Shape{}, Shape{1}, Shape{3, 33}, Shape{2, 5, 128}};

std::vector<Tensor> sum_of(const Context& ctx, const std::vector<Tensor>& in) { return {add(ctx, in[0], in[1])}; }
std::vector<Tensor> three_times(const Context& ctx, const std::vector<Tensor>& in) {
  return {add(ctx, add(ctx, in[0], in[0]), in[0])};
}

std::vector<HostTensor> inputs(const Shape& shape) {
  return {randn(shape, Role::Stream, 1), randn(shape, Role::Stream, 2)};
}

TEST_CASE("add: gradients match finite differences, of an input that is used several times too") {
  for (const Shape& shape : kShapes) {
    CHECK(gradcheck(sum_of, inputs(shape)) < 1e-7);
    CHECK(gradcheck(three_times, {inputs(shape)[0]}) < 1e-7);
  }
}

TEST_CASE("add: the sum is the sum") {
  const TestDevice device;
  const Tensor a = device.tensor({2}, DType::F32, {1, 2});
  const Tensor b = device.tensor({2}, DType::F32, {10, 20.5});
  CHECK(device.values(add(device.ctx(), a, b)) == std::vector<double>{11, 22.5});
  CHECK(device.values(a) == std::vector<double>{1, 2});
}

TEST_CASE("add: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const Shape& shape : kShapes) {
    // one rounding of the same two numbers
    check_parity(Backend::Cuda, Precision::Fp32, sum_of, inputs(shape), {1e-7, 1e-7});
    check_parity(Backend::Cuda, Precision::Bf16, sum_of, inputs(shape), {1e-7, 1e-7});
  }
}

TEST_CASE("add: what does not fit is refused") {
  const TestDevice device;
  const Tensor a = device.tensor({2}, DType::F32, {1, 2});
  const Tensor b = device.tensor({1}, DType::F32, {1});
  const Tensor c = device.tensor({2}, DType::F64, {1, 2});
  CHECK_THROWS_WITH_AS(static_cast<void>(add(device.ctx(), a, b)),
                       doctest::Contains("add: b is [1], expected the shape [2] of a"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(add(device.ctx(), a, c)),
                       doctest::Contains("add: float32 and float64, expected float32 in fp32"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
