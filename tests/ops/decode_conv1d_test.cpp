#include "ops/decode_conv1d.h"

#include <doctest/doctest.h>

#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/device.h"
#include "tests/support/parity.h"
#include "tests/support/pieces.h"

namespace graft::test {
namespace {

struct Case {
  std::int64_t batch, tokens, row, offset, channels, width;
  bool bias = true, silu = true;
  Role parameters = Role::Weight;
};

// shorter than the window, ragged, several thread blocks, more tokens than a thread reads ahead
const std::vector<Case> kCases = {
    {1, 1, 1, 0, 1, 2},          {2, 2, 9, 3, 5, 4, false, false},
    {3, 13, 40, 7, 33, 3},       {2, 17, 600, 88, 300, 4, true, true, Role::Master},
    {1, 9, 64, 0, 64, 2, false}, {2, 40, 70, 5, 61, 4, true, false, Role::Master},
};

std::vector<HostTensor> inputs_of(const Case& c) {
  std::vector<HostTensor> inputs{randn({c.batch, c.tokens, c.row}), randn({c.channels, c.width}, c.parameters, 2)};
  if (c.bias) inputs.push_back(randn({c.channels}, c.parameters, 3));
  return inputs;
}

Tensor bias_of(const Case& c, const std::vector<Tensor>& in) { return c.bias ? in[2] : Tensor(); }

Op whole_of(const Case& c) {
  return [c](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{causal_conv1d(ctx, in[0], c.offset, c.channels, in[1], bias_of(c, in), c.silu)};
  };
}

ExtensionMaker extension_of(const Case& c) {
  return [c](const Context& ctx) -> Extension {
    const Tensor state = zeros(ctx, {c.batch, c.width - 1, c.channels}, ctx.compute_dtype());
    return [c, ctx, state](const std::vector<Tensor>& in, const Tensor&) {
      return extend_causal_conv1d(ctx, in[0], c.offset, c.channels, in[1], bias_of(c, in), c.silu, state);
    };
  };
}

void check(Backend backend, Precision precision, double tolerance) {
  for (const Case& c : kCases) {
    CAPTURE(c.channels);
    check_extension(backend, precision, whole_of(c), extension_of(c), inputs_of(c), {0}, tolerance);
  }
}

// float32: sums of at most 5 terms. bfloat16: the state holds inputs, so all that differs is the rounding of results,
// at most 2^-8 = 3.9e-3 of them.
constexpr double kFloat = 1e-5;
constexpr double kBf16 = 4e-3;

TEST_CASE("decode_conv1d: pieces equal the whole") {
  check(Backend::Cpu, Precision::Fp64, 1e-12);
  check(Backend::Cpu, Precision::Fp32, kFloat);
  check(Backend::Cpu, Precision::Bf16, kBf16);
}

TEST_CASE("decode_conv1d: CUDA matches CPU") {
  if (skip_cuda()) return;
  check(Backend::Cuda, Precision::Fp32, kFloat);
  check(Backend::Cuda, Precision::Tf32, kFloat);
  check(Backend::Cuda, Precision::Bf16, kBf16);
}

TEST_CASE("decode_conv1d: the state holds the last inputs") {
  const auto run = [](Backend backend) {
    const TestDevice device(backend);
    const Tensor state = device.tensor({1, 3, 2}, DType::F32, {1, 2, 3, 4, 5, 6});
    const Tensor weight = device.tensor({2, 4}, DType::F32, std::vector<double>(8, 1.0));
    const Tensor one = device.tensor({1, 1, 3}, DType::F32, {9, 7, 8});
    const Tensor y = extend_causal_conv1d(device.ctx(), one, 1, 2, weight, {}, false, state);
    CHECK(device.values(y) == std::vector<double>{16, 20});
    CHECK(device.values(state) == std::vector<double>{3, 4, 5, 6, 7, 8});
  };
  run(Backend::Cpu);
  if (!skip_cuda()) run(Backend::Cuda);
}

TEST_CASE("decode_conv1d: what does not fit is refused") {
  const TestDevice device;
  const auto apply = [&](const Shape& x, std::int64_t offset, const Shape& weight, const Shape& state,
                         DType dtype = DType::F32) {
    const Context& ctx = device.ctx();
    static_cast<void>(extend_causal_conv1d(ctx, zeros(ctx, x, DType::F32), offset, 4, zeros(ctx, weight, DType::F32),
                                           {}, true, zeros(ctx, state, dtype)));
  };
  CHECK_THROWS_WITH_AS(apply({2, 4}, 0, {4, 4}, {2, 3, 4}),
                       doctest::Contains("extend_causal_conv1d: x is [2, 4] and has 4 channels"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 6}, 3, {4, 4}, {2, 3, 4}), doctest::Contains("columns 3 to 6 of x"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 6}, 0, {4, 5}, {2, 4, 4}), doctest::Contains("weight is [4, 5]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 6}, 0, {4, 4}, {2, 4, 4}),
                       doctest::Contains("state is [2, 4, 4], expected [2, 3, 4]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 6}, 0, {4, 4}, {2, 3, 4}, DType::BF16),
                       doctest::Contains("state is bfloat16, expected float32 in fp32"), ArgumentError);
  Tape tape;
  const Context recording = device.ctx().with_tape(tape);
  CHECK_THROWS_WITH_AS(static_cast<void>(extend_causal_conv1d(recording, zeros(recording, {1, 1, 4}, DType::F32), 0, 4,
                                                              zeros(recording, {4, 2}, DType::F32), {}, true,
                                                              zeros(recording, {1, 1, 4}, DType::F32))),
                       doctest::Contains("a tape is recording"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
