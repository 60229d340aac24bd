#include "ops/adam.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "ops/clip.h"
#include "ops/schedule.h"
#include "tests/support/device_state.h"
#include "tests/support/parity.h"
#include "tests/support/random.h"

namespace graft::test {
namespace {

using Buffer = ParameterStore::Buffer;

constexpr double kMaxNorm = 30;
const AdamOptions kOptions{0.9, 0.99, 1e-8, 0.1};
const Schedule kSchedule{ScheduleKind::Cosine, 1e-2, 5, 100, 0.1};

/// The same training in plain double arithmetic, parameter by parameter.
struct Reference {
  struct Parameter {
    std::vector<double> weights, first, second;
    bool decays;
  };
  std::vector<Parameter> parameters;
  int step = 0, updates = 0;
  double norm = 0;

  void update(const std::vector<std::vector<double>>& gradients) {
    double squares = 0;
    for (const auto& gradient : gradients) {
      for (const double g : gradient) squares += g * g;
    }
    norm = std::sqrt(squares);
    const double rate = kSchedule.evaluate(static_cast<std::uint64_t>(step++));
    if (!std::isfinite(norm)) return;
    ++updates;
    const double clip = std::min(1.0, kMaxNorm / (norm + 1e-6));
    for (std::size_t k = 0; k < parameters.size(); ++k) {
      Parameter& p = parameters[k];
      for (std::size_t i = 0; i < p.weights.size(); ++i) {
        const double g = clip * gradients[k][i];
        if (p.decays) p.weights[i] *= 1 - rate * kOptions.weight_decay;
        p.first[i] = kOptions.beta1 * p.first[i] + (1 - kOptions.beta1) * g;
        p.second[i] = kOptions.beta2 * p.second[i] + (1 - kOptions.beta2) * g * g;
        const double mean = p.first[i] / (1 - std::pow(kOptions.beta1, updates));
        const double square = p.second[i] / (1 - std::pow(kOptions.beta2, updates));
        p.weights[i] -= rate * mean / (std::sqrt(square) + kOptions.eps);
      }
    }
  }
};

double worst_error(const std::vector<double>& got, const std::vector<double>& expected) {
  double worst = 0;
  double scale = 1e-30;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - expected[i]));
    scale = std::max(scale, std::abs(expected[i]));
  }
  return worst / scale;
}

/// Sixty steps of clipping, Adam and schedule against the reference; one step's gradient is infinite.
void check_training(Backend backend, Precision precision, double tolerance) {
  TestDevice device(backend, precision);
  ParameterStore store;
  store.add("a", "weight", {13, 5}, init::normal(1), {.pad_rows = true, .pad_columns = true});
  store.add("a", "bias", {13}, init::normal(1), {.decay = false});
  store.add("b", "weight", {100, 70}, init::normal(1));
  store.add("b", "gain", {1}, init::constant(1), {.decay = false});
  const Context& ctx = device.ctx();
  store.allocate(ctx);
  store.initialize(ctx, 3);
  DeviceState state(device, initial_state(1, kSchedule, kOptions.beta1, kOptions.beta2));

  Reference reference;
  for (const auto& entry : store.entries()) {
    const auto count = static_cast<std::size_t>(entry.shape.elements());
    reference.parameters.push_back({store.read(ctx, entry, Buffer::Weights), std::vector<double>(count, 0.0),
                                    std::vector<double>(count, 0.0), entry.options.decay});
  }
  constexpr int kInfiniteStep = 20;
  for (int step = 0; step < 60; ++step) {
    std::vector<std::vector<double>> gradients;
    for (std::size_t k = 0; k < store.entries().size(); ++k) {
      const auto& entry = store.entries()[k];
      // the norm moves around the clipping threshold
      HostTensor gradient =
          randn(entry.shape, Role::Master, 100 + 10 * static_cast<std::uint64_t>(step) + k, 0.2 + 0.005 * step);
      for (double& g : gradient.values) g = static_cast<double>(static_cast<float>(g));
      if (step == kInfiniteStep && k == 2) gradient.values[77] = std::numeric_limits<double>::infinity();
      store.write(ctx, entry, Buffer::Gradients, gradient.values);
      gradients.push_back(gradient.values);
    }
    const std::vector<std::byte> before = device.bytes(store.weights());
    clip_by_global_norm(ctx, store.gradients(), kMaxNorm);
    adam(ctx, store, kOptions);
    if (step == kInfiniteStep) CHECK(device.bytes(store.weights()) == before);
    advance(ctx, kSchedule, kOptions.beta1, kOptions.beta2);
    reference.update(gradients);
    if (step != kInfiniteStep) CHECK(state.read().gradient_norm == doctest::Approx(reference.norm).epsilon(1e-6));
  }
  CHECK(state.read().step == 60);
  CHECK(state.read().updates == 59);
  CHECK(state.read().skipped == 1);

  for (std::size_t k = 0; k < store.entries().size(); ++k) {
    const auto& entry = store.entries()[k];
    CAPTURE(entry.name);
    CHECK(worst_error(store.read(ctx, entry, Buffer::Weights), reference.parameters[k].weights) < tolerance);
    CHECK(worst_error(store.read(ctx, entry, Buffer::FirstMoments), reference.parameters[k].first) < tolerance);
    CHECK(worst_error(store.read(ctx, entry, Buffer::SecondMoments), reference.parameters[k].second) < tolerance);
  }
  // padding and the gaps between parameters are still zero: nothing but the parameters has a norm
  const std::vector<double> flat = device.values(store.weights());
  std::int64_t nonzero = 0;
  for (const double value : flat) nonzero += value != 0 ? 1 : 0;
  CHECK(nonzero == store.count());
  if (precision == Precision::Bf16) {
    const std::vector<double> copy = device.values(store.compute_copy());
    for (std::size_t i = 0; i < flat.size(); ++i) {
      REQUIRE(copy[i] == static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(flat[i])))));
    }
  }
}

TEST_CASE("adam: sixty clipped and scheduled steps match plain double arithmetic") {
  check_training(Backend::Cpu, Precision::Fp64, 1e-12);
  check_training(Backend::Cpu, Precision::Fp32, 3e-6);
  check_training(Backend::Cpu, Precision::Bf16, 3e-6);
}

TEST_CASE("adam: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_training(Backend::Cuda, Precision::Fp32, 3e-6);
  check_training(Backend::Cuda, Precision::Bf16, 3e-6);
}

TEST_CASE("adam: a step with learning rate 0 moves the moments and not the weights") {
  TestDevice device(Backend::Cpu, Precision::Fp64);
  ParameterStore store;
  store.add("", "weight", {3}, init::normal(1));
  store.allocate(device.ctx());
  store.initialize(device.ctx(), 3);
  const DeviceState state(device, initial_state(1, kSchedule, 0.9, 0.99));
  const auto& entry = store.entries()[0];
  store.write(device.ctx(), entry, Buffer::Gradients, {1, 2, 3});
  const std::vector<double> before = store.read(device.ctx(), entry, Buffer::Weights);
  adam(device.ctx(), store, kOptions);
  CHECK(store.read(device.ctx(), entry, Buffer::Weights) == before);
  CHECK(store.read(device.ctx(), entry, Buffer::FirstMoments)[2] == doctest::Approx(0.3));
}

TEST_CASE("adam: what does not fit is refused") {
  TestDevice device;
  ParameterStore store;
  store.add("", "weight", {3}, init::constant(1));
  store.allocate(device.ctx(), false);
  CHECK_THROWS_WITH_AS(adam(device.ctx(), store, {}), doctest::Contains("no step state"), ArgumentError);
  const DeviceState state(device);
  CHECK_THROWS_WITH_AS(adam(device.ctx(), store, {}), doctest::Contains("allocated without an optimizer"),
                       ArgumentError);
  ParameterStore trained;
  trained.add("", "weight", {3}, init::constant(1));
  trained.allocate(device.ctx());
  CHECK_THROWS_WITH_AS(adam(device.ctx(), trained, {.beta2 = 1.0}), doctest::Contains("betas are 0.9 and 1"),
                       ArgumentError);
}

}  // namespace
}  // namespace graft::test
