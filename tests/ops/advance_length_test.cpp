#include "ops/advance_length.h"

#include <doctest/doctest.h>

#include "engine/error.h"
#include "tests/support/device.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

void check(Backend backend) {
  const TestDevice device(backend);
  const Tensor length = device.tensor({1}, DType::I32, {5});
  advance_length(device.ctx(), length, 7);
  advance_length(device.ctx(), length, 0);
  advance_length(device.ctx(), length, 1);
  CHECK(device.values(length) == std::vector<double>{13});
}

TEST_CASE("advance_length: counts on the device") { check(Backend::Cpu); }

TEST_CASE("advance_length: CUDA matches CPU") {
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("advance_length: a replayed step counts again") {
  TestDevice device;
  const Tensor length = device.tensor({1}, DType::I32, {0});
  device.stream().begin_capture();
  advance_length(device.ctx(), length, 1);
  const auto graph = device.stream().end_capture();
  for (int i = 0; i < 3; ++i) graph->replay(device.stream());
  CHECK(device.values(length) == std::vector<double>{3});
}

TEST_CASE("advance_length: what does not fit is refused") {
  const TestDevice device;
  CHECK_THROWS_WITH_AS(advance_length(device.ctx(), device.tensor({2}, DType::I32, {0, 0}), 1),
                       doctest::Contains("advance_length: length is [2] int32, expected [1] int32"), ArgumentError);
  CHECK_THROWS_WITH_AS(advance_length(device.ctx(), device.tensor({1}, DType::F32, {0}), 1),
                       doctest::Contains("length is [1] float32"), ArgumentError);
  CHECK_THROWS_WITH_AS(advance_length(device.ctx(), Tensor(), 1), doctest::Contains("length is empty"), ArgumentError);
  CHECK_THROWS_WITH_AS(advance_length(device.ctx(), device.tensor({1}, DType::I32, {0}), -1),
                       doctest::Contains("-1 tokens, expected 0 to"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
