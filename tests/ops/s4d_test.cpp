#include "ops/s4d.h"

#include <doctest/doctest.h>

#include <cmath>
#include <complex>
#include <vector>

#include "engine/error.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"
#include "tests/support/random.h"

namespace graft::test {
namespace {

struct Case {
  std::int64_t batch, tokens, channels, modes;
  std::int64_t gate_row = 0;  // 0: no gate
  std::int64_t gate_offset = 0;
  S4dGateActivation activation = S4dGateActivation::None;
};

constexpr S4dGateActivation kSilu = S4dGateActivation::Silu;

// One element, ragged, more than one mode group, several channel groups.
const std::vector<Case> kSmall = {
    {1, 1, 1, 1},          {2, 13, 6, 8},
    {3, 9, 33, 3, 40, 5},  {2, 17, 5, 8, 5, 0, kSilu},
    {5, 7, 17, 9, 34, 17}, {1, 5, 3, 18, 6, 3, kSilu},
};
// Sequences in several chunks, of equal and of unequal length, and tokens that no tile divides.
const std::vector<Case> kLong = {
    {1, 200, 40, 8}, {2, 131, 64, 8, 128, 64, kSilu}, {1, 515, 7, 5, 9, 2}, {9, 41, 96, 8, 200, 96}, {1, 193, 33, 20},
};

/// Parameters in the ranges of the usual initialisation, with dt large enough to matter within a short sequence.
std::vector<HostTensor> inputs_of(const Case& c) {
  std::vector<HostTensor> inputs{
      randn({c.batch, c.tokens, c.channels}),
      randn({c.channels, c.modes, 2}, Role::Master, 2, 0.7),
      uniform({c.channels}, std::log(c.tokens < 64 ? 0.1 : 0.01), std::log(0.5), Role::Master, 3),
      uniform({c.channels, c.modes}, std::log(0.2), std::log(1.0), Role::Master, 4),
      uniform({c.channels, c.modes}, -1, 8, Role::Master, 5),
      randn({c.channels}, Role::Master, 6)};
  if (c.gate_row > 0) inputs.push_back(randn({c.batch, c.tokens, c.gate_row}, Role::Activation, 7));
  return inputs;
}

S4dParameters parameters_of(const std::vector<Tensor>& in) {
  return {.c = in[1], .log_dt = in[2], .log_a_real = in[3], .a_imag = in[4], .skip = in[5]};
}

Op op_of(const Case& c) {
  return [c](const Context& ctx, const std::vector<Tensor>& in) {
    S4dGate gate;
    if (c.gate_row > 0) gate = {in[6], c.gate_offset, c.activation};
    return std::vector<Tensor>{s4d(ctx, in[0], parameters_of(in), gate)};
  };
}

/// The kernel from its definition, [H, T].
std::vector<double> kernel_reference(const Case& c, const std::vector<HostTensor>& in) {
  std::vector<double> kernel;
  const auto modes = static_cast<std::size_t>(c.modes);
  for (std::size_t h = 0; h < static_cast<std::size_t>(c.channels); ++h) {
    const double dt = std::exp(in[2].values[h]);
    for (std::int64_t l = 0; l < c.tokens; ++l) {
      double sum = 0;
      for (std::size_t m = h * modes; m < (h + 1) * modes; ++m) {
        const std::complex<double> a(-std::exp(in[3].values[m]), in[4].values[m]);
        const std::complex<double> coefficient(in[1].values[2 * m], in[1].values[2 * m + 1]);
        sum += 2 * (coefficient * (std::exp(dt * a) - 1.0) / a * std::exp(static_cast<double>(l) * dt * a)).real();
      }
      kernel.push_back(sum);
    }
  }
  return kernel;
}

std::vector<double> reference(const Case& c, const std::vector<HostTensor>& in) {
  const std::vector<double> kernel = kernel_reference(c, in);
  std::vector<double> y;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      for (std::int64_t h = 0; h < c.channels; ++h) {
        const auto u = [&](std::int64_t at) {
          return in[0].values[static_cast<std::size_t>((b * c.tokens + at) * c.channels + h)];
        };
        double v = in[5].values[static_cast<std::size_t>(h)] * u(t);
        for (std::int64_t l = 0; l <= t; ++l) v += kernel[static_cast<std::size_t>(h * c.tokens + l)] * u(t - l);
        if (c.gate_row > 0) {
          const double g = in[6].values[static_cast<std::size_t>((b * c.tokens + t) * c.gate_row + c.gate_offset + h)];
          v *= c.activation == kSilu ? g / (1 + std::exp(-g)) : g;
        }
        y.push_back(v);
      }
    }
  }
  return y;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

void check_all_parities(Backend backend) {
  for (const std::vector<Case>* cases : {&kSmall, &kLong}) {
    for (const Case& c : *cases) {
      CAPTURE(c.tokens);
      CAPTURE(c.modes);
      check_parity(backend, Precision::Fp32, op_of(c), inputs_of(c), {1e-5, 3e-5});
      check_parity(backend, Precision::Tf32, op_of(c), inputs_of(c), {1e-5, 3e-5});
      // one rounding of y, du and dgate to bfloat16, by at most 2^-8 = 3.9e-3; parameters' gradients are float32
      check_parity(backend, Precision::Bf16, op_of(c), inputs_of(c), {4e-3, 4e-3});
    }
  }
}

TEST_CASE("s4d: matches the direct convolution") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const std::vector<Case>* cases : {&kSmall, &kLong}) {
    for (const Case& c : *cases) {
      CAPTURE(c.tokens);
      const std::vector<HostTensor> inputs = inputs_of(c);
      std::vector<Tensor> tensors;
      for (const HostTensor& input : inputs) tensors.push_back(device.tensor(input));
      const std::vector<double> y = device.values(op_of(c)(device.ctx(), tensors)[0]);
      CHECK(largest_difference(y, reference(c, inputs)) < 1e-12);
      const std::vector<double> kernel = device.values(s4d_kernel(device.ctx(), parameters_of(tensors), c.tokens));
      CHECK(largest_difference(kernel, kernel_reference(c, inputs)) < 1e-12);
    }
  }
}

TEST_CASE("s4d: gradients match finite differences") {
  for (const Case& c : kSmall) {
    CAPTURE(c.tokens);
    CHECK(gradcheck(op_of(c), inputs_of(c)) < 1e-7);
  }
}

TEST_CASE("s4d_kernel: gradients match finite differences") {
  for (const Case& c : kSmall) {
    const std::vector<HostTensor> all = inputs_of(c);
    const Op op = [c](const Context& ctx, const std::vector<Tensor>& in) {
      return std::vector<Tensor>{s4d_kernel(ctx, {in[0], in[1], in[2], in[3], {}}, c.tokens)};
    };
    CHECK(gradcheck(op, {all[1], all[2], all[3], all[4]}) < 1e-7);
  }
}

TEST_CASE("s4d: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("s4d: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("s4d_kernel: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const Case& c : kLong) {
    const std::vector<HostTensor> all = inputs_of(c);
    const Op op = [c](const Context& ctx, const std::vector<Tensor>& in) {
      return std::vector<Tensor>{s4d_kernel(ctx, {in[0], in[1], in[2], in[3], {}}, c.tokens)};
    };
    check_parity(Backend::Cuda, Precision::Fp32, op, {all[1], all[2], all[3], all[4]}, {2e-5, 3e-5});
  }
}

TEST_CASE("s4d: slow modes keep their precision in float32") {
  // dt |A| near 5e-4, where (e^(dt A) - 1) / A in float32 would be off by 1e-4
  const Case c{1, 64, 4, 2};
  std::vector<HostTensor> inputs = inputs_of(c);
  inputs[2].values.assign(inputs[2].values.size(), std::log(1e-3));
  inputs[4].values.assign(inputs[4].values.size(), 0.1);
  inputs[5].values.assign(inputs[5].values.size(), 0.0);
  check_parity(Backend::Cpu, Precision::Fp32, op_of(c), inputs, {2e-6, 2e-5});
  if (!skip_cuda()) check_parity(Backend::Cuda, Precision::Fp32, op_of(c), inputs, {2e-6, 2e-5});
}

TEST_CASE("s4d: the number of threads does not change a bit") {
  const Case c = kLong[3];
  const std::vector<HostTensor> inputs = inputs_of(c);
  const auto cotangents = random_cotangents(op_of(c), inputs);
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), op_of(c), inputs, cotangents);
  const OpResult two = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 2), op_of(c), inputs, cotangents);
  CHECK(one.outputs == two.outputs);
  CHECK(one.gradients == two.gradients);
}

TEST_CASE("s4d: chunks depend on the shape and cover the sequence") {
  CHECK(s4d_chunks(64, 1024, 512) == 1);
  CHECK(s4d_chunks(1, 100, 64) == 1);
  CHECK(s4d_chunks(1, 200, 40) == 3);
  CHECK(s4d_chunks(1, 100000, 256) == 32);
  for (const std::int64_t tokens : {1, 63, 129, 515, 1000}) {
    const std::int64_t chunks = s4d_chunks(1, tokens, 8);
    const std::int64_t length = ceil_div(tokens, chunks);
    CHECK((chunks - 1) * length < tokens);
    CHECK(chunks * length >= tokens);
  }
}

TEST_CASE("s4d: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  const S4dParameters good{zeros({6, 8, 2}), zeros({6}), zeros({6, 8}), zeros({6, 8}), zeros({6})};
  const Tensor u = zeros({2, 5, 6});
  CHECK_THROWS_WITH_AS(static_cast<void>(s4d(ctx, zeros({5, 6}), good)),
                       doctest::Contains("s4d: u is [5, 6], expected [B, T, H]"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(s4d(ctx, zeros({2, 5, 6}, DType::BF16), good)),
                       doctest::Contains("s4d: u is bfloat16, expected float32 in fp32"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(s4d(ctx, zeros({2, 5, 7}), good)),
                       doctest::Contains("c is [6, 8, 2], expected [7, 1 to 64 modes, 2]"), ArgumentError);
  S4dParameters bad = good;
  bad.a_imag = zeros({6, 7});
  CHECK_THROWS_WITH_AS(static_cast<void>(s4d(ctx, u, bad)), doctest::Contains("a_imag is [6, 7], expected [6, 8]"),
                       ArgumentError);
  bad = good;
  bad.skip = {};
  CHECK_THROWS_WITH_AS(static_cast<void>(s4d(ctx, u, bad)), doctest::Contains("skip is empty, expected [6]"),
                       ArgumentError);
  CHECK(s4d_kernel(ctx, bad, 4).shape() == Shape{6, 4});
  CHECK_THROWS_WITH_AS(static_cast<void>(s4d_kernel(ctx, good, 0)), doctest::Contains("0 tokens, expected at least 1"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(s4d(ctx, u, good, {zeros({2, 4, 12})})),
                       doctest::Contains("the gate's tensor is [2, 4, 12], expected [2, 5, row]"), ArgumentError);
  CHECK_THROWS_WITH_AS(
      static_cast<void>(s4d(ctx, u, good, {zeros({2, 5, 12}), 7})),
      doctest::Contains("the gate is columns 7 to 12 of the gate's tensor, expected columns within its 12"),
      ArgumentError);
}

}  // namespace
}  // namespace graft::test
