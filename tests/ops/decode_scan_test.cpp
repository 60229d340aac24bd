#include "ops/decode_scan.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/device.h"
#include "tests/support/parity.h"
#include "tests/support/pieces.h"

namespace graft::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---- Mamba

struct ScanCase {
  std::int64_t batch, tokens, width, state;
  bool gate = true, skip = true, bias = true, softplus = true;
  std::int64_t b_first = 0, between = 0, bc_after = 0, z_first = 0, z_after = 0;
};

// one element; every number of lanes and states of the CUDA kernel, full and partly filled; packed tensors with columns
// of others before, between and after
const std::vector<ScanCase> kScans = {
    {1, 1, 1, 1},
    {2, 13, 70, 16},
    {3, 10, 33, 5, true, true, true, true, 3, 1, 2, 5, 1},
    {2, 20, 9, 16, false, false, false, false},
    {1, 12, 20, 64, true, false, true, true, 7, 0, 1, 20, 0},
    {2, 11, 7, 100, false, true, true, true, 1, 2, 3},
    {1, 14, 5, 256},
    {1, 10, 6, 130, true, true, false, true, 0, 3, 0, 1, 1},
};

std::vector<HostTensor> inputs_of(const ScanCase& c) {
  const Shape shape{c.batch, c.tokens, c.width};
  std::vector<HostTensor> inputs{
      randn(shape, Role::Activation, 1),
      c.softplus ? randn(shape, Role::Activation, 2) : uniform(shape, 0.05, 1.0, Role::Activation, 2),
      uniform({c.width, c.state}, -1.5, 1.0, Role::Master, 3),
      randn({c.batch, c.tokens, c.b_first + 2 * c.state + c.between + c.bc_after}, Role::Activation, 4)};
  if (c.gate) inputs.push_back(randn({c.batch, c.tokens, c.z_first + c.width + c.z_after}, Role::Activation, 7));
  if (c.skip) inputs.push_back(randn({c.width}, Role::Master, 5));
  if (c.bias) inputs.push_back(uniform({c.width}, 0.0, 0.5, Role::Master, 6));
  return inputs;
}

SelectiveScanInputs arguments_of(const ScanCase& c, const std::vector<Tensor>& in) {
  SelectiveScanInputs inputs{in[0], in[1], in[2], in[3]};
  inputs.b_offset = c.b_first;
  inputs.c_offset = c.b_first + c.state + c.between;
  std::size_t next = 4;
  if (c.gate) inputs.z = in[next++];
  if (c.skip) inputs.skip = in[next++];
  if (c.bias) inputs.delta_bias = in[next++];
  inputs.z_offset = c.z_first;
  inputs.softplus = c.softplus;
  return inputs;
}

void check_scans(Backend backend, Precision precision, double tolerance) {
  for (const ScanCase& c : kScans) {
    CAPTURE(c.state);
    const Op whole = [c](const Context& ctx, const std::vector<Tensor>& in) {
      return std::vector<Tensor>{selective_scan(ctx, arguments_of(c, in))};
    };
    const ExtensionMaker make = [c](const Context& ctx) -> Extension {
      const Tensor state = zeros(ctx, {c.batch, c.width, c.state}, ctx.stream_dtype());
      return [c, ctx, state](const std::vector<Tensor>& in, const Tensor&) {
        return extend_selective_scan(ctx, arguments_of(c, in), state);
      };
    };
    std::vector<std::size_t> sequences{0, 1, 3};
    if (c.gate) sequences.push_back(4);
    check_extension(backend, precision, whole, make, inputs_of(c), sequences, tolerance);
  }
}

// ---- Mamba-2

struct SsdCase {
  std::int64_t batch, tokens, heads, head_dim, groups, state;
  bool gate = false, bias = true;
  int skip = 1;  // 0: none, 1: a head, 2: a channel
  std::int64_t before = 0, after = 0;
  double dt_min = 0, dt_max = kInfinity;
};

// as above; one and several groups; a clamped step size; a sequence of several chunks
const std::vector<SsdCase> kSsds = {
    {1, 1, 1, 1, 1, 1},
    {2, 13, 4, 16, 1, 16},
    {3, 10, 6, 5, 2, 7, true, true, 2, 3, 2},
    {1, 12, 4, 8, 4, 64, true, false, 0, 1, 0, 0.1, 0.8},
    {2, 11, 2, 12, 1, 128, false, true, 1, 0, 5},
    {1, 10, 3, 6, 3, 200, false, true, 2},
    {1, 150, 2, 8, 1, 16, true},
};

std::vector<HostTensor> inputs_of(const SsdCase& c) {
  const std::int64_t channels = c.heads * c.head_dim;
  std::vector<HostTensor> inputs{
      randn({c.batch, c.tokens, c.before + channels + 2 * c.groups * c.state + c.after}, Role::Activation, 1),
      randn({c.batch, c.tokens, c.before + c.heads + c.after}, Role::Activation, 2),
      uniform({c.heads}, -1.5, 1.0, Role::Master, 3)};
  if (c.gate) inputs.push_back(randn({c.batch, c.tokens, c.before + channels + c.after}, Role::Activation, 4));
  if (c.bias) inputs.push_back(uniform({c.heads}, -0.5, 0.5, Role::Master, 5));
  if (c.skip == 1) inputs.push_back(randn({c.heads}, Role::Master, 6));
  if (c.skip == 2) inputs.push_back(randn({c.heads, c.head_dim}, Role::Master, 6));
  return inputs;
}

SsdInputs arguments_of(const SsdCase& c, const std::vector<Tensor>& in) {
  SsdInputs inputs;
  inputs.xbc = in[0];
  inputs.x_offset = c.before;
  inputs.b_offset = c.before + c.heads * c.head_dim;
  inputs.c_offset = inputs.b_offset + c.groups * c.state;
  inputs.dt = in[1];
  inputs.dt_offset = c.before;
  inputs.a_log = in[2];
  inputs.heads = c.heads;
  inputs.head_dim = c.head_dim;
  inputs.groups = c.groups;
  inputs.state = c.state;
  std::size_t next = 3;
  if (c.gate) inputs.z = in[next++];
  if (c.bias) inputs.dt_bias = in[next++];
  if (c.skip > 0) inputs.skip = in[next++];
  inputs.z_offset = c.before;
  inputs.dt_min = c.dt_min;
  inputs.dt_max = c.dt_max;
  return inputs;
}

void check_ssds(Backend backend, Precision precision, double tolerance) {
  for (const SsdCase& c : kSsds) {
    CAPTURE(c.state);
    const Op whole = [c](const Context& ctx, const std::vector<Tensor>& in) {
      return std::vector<Tensor>{ssd(ctx, arguments_of(c, in)).y};
    };
    const ExtensionMaker make = [c](const Context& ctx) -> Extension {
      const Tensor state = zeros(ctx, {c.batch, c.heads, c.head_dim, c.state}, ctx.stream_dtype());
      return [c, ctx, state](const std::vector<Tensor>& in, const Tensor&) {
        return extend_ssd(ctx, arguments_of(c, in), state);
      };
    };
    std::vector<std::size_t> sequences{0, 1};
    if (c.gate) sequences.push_back(3);
    check_extension(backend, precision, whole, make, inputs_of(c), sequences, tolerance);
  }
}

// float32: states are sums over up to 150 steps, outputs over 256 states. bfloat16: inputs enter both sides rounded and
// states are float32, so what differs is the rounding of results, at most 2^-8 = 3.9e-3 of them.
constexpr double kFloat = 1e-5;
constexpr double kBf16 = 4e-3;

TEST_CASE("decode_scan: pieces of a selective scan equal the whole") {
  check_scans(Backend::Cpu, Precision::Fp64, 1e-12);
  check_scans(Backend::Cpu, Precision::Fp32, kFloat);
  check_scans(Backend::Cpu, Precision::Bf16, kBf16);
}

TEST_CASE("decode_scan: pieces of ssd equal the whole") {
  check_ssds(Backend::Cpu, Precision::Fp64, 1e-12);
  check_ssds(Backend::Cpu, Precision::Fp32, kFloat);
  check_ssds(Backend::Cpu, Precision::Bf16, kBf16);
}

TEST_CASE("decode_scan: selective scan, CUDA matches CPU") {
  if (skip_cuda()) return;
  check_scans(Backend::Cuda, Precision::Fp32, kFloat);
  check_scans(Backend::Cuda, Precision::Tf32, kFloat);
  check_scans(Backend::Cuda, Precision::Bf16, kBf16);
}

TEST_CASE("decode_scan: ssd, CUDA matches CPU") {
  if (skip_cuda()) return;
  check_ssds(Backend::Cuda, Precision::Fp32, kFloat);
  check_ssds(Backend::Cuda, Precision::Tf32, kFloat);
  check_ssds(Backend::Cuda, Precision::Bf16, kBf16);
}

TEST_CASE("decode_scan: the state is what the scan leaves") {
  const ScanCase c{2, 17, 33, 12};
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const Context& ctx = device.ctx();
  std::vector<Tensor> in;
  for (const HostTensor& input : inputs_of(c)) in.push_back(device.tensor(constant(input)));
  const Tensor state = zeros(ctx, {c.batch, c.width, c.state}, DType::F64);
  static_cast<void>(extend_selective_scan(ctx, arguments_of(c, in), state));
  SelectiveScanInputs whole = arguments_of(c, in);
  whole.final_state = zeros(ctx, state.shape(), DType::F64);
  static_cast<void>(selective_scan(ctx, whole));
  const std::vector<double> got = device.values(state), expected = device.values(whole.final_state);
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(std::abs(got[i] - expected[i]) < 1e-13 * (1 + std::abs(got[i])));
}

TEST_CASE("decode_scan: what does not fit a selective scan is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const ScanCase c{2, 3, 5, 4};
  std::vector<Tensor> in;
  for (const HostTensor& input : inputs_of(c)) in.push_back(device.tensor(constant(input)));
  const auto state = [&](const Shape& shape) { return zeros(ctx, shape, DType::F32); };
  const auto apply = [&](auto change, const Tensor& with) {
    SelectiveScanInputs inputs = arguments_of(c, in);
    change(inputs);
    static_cast<void>(extend_selective_scan(ctx, inputs, with));
  };
  const Tensor good = state({2, 5, 4});
  using Inputs = SelectiveScanInputs;
  CHECK_NOTHROW(apply([](Inputs&) {}, good));
  CHECK_THROWS_WITH_AS(apply([](Inputs&) {}, state({2, 4, 5})),
                       doctest::Contains("extend_selective_scan: state is [2, 4, 5], expected [2, 5, 4]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](Inputs&) {}, Tensor()), doctest::Contains("state is empty"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply([&](Inputs& i) { i.final_state = good; }, good), doctest::Contains("final_state is given"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](Inputs& i) { i.c_offset = 5; }, good), doctest::Contains("C is columns 5 to 8 of bc"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](Inputs& i) { i.u = Tensor(); }, good), doctest::Contains("u is empty"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply(
                           [&](Inputs& i) {
                             i.a_log = state({5, 300});
                           },
                           good),
                       doctest::Contains("a_log is [5, 300], expected [5, 1 to 256]"), ArgumentError);
  Tape tape;
  CHECK_THROWS_WITH_AS(static_cast<void>(extend_selective_scan(ctx.with_tape(tape), arguments_of(c, in), good)),
                       doctest::Contains("a tape is recording"), ArgumentError);
}

TEST_CASE("decode_scan: what does not fit ssd is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const SsdCase c{2, 3, 4, 5, 2, 6};
  std::vector<Tensor> in;
  for (const HostTensor& input : inputs_of(c)) in.push_back(device.tensor(constant(input)));
  const auto state = [&](const Shape& shape) { return zeros(ctx, shape, DType::F32); };
  const auto apply = [&](auto change, const Tensor& with) {
    SsdInputs inputs = arguments_of(c, in);
    change(inputs);
    static_cast<void>(extend_ssd(ctx, inputs, with));
  };
  const Tensor good = state({2, 4, 5, 6});
  CHECK_NOTHROW(apply([](SsdInputs&) {}, good));
  CHECK_THROWS_WITH_AS(apply([](SsdInputs&) {}, state({2, 4, 6, 5})),
                       doctest::Contains("extend_ssd: state is [2, 4, 6, 5], expected [2, 4, 5, 6]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](SsdInputs& i) { i.want_final_state = true; }, good),
                       doctest::Contains("an initial or final state is asked for"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](SsdInputs& i) { i.groups = 3; }, good),
                       doctest::Contains("extend_ssd: groups = 3, expected a divisor of the 4 heads"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](SsdInputs& i) { i.dt_min = 1, i.dt_max = 0.5; }, good),
                       doctest::Contains("dt_min = 1 and dt_max = 0.5, expected 0 <= dt_min <= dt_max"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](SsdInputs& i) { i.dt_min = -1; }, good),
                       doctest::Contains("dt_min = -1 and dt_max = inf"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](SsdInputs& i) { i.c_offset = i.b_offset; }, good),
                       doctest::Contains("expected columns of their own"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply([](SsdInputs& i) { i.x_offset = 30; }, good),
                       doctest::Contains("x is columns 30 to 49 of xbc"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply(
                           [&](SsdInputs& i) {
                             i.skip = state({4, 4});
                           },
                           good),
                       doctest::Contains("skip is [4, 4], expected [4] or [4, 5]"), ArgumentError);
  Tape tape;
  CHECK_THROWS_WITH_AS(static_cast<void>(extend_ssd(ctx.with_tape(tape), arguments_of(c, in), good)),
                       doctest::Contains("a tape is recording"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
