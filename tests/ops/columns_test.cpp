#include "ops/columns.h"

#include <doctest/doctest.h>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

/// Two overlapping uses would be refused; these are the first columns, others, and the first again.
std::vector<Tensor> parts(const Context& ctx, const std::vector<Tensor>& in) {
  return {columns(ctx, in[0], 0, 3), columns(ctx, in[0], 5, 2), columns(ctx, in[0], 0, 3)};
}

}  // namespace

TEST_CASE("columns: gradients match finite differences") {
  for (const Shape& shape : {Shape{1, 7}, Shape{3, 33}, Shape{2, 5, 16}})
    CHECK(gradcheck(parts, {randn(shape)}) < 1e-7);
}

TEST_CASE("columns: copies its columns and adds zeros") {
  const TestDevice device;
  const Tensor x = device.tensor({2, 4}, DType::F32, {1, 2, 3, 4, 5, 6, 7, 8});
  const Tensor y = columns(device.ctx(), x, 1, 2);
  CHECK(device.values(y) == std::vector<double>{2, 3, 0, 0, 0, 0, 0, 0, 6, 7, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("columns: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
    for (const Shape& shape : {Shape{1, 7}, Shape{3, 33}, Shape{2, 82, 48}}) {
      // copies; the columns used twice are added, which bfloat16 rounds
      check_parity(Backend::Cuda, precision, parts, {randn(shape)}, {0, precision == Precision::Bf16 ? 4e-3 : 1e-6});
    }
  }
}

TEST_CASE("columns: columns beyond the last are refused") {
  const TestDevice device;
  const Tensor x = device.tensor({1, 4}, DType::F32, {1, 2, 3, 4});
  CHECK_THROWS_WITH_AS(static_cast<void>(columns(device.ctx(), x, 3, 2)), doctest::Contains("within the 4"),
                       ArgumentError);
}

}  // namespace graft::test
