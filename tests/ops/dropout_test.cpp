#include "ops/dropout.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/device_state.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Case {
  Shape shape;
  double p;
  bool shared;
};
const std::vector<Case> kCases = {
    {Shape{1}, 0.5, false},        {Shape{3, 33}, 0.1, false},    {Shape{2, 5, 128}, 0.3, false},
    {Shape{2, 37, 33}, 0.1, true}, {Shape{3, 16, 64}, 0.5, true}, {Shape{1, 1, 5}, 0.9, true},
};

const StepState kState{.step = 41, .seed = 0x1234567890ABCDEFULL};

/// The op in training, with a step state that lives as long as the run of the op and its backward.
struct Trained {
  explicit Trained(Backend backend, Precision precision) : device(backend, precision), state(device, kState) {
    device.ctx().training = true;
  }
  TestDevice device;
  DeviceState state;
};

std::vector<double> ones(const Shape& shape) {
  return std::vector<double>(static_cast<std::size_t>(shape.elements()), 1.0);
}

/// Output for ones and gradient for ones.
struct Masks {
  std::vector<double> forward, backward;
};
Masks masks_of(Trained& run, const Case& c, std::uint32_t purpose = 7, std::uint32_t first_example = 0) {
  const Context& ctx = run.device.ctx();
  Tensor x = run.device.tensor(c.shape, ctx.compute_dtype(), ones(c.shape));
  x.set_requires_grad(true);
  Tape tape;
  const Tensor y = dropout(ctx.with_tape(tape), x, c.p, purpose, c.shared, first_example);
  const Grads grads = tape.backward_from(ctx, {{y, run.device.tensor(y.shape(), y.dtype(), ones(c.shape))}});
  return {run.device.values(y), run.device.values(grads.tensor(x))};
}

TEST_CASE("dropout: the mask is the documented one, forward and backward") {
  Trained run(Backend::Cpu, Precision::Fp64);
  for (const Case& c : kCases) {
    CAPTURE(c.shape.str());
    const Masks got = masks_of(run, c);
    CHECK(got.forward == got.backward);
    const std::int64_t repeats = c.shared ? c.shape[1] : 1;
    const std::int64_t draws = c.shape.elements() / c.shape[0] / repeats;
    bool same = true;
    for (std::int64_t i = 0; i < c.shape.elements(); ++i) {
      const Draw draw{kState.seed, RandomDomain::Dropout, kState.step,
                      static_cast<std::uint32_t>(i / (draws * repeats))};
      const bool dropped = draw.bits(7, static_cast<std::uint32_t>(i % draws)) < c.p * 0x1p32;
      same = same && got.forward[static_cast<std::size_t>(i)] == (dropped ? 0 : 1 / (1 - c.p));
    }
    CHECK(same);
  }
}

TEST_CASE("dropout: step, seed, purpose and example change the mask; the rate is p") {
  Trained run(Backend::Cpu, Precision::Fp32);
  const Case c{Shape{8, 4096}, 0.1, false};
  std::set<std::vector<double>> seen{masks_of(run, c).forward, masks_of(run, c, 8).forward,
                                     masks_of(run, c, 7, 8).forward};
  run.state.write({.step = kState.step + 1, .seed = kState.seed});
  seen.insert(masks_of(run, c).forward);
  run.state.write({.step = kState.step, .seed = kState.seed + 1});
  seen.insert(masks_of(run, c).forward);
  CHECK(seen.size() == 5);
  for (const std::vector<double>& mask : seen) {
    double kept = 0;
    for (const double value : mask) kept += value != 0 ? 1 : 0;
    // five standard deviations of a mean over 32768 draws: 5 * sqrt(0.09 / 32768) = 0.0083
    CHECK(std::abs(kept / static_cast<double>(mask.size()) - 0.9) < 0.0083);
  }
}

TEST_CASE("dropout: two halves of a batch draw what the whole does") {
  Trained run(Backend::Cpu, Precision::Fp32);
  const std::vector<double> whole = masks_of(run, {Shape{6, 5, 7}, 0.4, true}).forward;
  std::vector<double> halves = masks_of(run, {Shape{3, 5, 7}, 0.4, true}).forward;
  const std::vector<double> second = masks_of(run, {Shape{3, 5, 7}, 0.4, true}, 7, 3).forward;
  halves.insert(halves.end(), second.begin(), second.end());
  CHECK(whole == halves);
}

TEST_CASE("dropout: gradients are right, accumulated or stored") {
  const StepState state = kState;  // host memory is the CPU's device memory
  for (const Case& c : kCases) {
    const Op op = [&](const Context& ctx, const std::vector<Tensor>& in) {
      Context training = ctx;
      training.training = true;
      training.state = const_cast<StepState*>(&state);
      return std::vector<Tensor>{dropout(training, in[0], c.p, 3, c.shared)};
    };
    CAPTURE(c.shape.str());
    CHECK(gradcheck(op, {randn(c.shape)}) < 1e-7);
    check_parity(Backend::Cpu, Precision::Fp32, op, {randn(c.shape)}, {1e-6, 1e-6});
    check_parity(Backend::Cpu, Precision::Bf16, op, {randn(c.shape)}, {4e-3, 4e-3});
  }
}

TEST_CASE("dropout: CUDA draws the CPU's mask bit for bit") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    for (const Case& c : kCases) {
      CAPTURE(c.shape.str());
      Trained cpu(Backend::Cpu, precision), cuda(Backend::Cuda, precision);
      const Masks expected = masks_of(cpu, c);
      const Masks got = masks_of(cuda, c);
      CHECK(got.forward == expected.forward);
      CHECK(got.backward == expected.backward);
    }
  }
}

TEST_CASE("dropout: CUDA adds to a gradient that is there") {
  if (skip_cuda()) return;
  for (const Case& c : kCases) {
    Trained run(Backend::Cuda, Precision::Fp32);
    const Context& ctx = run.device.ctx();
    Tensor x = run.device.tensor(c.shape, DType::F32, ones(c.shape));
    x.set_requires_grad(true);
    Tape tape;
    const Context recording = ctx.with_tape(tape);
    const Tensor y = dropout(recording, x, c.p, 1, c.shared);
    const Tensor z = dropout(recording, x, c.p, 2, c.shared);
    const Tensor one = run.device.tensor(c.shape, DType::F32, ones(c.shape));
    const Grads grads = tape.backward_from(ctx, {{y, one}, {z, one}});
    std::vector<double> expected = run.device.values(y);
    const std::vector<double> second = run.device.values(z);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += second[i];
    const std::vector<double> got = run.device.values(grads.tensor(x));
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK(got[i] == doctest::Approx(expected[i]));
  }
}

TEST_CASE("dropout: is the identity outside of training and for p = 0") {
  const TestDevice device;
  const Tensor x = device.tensor({2}, DType::F32, {1, 2});
  CHECK(dropout(device.ctx(), x, 0.5, 1).id() == x.id());
  Context training = device.ctx();
  training.training = true;
  CHECK(dropout(training, x, 0.0, 1).view().data == x.view().data);
}

TEST_CASE("dropout: what does not fit is refused") {
  const TestDevice device;
  Context ctx = device.ctx();
  ctx.training = true;
  const Tensor x = device.tensor({1, 2}, DType::F32, {1, 2});
  CHECK_THROWS_WITH_AS(static_cast<void>(dropout(ctx, x, 1.0, 1)),
                       doctest::Contains("dropout: p is 1, expected 0 <= p < 1"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(dropout(ctx, x, 0.5, 70000)), doctest::Contains("expected below 65536"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(dropout(ctx, x, 0.5, 1, true)),
                       doctest::Contains("x is [1, 2], expected [B, T, D]"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(dropout(ctx, x, 0.5, 1)), doctest::Contains("no step state"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
