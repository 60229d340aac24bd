#include "ops/clip.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "engine/error.h"
#include "tests/support/device_state.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

double norm_of(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

void check_norms(Backend backend, Precision precision, double tolerance) {
  // one element, ragged, one block, several blocks with a short last one
  for (const std::int64_t elements : {1, 37, 4096, 300000, 300003}) {
    CAPTURE(elements);
    TestDevice device(backend, precision);
    DeviceState state(device);
    const HostTensor gradients = randn({elements}, Role::Stream);
    const Tensor tensor = device.tensor(gradients);
    const double norm = norm_of(device.values(tensor));
    for (const double max_norm : {0.5 * norm, 2 * norm, 0.0}) {
      clip_by_global_norm(device.ctx(), tensor, max_norm);
      const StepState got = state.read();
      CHECK(got.gradient_norm == doctest::Approx(norm).epsilon(tolerance));
      const double scale = max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
      CHECK(got.clip_scale == doctest::Approx(scale).epsilon(tolerance));
      CHECK(got.skip == 0);
      CHECK(got.skipped == 0);
    }
    clip_by_global_norm(device.ctx(), tensor, 1.0);
    const double first = state.read().gradient_norm;
    clip_by_global_norm(device.ctx(), tensor, 1.0);
    CHECK(state.read().gradient_norm == first);  // the same bits
  }
}

void check_non_finite(Backend backend) {
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    TestDevice device(backend);
    DeviceState state(device);
    HostTensor gradients = randn({20000}, Role::Stream);
    gradients.values[12345] = bad;
    clip_by_global_norm(device.ctx(), device.tensor(gradients), 1.0);
    const StepState got = state.read();
    CHECK_FALSE(std::isfinite(got.gradient_norm));
    CHECK(got.skip == 1);
    CHECK(got.skipped == 1);
  }
}

TEST_CASE("clip: norm and scale match the formula") {
  check_norms(Backend::Cpu, Precision::Fp64, 1e-13);
  check_norms(Backend::Cpu, Precision::Fp32, 1e-13);  // squares are summed in double
}

TEST_CASE("clip: a norm that is not finite skips the update") { check_non_finite(Backend::Cpu); }

TEST_CASE("clip: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_norms(Backend::Cuda, Precision::Fp32, 1e-6);  // each thread adds up to 40 squares in float32
  check_non_finite(Backend::Cuda);
}

TEST_CASE("clip: what does not fit is refused") {
  TestDevice device;
  const Tensor gradients = device.tensor(randn({8}, Role::Stream));
  CHECK_THROWS_WITH_AS(clip_by_global_norm(device.ctx(), gradients, 1.0), doctest::Contains("no step state"),
                       ArgumentError);
  const DeviceState state(device);
  const Tensor wide = device.tensor({2}, DType::F64, {1, 2});
  CHECK_THROWS_WITH_AS(clip_by_global_norm(device.ctx(), wide, 1.0),
                       doctest::Contains("gradients are float64, expected float32 in fp32"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
