#include "engine/parameter_store.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/basic_kernels.h"
#include "engine/error.h"
#include "tests/support/device.h"

namespace graft::test {
namespace {

using Buffer = ParameterStore::Buffer;
using Values = std::vector<double>;

Values ramp(std::int64_t count, double first = 1) {
  Values values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(first + static_cast<double>(i));
  return values;
}

/// Three parameters, one of them padded both ways.
struct Fixture {
  TestDevice device;
  ParameterStore store;
  Param weight = store.add("read_in", "weight", {3, 5}, init::normal(0.5), {.pad_rows = true, .pad_columns = true});
  Param bias = store.add("read_in", "bias", {3}, init::uniform(0.1), {.decay = false, .pad_rows = true});
  Param gain = store.add("", "gain", {70}, init::constant(1), {.decay = false});

  explicit Fixture(Precision precision = Precision::Fp32) : device(Backend::Cpu, precision) {}
  void allocate() { store.allocate(device.ctx()); }
  [[nodiscard]] const ParameterStore::Entry& entry(const char* name) const { return *store.find(name); }
};

TEST_CASE("parameter store: names, counts and stored shapes") {
  Fixture f;
  CHECK(f.weight.name() == "read_in.weight");
  CHECK(f.gain.name() == "gain");
  CHECK(f.weight.shape() == Shape{3, 5});
  CHECK(f.entry("read_in.weight").stored == Shape{8, 8});
  CHECK(f.entry("read_in.bias").stored == Shape{8});
  CHECK(f.entry("gain").stored == Shape{70});
  CHECK(f.store.count() == 15 + 3 + 70);
  CHECK(f.store.find("read_out.weight") == nullptr);
  f.allocate();
  CHECK(f.weight.tensor(f.device.ctx()).shape() == Shape{8, 8});
}

TEST_CASE("parameter store: parameters lie in reverse order of registration, aligned") {
  Fixture f;
  f.allocate();
  CHECK(f.entry("gain").offset == 0);
  CHECK(f.entry("read_in.bias").offset == 128);  // after 70 rounded up to two times 64
  CHECK(f.entry("read_in.weight").offset == 192);
  CHECK(f.store.flat_elements() == 256);
  for (const Tensor& buffer :
       {f.store.weights(), f.store.gradients(), f.store.first_moments(), f.store.second_moments()}) {
    CHECK(buffer.shape() == Shape{256});
    CHECK(f.device.values(buffer) == Values(256, 0));
  }
  CHECK(f.device.values(f.store.decay_flags()) == Values{0, 0, 0, 1});
  CHECK_FALSE(static_cast<bool>(f.store.compute_copy()));
}

TEST_CASE("parameter store: without an optimizer there are weights alone") {
  Fixture f;
  f.store.allocate(f.device.ctx(), false);
  CHECK(static_cast<bool>(f.store.weights()));
  CHECK_FALSE(static_cast<bool>(f.store.gradients()));
  CHECK_FALSE(static_cast<bool>(f.store.first_moments()));
  CHECK_THROWS_WITH_AS(static_cast<void>(f.store.gradient_target(f.entry("gain").id)),
                       doctest::Contains("gain: the store keeps no gradients"), ArgumentError);
}

TEST_CASE("parameter store: reading gives back what was written, and padding stays zero") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16, Precision::Fp64}) {
    Fixture f(precision);
    f.allocate();
    const Context& ctx = f.device.ctx();
    f.store.initialize(ctx, 1);
    for (const Buffer buffer : {Buffer::Weights, Buffer::Gradients, Buffer::FirstMoments, Buffer::SecondMoments}) {
      f.store.write(ctx, f.entry("read_in.weight"), buffer, ramp(15));
      f.store.write(ctx, f.entry("read_in.bias"), buffer, ramp(3, 50));
      f.store.write(ctx, f.entry("gain"), buffer, ramp(70, 100));
      CHECK(f.store.read(ctx, f.entry("read_in.weight"), buffer) == ramp(15));
      CHECK(f.store.read(ctx, f.entry("read_in.bias"), buffer) == ramp(3, 50));
      CHECK(f.store.read(ctx, f.entry("gain"), buffer) == ramp(70, 100));
    }
    const Values flat = f.device.values(f.store.weights());
    double sum = 0;
    for (const double value : flat) sum += value;
    CHECK(sum == 15 * 16 / 2 + (50 + 51 + 52) + 70 * 100 + 70 * 69 / 2);
    CHECK(flat[192] == 1);
    CHECK(flat[192 + 5] == 0);  // column 5 of row 0: padding
    CHECK(flat[192 + 8] == 6);  // row 1 begins
  }
}

TEST_CASE("parameter store: a wrong number of values is refused") {
  Fixture f;
  f.allocate();
  CHECK_THROWS_WITH_AS(f.store.write(f.device.ctx(), f.entry("gain"), Buffer::Weights, ramp(69)),
                       doctest::Contains("gain: 69 values, expected 70"), ArgumentError);
}

TEST_CASE("parameter store: initial weights depend on the seed alone") {
  const auto hash_of = [](std::uint64_t seed, int threads, Precision precision = Precision::Fp32) {
    const TestDevice device(Backend::Cpu, precision, threads);
    ParameterStore store;
    store.add("a", "weight", {20, 30}, init::normal(0.02));
    store.add("b", "weight", {7}, init::uniform_fan_in(4));
    store.allocate(device.ctx());
    store.initialize(device.ctx(), seed);
    return store.hash(device.ctx());
  };
  CHECK(hash_of(5, 1) == hash_of(5, 2));
  CHECK(hash_of(5, 1) == hash_of(5, 1, Precision::Bf16));
  CHECK(hash_of(5, 1) != hash_of(6, 1));
}

TEST_CASE("parameter store: initializers have the moments they say") {
  const TestDevice device;
  ParameterStore store;
  store.add("", "normal", {100, 1000}, init::normal(0.02));
  store.add("", "normal_too", {100, 1000}, init::normal(0.02));
  store.add("", "uniform", {100000}, init::uniform(0.3));
  store.add("", "fan_in", {100000}, init::uniform_fan_in(25));
  store.add("", "constant", {9}, init::constant(-2));
  store.allocate(device.ctx());
  store.initialize(device.ctx(), 3);
  const auto values = [&](const char* name) { return store.read(device.ctx(), *store.find(name), Buffer::Weights); };
  struct Expected {
    const char* name;
    double variance;
    double bound;
  };
  for (const Expected& expected :
       {Expected{"normal", 0.02 * 0.02, 0.2}, Expected{"uniform", 0.09 / 3, 0.3}, Expected{"fan_in", 0.04 / 3, 0.2}}) {
    INFO(std::string(expected.name));
    double mean = 0;
    double square = 0;
    double largest = 0;
    for (const double x : values(expected.name)) {
      mean += x / 1e5;
      square += x * x / 1e5;
      largest = std::max(largest, std::abs(x));
    }
    CHECK(std::abs(mean) < 4 * std::sqrt(expected.variance / 1e5));
    CHECK(std::abs(square / expected.variance - 1) < 4 * std::sqrt(2 / 1e5));
    CHECK(largest <= expected.bound);
  }
  CHECK(values("constant") == Values(9, -2));
  CHECK(values("normal") != values("normal_too"));  // every parameter draws from a stream of its own
}

TEST_CASE("parameter store: padding does not change the initial weights") {
  const auto weights = [](bool padded) {
    const TestDevice device;
    ParameterStore store;
    store.add("", "w", {5, 11}, init::normal(1), {.pad_rows = padded, .pad_columns = padded});
    store.allocate(device.ctx());
    store.initialize(device.ctx(), 8);
    return store.read(device.ctx(), *store.find("w"), Buffer::Weights);
  };
  CHECK(weights(true) == weights(false));
}

TEST_CASE("parameter store: a name is taken once, and nothing is added after the memory was taken") {
  Fixture f;
  CHECK_THROWS_WITH_AS(f.store.add("read_in", "bias", {1}, init::constant(0)),
                       doctest::Contains("read_in.bias: a parameter of this name exists already"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(f.weight.tensor(f.device.ctx())),
                       doctest::Contains("read_in.weight: used before"), ArgumentError);
  CHECK_THROWS_AS(f.store.initialize(f.device.ctx(), 1), ArgumentError);
  f.allocate();
  CHECK_THROWS_WITH_AS(f.store.add("late", "weight", {1}, init::constant(0)),
                       doctest::Contains("late.weight: added after"), ArgumentError);
  CHECK_THROWS_AS(f.allocate(), ArgumentError);
}

TEST_CASE("parameter store: the bfloat16 copy follows the weights") {
  Fixture f(Precision::Bf16);
  f.allocate();
  const Context& ctx = f.device.ctx();
  f.store.initialize(ctx, 2);
  const Tensor compute = f.weight.tensor(ctx);
  const Tensor master = f.weight.master(ctx);
  CHECK(compute.dtype() == DType::BF16);
  CHECK(master.dtype() == DType::F32);
  CHECK(compute.id() == master.id());
  CHECK(compute.requires_grad());
  CHECK(f.store.owns(compute.id()));
  const auto rounded = [&] {
    Values values = f.device.values(master);
    for (double& value : values) value = static_cast<double>(static_cast<float>(bfloat16(static_cast<float>(value))));
    return values;
  };
  CHECK(f.device.values(compute) == rounded());
  f.store.write(ctx, f.entry("read_in.weight"), Buffer::Weights, Values(15, 1.0001));
  CHECK(f.device.values(compute) != rounded());
  f.store.refresh_compute_copy(ctx);
  CHECK(f.device.values(compute) == rounded());

  Fixture without;
  without.allocate();
  Context bf16 = without.device.ctx();
  bf16.precision = Precision::Bf16;
  CHECK_THROWS_WITH_AS(static_cast<void>(without.gain.tensor(bf16)), doctest::Contains("no bfloat16 copy"),
                       ArgumentError);
}

TEST_CASE("parameter store: the first gradient of a step is stored, later ones add") {
  Fixture f(Precision::Bf16);
  f.allocate();
  for (int step = 0; step < 2; ++step) {
    f.store.begin_gradients();
    const GradTarget first = f.store.gradient_target(f.entry("read_in.weight").id);
    const GradTarget second = f.store.gradient_target(f.entry("read_in.weight").id);
    CHECK_FALSE(first.accumulate);
    CHECK(second.accumulate);
    CHECK(first.view.dtype == DType::F32);  // whatever the precision of the weight
    CHECK(first.view.shape == Shape{8, 8});
    CHECK(first.view.data == f.store.gradients().slice(192, 64).view().data);
  }
  CHECK_FALSE(static_cast<bool>(f.store.gradient_target(next_tensor_id())));
}

TEST_CASE("parameter store: gradients that nobody wrote are zeroed, the others are left alone") {
  const TestDevice device;
  for (unsigned written = 0; written < 16; ++written) {
    ParameterStore store;
    for (int i = 0; i < 4; ++i) store.add("p", std::to_string(i), {65}, init::constant(0));
    store.allocate(device.ctx());
    fill_value(device.ctx(), {store.gradients().mutable_view(), std::numeric_limits<double>::quiet_NaN()});
    store.begin_gradients();
    for (unsigned i = 0; i < 4; ++i) {
      if ((written >> i & 1U) == 0) continue;
      const GradTarget target = store.gradient_target(store.entries()[i].id);
      fill_value(device.ctx(), {target.view, 3.0});
    }
    store.finish_gradients(device.ctx());
    INFO("written: " << written);
    for (unsigned i = 0; i < 4; ++i) {
      CHECK(store.read(device.ctx(), store.entries()[i], Buffer::Gradients) ==
            Values(65, (written >> i & 1U) == 0 ? 0.0 : 3.0));
    }
  }
}

}  // namespace
}  // namespace graft::test
