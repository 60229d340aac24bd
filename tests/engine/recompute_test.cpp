#include "engine/recompute.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/parameter_store.h"
#include "engine/tape.h"
#include "ops/activation.h"
#include "ops/linear.h"
#include "tests/support/counting_memory.h"
#include "tests/support/device.h"

namespace graft::test {
namespace {

constexpr std::int64_t kWidth = 8;
constexpr std::int64_t kHidden = 128;
constexpr int kBlocks = 4;

struct Result {
  std::vector<std::byte> output, input_gradient, parameter_gradients;
  std::size_t saved = 0;  // bytes that wait for the backward pass
  std::size_t peak = 0;
};

/// A chain of blocks with wide insides, each of them recomputed or not.
Result run(bool again, bool input_needs_gradient = true) {
  TestDevice device;
  ParameterStore store;
  std::vector<Param> weights;
  for (int i = 0; i < kBlocks; ++i) {
    const std::string scope = "block" + std::to_string(i);
    weights.push_back(store.add(scope, "in", {kHidden, kWidth}, init::normal(0.3)));
    weights.push_back(store.add(scope, "out", {kWidth, kHidden}, init::normal(0.1)));
  }
  store.allocate(device.ctx());
  store.initialize(device.ctx(), 4);
  Tensor x = device.tensor(randn({16, kWidth}));
  x.set_requires_grad(input_needs_gradient);

  const auto memory = std::make_shared<CountingMemory>(device.ctx().memory);
  device.ctx().memory = memory;
  Result result;
  Tape tape;
  const Context ctx = device.ctx().with_tape(tape);
  store.begin_gradients();
  {
    Tensor y = x;
    for (int i = 0; i < kBlocks; ++i) {
      const auto block = [in = weights[2 * i], out = weights[2 * i + 1]](const Context& c, const Tensor& input) {
        return linear(c, activation(c, linear(c, input, in.tensor(c)), Activation::GeluTanh), out.tensor(c));
      };
      y = again ? recompute(ctx, block, y) : block(ctx, y);
    }
    result.saved = memory->bytes();
    result.output = device.bytes(y);
    const Tensor seed = device.tensor(randn(y.shape(), Role::Activation, 9));
    const Grads grads = tape.backward_from(ctx, {{y, seed}}, &store);
    CHECK(grads.has(x) == input_needs_gradient);
    if (input_needs_gradient) result.input_gradient = device.bytes(grads.tensor(x));
  }
  store.finish_gradients(ctx);
  result.peak = memory->peak();
  CHECK(memory->blocks() == 0);
  result.parameter_gradients = device.bytes(store.gradients());
  return result;
}

TEST_CASE("recompute: the same bits with less memory") {
  const Result kept = run(false);
  const Result recomputed = run(true);
  CHECK(recomputed.output == kept.output);
  CHECK(recomputed.input_gradient == kept.input_gradient);
  CHECK(recomputed.parameter_gradients == kept.parameter_gradients);
  const std::size_t narrow = 16 * kWidth * sizeof(float);
  CHECK(recomputed.saved <= kBlocks * narrow);  // a block's output, nothing from its inside
  CHECK(kept.saved >= kBlocks * 2 * 16 * kHidden * sizeof(float));
  CHECK(recomputed.peak < kept.peak);
}

TEST_CASE("recompute: parameters get gradients where the input needs none") {
  const Result kept = run(false, false);
  const Result recomputed = run(true, false);
  CHECK(recomputed.output == kept.output);
  CHECK(recomputed.parameter_gradients == kept.parameter_gradients);
}

TEST_CASE("recompute: without a tape the function runs once") {
  const TestDevice device;
  int runs = 0;
  const Tensor x = device.tensor(randn({3}));
  const Tensor y = recompute(
      device.ctx(),
      [&](const Context& c, const Tensor& input) {
        ++runs;
        return activation(c, input, Activation::GeluTanh);
      },
      x);
  CHECK(runs == 1);
  CHECK(device.values(y) == device.values(activation(device.ctx(), x, Activation::GeluTanh)));
}

TEST_CASE("recompute: an input's gradients from inside and outside add up") {
  const TestDevice device;
  const Tensor x = device.tensor(randn({5}));
  const auto gradient = [&](bool again) {
    Tape tape;
    const Context ctx = device.ctx().with_tape(tape);
    const auto block = [](const Context& c, const Tensor& input) { return activation(c, input, Activation::GeluTanh); };
    const Tensor inside = again ? recompute(ctx, block, x) : block(ctx, x);
    const Tensor outside = activation(ctx, x, Activation::GeluErf);
    const Tensor seed = device.tensor(randn({5}, Role::Activation, 3));
    return device.values(tape.backward_from(ctx, {{inside, seed}, {outside, seed}}).of(x));
  };
  CHECK(gradient(true) == gradient(false));
}

TEST_CASE("recompute: a function without anything to differentiate") {
  const TestDevice device;
  const Tensor x = device.tensor(constant(randn({5})));
  Tape tape;
  const Context ctx = device.ctx().with_tape(tape);
  const Tensor y = recompute(
      ctx, [](const Context& c, const Tensor& input) { return activation(c, input, Activation::GeluTanh); }, x);
  const Grads grads = tape.backward_from(ctx, {{y, device.tensor(randn({5}))}});
  CHECK_FALSE(grads.has(x));
}

}  // namespace
}  // namespace graft::test
