#include "ops/gather_rows.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Size {
  std::int64_t batch, tokens, count, width;
};

// one token; ragged; the retrieval tasks' shape; more positions than a ballot holds, so that most tokens are named
// several times; a width that is not a whole number of warps' columns
const std::vector<Size> kSizes = {{1, 1, 1, 1}, {3, 7, 4, 5}, {4, 109, 3, 128}, {2, 9, 70, 33}, {5, 6, 2, 140}};

std::vector<Tensor> op(const Context& ctx, const std::vector<Tensor>& in) { return {gather_rows(ctx, in[0], in[1])}; }

std::vector<HostTensor> inputs_of(const Size& size, Role role) {
  return {randn({size.batch, size.tokens, size.width}, role), integers({size.batch, size.count}, size.tokens)};
}

void check_all_parities(Backend backend) {
  // outputs are copies; gradients are float32 sums of at most 70 / 9 terms on average, rounded once to x's dtype
  constexpr Tolerance kSums{0, 1e-6};
  constexpr Tolerance kRounded{0, 4e-3};
  for (const Size& size : kSizes) {
    CAPTURE(size.count);
    check_parity(backend, Precision::Fp32, op, inputs_of(size, Role::Stream), kSums);
    check_parity(backend, Precision::Bf16, op, inputs_of(size, Role::Stream), kSums);
    check_parity(backend, Precision::Bf16, op, inputs_of(size, Role::Activation), kRounded);
  }
}

TEST_CASE("gather_rows: copies the named rows of each sequence") {
  const TestDevice device;
  const Tensor x = device.tensor({2, 3, 2}, DType::F32, {0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121});
  const Tensor positions = device.tensor({2, 2}, DType::I32, {2, 0, 1, 1});
  const Tensor y = gather_rows(device.ctx(), x, positions);
  CHECK(y.shape() == Shape{2, 2, 2});
  CHECK(device.values(y) == std::vector<double>{20, 21, 0, 1, 110, 111, 110, 111});
}

TEST_CASE("gather_rows: gradients match finite differences") {
  for (const Size& size : kSizes) {
    CAPTURE(size.tokens);
    CHECK(gradcheck(op, inputs_of(size, Role::Stream)) < 1e-7);
  }
}

TEST_CASE("gather_rows: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("gather_rows: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("gather_rows: rows that are not named have no gradient, rows named twice the sum") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    HostTensor positions = integers({1, 3}, 4);
    positions.values = {2, 0, 2};
    const std::vector<HostTensor> inputs{randn({1, 4, 1}, Role::Master), positions};
    for (const bool accumulate : {false, true}) {
      const OpResult result = run_op(device, op, inputs, {{1, 10, 100}}, accumulate);
      CHECK(result.gradients[0] == std::vector<double>{10, 0, 101, 0});
    }
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("gather_rows: a position outside the sequence gives NaN and no gradient") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    HostTensor positions = integers({1, 4}, 3);
    positions.values = {1, -1, 3, 1};
    const std::vector<HostTensor> inputs{randn({1, 3, 8}, Role::Master), positions};
    const OpResult result = run_op(device, op, inputs, {std::vector<double>(32, 1.0)});
    for (std::size_t i = 0; i < 32; ++i) CHECK(std::isnan(result.outputs[0][i]) == (i >= 8 && i < 24));
    for (std::size_t i = 0; i < 24; ++i) CHECK(result.gradients[0][i] == (i >= 8 && i < 16 ? 2.0 : 0.0));
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("gather_rows: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  CHECK_THROWS_WITH_AS(gather_rows(ctx, zeros({2, 3}), zeros({2, 1}, DType::I32)),
                       doctest::Contains("gather_rows: x is [2, 3], expected [B, T, C]"), ArgumentError);
  CHECK_THROWS_WITH_AS(gather_rows(ctx, zeros({2, 3, 4}, DType::I32), zeros({2, 1}, DType::I32)),
                       doctest::Contains("x is int32, expected a floating dtype"), ArgumentError);
  CHECK_THROWS_WITH_AS(gather_rows(ctx, zeros({2, 3, 4}), zeros({2, 1})),
                       doctest::Contains("positions are float32, expected int32"), ArgumentError);
  CHECK_THROWS_WITH_AS(gather_rows(ctx, zeros({2, 3, 4}), zeros({3, 1}, DType::I32)),
                       doctest::Contains("positions are [3, 1], expected [2, N]"), ArgumentError);
  CHECK_THROWS_WITH_AS(gather_rows(ctx, zeros({2, 3, 4}), zeros({2, 0}, DType::I32)),
                       doctest::Contains("positions are [2, 0], expected [2, N]"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
