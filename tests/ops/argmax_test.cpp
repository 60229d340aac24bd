#include "ops/argmax.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "engine/error.h"
#include "tests/support/device.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The results of one dtype of x in both output dtypes; they have to be the same numbers.
std::vector<double> indices(const TestDevice& device, const HostTensor& x, DType dtype, std::int64_t columns = 0) {
  const Tensor input = device.tensor(x.shape, dtype, x.values);
  const Tensor integers = argmax(device.ctx(), input, columns, DType::I32);
  const Tensor numbers = argmax(device.ctx(), input, columns, device.ctx().stream_dtype());
  CHECK(integers.dtype() == DType::I32);
  CHECK(numbers.dtype() == device.ctx().stream_dtype());
  CHECK(device.values(integers) == device.values(numbers));
  return device.values(numbers);
}

HostTensor rows(const std::vector<std::vector<double>>& values) {
  HostTensor x;
  x.shape = {static_cast<std::int64_t>(values.size()), static_cast<std::int64_t>(values.front().size())};
  for (const auto& row : values) x.values.insert(x.values.end(), row.begin(), row.end());
  return x;
}

void check_rules(Backend backend) {
  const TestDevice device(backend);
  for (const DType dtype : {DType::F32, DType::BF16}) {
    CAPTURE(name_of(dtype));
    CHECK(indices(device, rows({{1, 3, 2}, {5, 4, 5}, {-7, -7, -7}, {-3, -2, -1}}), dtype) ==
          std::vector<double>{1, 0, 0, 2});
    CHECK(indices(device, rows({{0.0, -0.0}, {-0.0, 0.0}}), dtype) == std::vector<double>{0, 0});
    CHECK(indices(device, rows({{-kInfinity, -kInfinity}, {1, kInfinity}, {-kInfinity, -1}}), dtype) ==
          std::vector<double>{0, 1, 1});
    CHECK(indices(device, rows({{1, kNan, kInfinity}, {kNan, 2, kNan}, {3, 4, kNan}}), dtype) ==
          std::vector<double>{1, 0, 2});
    // columns beyond those asked for do not count, whatever they hold
    CHECK(indices(device, rows({{1, 2, 9, 9}, {3, 1, kNan, kInfinity}}), dtype, 2) == std::vector<double>{1, 0});
    CHECK(indices(device, rows({{7, 8}}), dtype, 1) == std::vector<double>{0});
    // ties and NaNs across the lanes of a warp: the lowest index wins wherever it is
    for (std::size_t first = 0; first < 100; first += 3) {
      for (const std::size_t second : {first + 1, first + 17, first + 32, first + 33}) {
        HostTensor x = rows({std::vector<double>(140, -1.0)});
        x.values[first] = x.values[second] = 2;
        CHECK(indices(device, x, dtype) == std::vector<double>{static_cast<double>(first)});
        x.values[first] = x.values[second] = kNan;
        x.values[first / 2] = first == 0 ? kNan : kInfinity;
        CHECK(indices(device, x, dtype) == std::vector<double>{static_cast<double>(first)});
      }
    }
  }
}

TEST_CASE("argmax: ties go to the lowest index, a NaN counts as the largest") { check_rules(Backend::Cpu); }

TEST_CASE("argmax: the rules hold on CUDA too, CUDA matches CPU") {
  if (skip_cuda()) return;
  check_rules(Backend::Cuda);
  const TestDevice cpu;
  const TestDevice gpu(Backend::Cuda);
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 5}, Shape{2, 3, 33}, Shape{64, 3, 40}, Shape{128, 408}}) {
    for (const DType dtype : {DType::F32, DType::BF16}) {
      CAPTURE(shape.str());
      const HostTensor x = integers(shape, 50, Role::Activation);  // with ties
      CHECK(indices(gpu, x, dtype) == indices(cpu, x, dtype));
      CHECK(indices(gpu, x, dtype, (shape[-1] + 1) / 2) == indices(cpu, x, dtype, (shape[-1] + 1) / 2));
    }
  }
}

TEST_CASE("argmax: the result has the shape of the rows; fp64 gives float64") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const Tensor x = device.tensor({2, 3, 2}, DType::F64, {0, 1, 1, 0, 1, 1, 1, 1 + 1e-15, 0, 0, -1, 0});
  const Tensor y = argmax(device.ctx(), x, 0, DType::F64);
  CHECK(y.shape() == Shape{2, 3});
  CHECK(y.dtype() == DType::F64);
  CHECK(device.values(y) == std::vector<double>{1, 0, 0, 1, 0, 1});
  CHECK(argmax(device.ctx(), device.tensor({2}, DType::F64, {0, 1}), 0, DType::I32).shape() == Shape{});
}

TEST_CASE("argmax: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const Tensor x = device.tensor({2, 3}, DType::F32, std::vector<double>(6));
  CHECK_THROWS_WITH_AS(argmax(ctx, x, 4, DType::I32), doctest::Contains("argmax: 4 columns, expected 0..3"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(argmax(ctx, x, -1, DType::I32), doctest::Contains("argmax: -1 columns"), ArgumentError);
  CHECK_THROWS_WITH_AS(argmax(ctx, x, 0, DType::F64), doctest::Contains("the result is float64, expected int32"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(argmax(ctx, device.tensor({2}, DType::I32, {0, 1}), 0, DType::I32),
                       doctest::Contains("x is int32, expected a floating dtype"), ArgumentError);
  CHECK_THROWS_WITH_AS(argmax(ctx, device.tensor({2, 0}, DType::F32, {}), 0, DType::I32),
                       doctest::Contains("0 columns, expected 1.."), ArgumentError);
}

}  // namespace
}  // namespace graft::test
