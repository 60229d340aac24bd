#include "ops/schedule.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "tests/support/device_state.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

const double kPi = std::acos(-1.0);

TEST_CASE("schedule: constant with a linear warm-up") {
  const Schedule schedule{.kind = ScheduleKind::Constant, .base = 2.0, .warmup = 4};
  for (const auto& [step, rate] :
       std::vector<std::pair<std::uint64_t, double>>{{0, 0}, {1, 0.5}, {3, 1.5}, {4, 2}, {1000, 2}}) {
    CHECK(schedule.evaluate(step) == rate);
  }
  CHECK(Schedule{.base = 0.1}.evaluate(0) == 0.1);
}

TEST_CASE("schedule: linear and cosine fall to the final fraction and stay there") {
  const std::int64_t warmup = 7, total = 50;
  for (const double last : {0.0, 0.1}) {
    const Schedule linear{ScheduleKind::Linear, 3.0, warmup, total, last};
    const Schedule cosine{ScheduleKind::Cosine, 3.0, warmup, total, last};
    CHECK(linear.evaluate(0) == 0);
    CHECK(cosine.evaluate(0) == 0);
    CHECK(cosine.evaluate(3) == doctest::Approx(3.0 * 3 / 7).epsilon(1e-15));
    for (std::int64_t step = warmup; step <= total; ++step) {
      const double progress = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
      const auto at = static_cast<std::uint64_t>(step);
      CHECK(linear.evaluate(at) == doctest::Approx(3.0 * (last + (1 - last) * (1 - progress))).epsilon(1e-14));
      CHECK(cosine.evaluate(at) ==
            doctest::Approx(3.0 * (last + (1 - last) * 0.5 * (1 + std::cos(kPi * progress)))).epsilon(1e-14));
    }
    CHECK(linear.evaluate(60) == doctest::Approx(3.0 * last));
    CHECK(cosine.evaluate(60) == doctest::Approx(3.0 * last));
  }
}

TEST_CASE("schedule: an interval keeps the rate for an epoch") {
  const Schedule schedule{.kind = ScheduleKind::Cosine, .base = 1.0, .total = 64 * 100, .interval = 100};
  for (const int epoch : {0, 1, 17, 63}) {
    const double rate = 0.5 * (1 + std::cos(kPi * epoch / 64));
    CHECK(schedule.evaluate(static_cast<std::uint64_t>(100 * epoch)) == doctest::Approx(rate).epsilon(1e-14));
    CHECK(schedule.evaluate(static_cast<std::uint64_t>(100 * epoch + 99)) == doctest::Approx(rate).epsilon(1e-14));
  }
}

void check_advance(Backend backend) {
  TestDevice device(backend);
  const Schedule schedule{ScheduleKind::Cosine, 1e-3, 3, 20, 0.1};
  DeviceState state(device, initial_state(11, schedule, 0.9, 0.999));
  CHECK(state.read().learning_rate == 0);
  CHECK(state.read().bias_correction1 == doctest::Approx(1 - 0.9).epsilon(1e-15));
  CHECK(state.read().bias_correction2 == doctest::Approx(1 - 0.999).epsilon(1e-15));
  std::uint64_t updates = 0;
  for (std::uint64_t step = 0; step < 25; ++step) {
    const bool skipped = step == 4 || step == 5;
    if (skipped) {
      StepState changed = state.read();
      changed.skip = 1;
      state.write(changed);
    }
    advance(device.ctx(), schedule, 0.9, 0.999);
    updates += skipped ? 0 : 1;
    const StepState got = state.read();
    CHECK(got.step == step + 1);
    CHECK(got.seed == 11);
    CHECK(got.updates == updates);
    CHECK(got.skip == 0);
    CHECK(got.learning_rate == doctest::Approx(schedule.evaluate(step + 1)).epsilon(1e-14));
    CHECK(got.bias_correction1 == doctest::Approx(1 - std::pow(0.9, double(updates + 1))).epsilon(1e-13));
    CHECK(got.bias_correction2 == doctest::Approx(1 - std::pow(0.999, double(updates + 1))).epsilon(1e-12));
  }
}

TEST_CASE("advance: counts, and prepares the next update") { check_advance(Backend::Cpu); }

TEST_CASE("advance: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_advance(Backend::Cuda);
}

TEST_CASE("initial_state: is what a run that came that far has") {
  TestDevice device;
  const Schedule schedule{ScheduleKind::Linear, 1e-3, 3, 20, 0.1};
  DeviceState state(device, initial_state(5, schedule, 0.9, 0.99));
  for (int step = 0; step < 9; ++step) advance(device.ctx(), schedule, 0.9, 0.99);
  const StepState expected = initial_state(5, schedule, 0.9, 0.99, 9, 9);
  const StepState got = state.read();
  CHECK(got.step == expected.step);
  CHECK(got.updates == expected.updates);
  CHECK(got.learning_rate == expected.learning_rate);
  CHECK(got.bias_correction1 == expected.bias_correction1);
  CHECK(got.bias_correction2 == expected.bias_correction2);
}

TEST_CASE("advance: a context without a step state is refused") {
  const TestDevice device;
  CHECK_THROWS_WITH_AS(advance(device.ctx(), Schedule{}, 0.9, 0.999), doctest::Contains("no step state"),
                       ArgumentError);
}

}  // namespace
}  // namespace graft::test
