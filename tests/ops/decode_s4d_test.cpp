#include "ops/decode_s4d.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/device.h"
#include "tests/support/parity.h"
#include "tests/support/pieces.h"

namespace graft::test {
namespace {

struct Case {
  std::int64_t batch, tokens, channels, modes;
  std::int64_t gate_row = 0;  // 0: no gate
  std::int64_t gate_offset = 0;
  S4dGateActivation activation = S4dGateActivation::None;
};

// one element; ragged; every number of lanes a channel of the CUDA kernel, full and partly filled; several thread
// blocks; a sequence that s4d() cuts into chunks
const std::vector<Case> kCases = {
    {1, 1, 1, 1},
    {2, 13, 70, 8},
    {3, 10, 33, 3, 40, 5},
    {2, 17, 5, 11, 5, 0, S4dGateActivation::Silu},
    {2, 12, 17, 64, 34, 17},
    {1, 150, 40, 8, 80, 40, S4dGateActivation::Silu},
};

std::vector<HostTensor> inputs_of(const Case& c) {
  std::vector<HostTensor> inputs{randn({c.batch, c.tokens, c.channels}),
                                 randn({c.channels, c.modes, 2}, Role::Master, 2, 0.7),
                                 uniform({c.channels}, std::log(0.05), std::log(0.5), Role::Master, 3),
                                 uniform({c.channels, c.modes}, std::log(0.2), std::log(1.0), Role::Master, 4),
                                 uniform({c.channels, c.modes}, -1, 8, Role::Master, 5),
                                 randn({c.channels}, Role::Master, 6)};
  if (c.gate_row > 0) inputs.push_back(randn({c.batch, c.tokens, c.gate_row}, Role::Activation, 7));
  return inputs;
}

S4dParameters parameters_of(const std::vector<Tensor>& in) {
  return {.c = in[1], .log_dt = in[2], .log_a_real = in[3], .a_imag = in[4], .skip = in[5]};
}
S4dGate gate_of(const Case& c, const std::vector<Tensor>& in) {
  return c.gate_row > 0 ? S4dGate{in[6], c.gate_offset, c.activation} : S4dGate{};
}

Op whole_of(const Case& c) {
  return [c](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{s4d(ctx, in[0], parameters_of(in), gate_of(c, in))};
  };
}

ExtensionMaker extension_of(const Case& c) {
  return [c](const Context& ctx) -> Extension {
    const Tensor state = zeros(ctx, {c.batch, c.channels, c.modes, 2}, ctx.stream_dtype());
    return [c, ctx, state](const std::vector<Tensor>& in, const Tensor&) {
      return extend_s4d(ctx, in[0], parameters_of(in), gate_of(c, in), state);
    };
  };
}

void check(Backend backend, Precision precision, double tolerance) {
  for (const Case& c : kCases) {
    CAPTURE(c.channels);
    std::vector<std::size_t> sequences{0};
    if (c.gate_row > 0) sequences.push_back(6);
    check_extension(backend, precision, whole_of(c), extension_of(c), inputs_of(c), sequences, tolerance);
  }
}

// float32: states are sums over up to 150 steps, outputs over 64 modes. bfloat16: inputs enter both sides rounded and
// states are float32, so what differs is the rounding of results, at most 2^-8 = 3.9e-3 of them.
constexpr double kFloat = 1e-5;
constexpr double kBf16 = 4e-3;

TEST_CASE("decode_s4d: pieces equal the whole") {
  check(Backend::Cpu, Precision::Fp64, 1e-12);
  check(Backend::Cpu, Precision::Fp32, kFloat);
  check(Backend::Cpu, Precision::Bf16, kBf16);
}

TEST_CASE("decode_s4d: CUDA matches CPU") {
  if (skip_cuda()) return;
  check(Backend::Cuda, Precision::Fp32, kFloat);
  check(Backend::Cuda, Precision::Tf32, kFloat);
  check(Backend::Cuda, Precision::Bf16, kBf16);
}

TEST_CASE("decode_s4d: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto apply = [&](const Context& context, const Shape& u, const Shape& state, const Shape& gate,
                         std::int64_t offset, const Shape& c) {
    const auto make = [&](const Shape& shape) { return zeros(ctx, shape, DType::F32); };
    const S4dParameters parameters{make(c), make({5}), make({5, 3}), make({5, 3}), make({5})};
    static_cast<void>(
        extend_s4d(context, make(u), parameters, {make(gate), offset, S4dGateActivation::None}, make(state)));
  };
  const Shape u{2, 1, 5}, state{2, 5, 3, 2}, gate{2, 1, 8}, c{5, 3, 2};
  CHECK_THROWS_WITH_AS(apply(ctx, {2, 5}, state, gate, 0, c),
                       doctest::Contains("extend_s4d: u is [2, 5], expected [B, n, H]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply(ctx, u, state, gate, 0, {5, 65, 2}), doctest::Contains("expected [5, 1 to 64 modes, 2]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply(ctx, u, {2, 5, 6}, gate, 0, c),
                       doctest::Contains("state is [2, 5, 6], expected [2, 5, 3, 2]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply(ctx, u, state, {2, 2, 8}, 0, c), doctest::Contains("expected [2, 1, row]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply(ctx, u, state, gate, 4, c), doctest::Contains("the gate is columns 4 to 8"),
                       ArgumentError);
  Tape tape;
  CHECK_THROWS_WITH_AS(apply(ctx.with_tape(tape), u, state, gate, 0, c), doctest::Contains("a tape is recording"),
                       ArgumentError);
}

}  // namespace
}  // namespace graft::test
