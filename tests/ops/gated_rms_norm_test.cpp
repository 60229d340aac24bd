#include "ops/gated_rms_norm.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

/// One gated norm: [rows, width] with the gate in columns of a wider tensor, in groups (0: one).
struct Case {
  std::int64_t rows, width, z_row, z_offset, group;
};

const std::vector<Case> kSmallCases = {{1, 1, 1, 0, 0},   {3, 33, 40, 5, 0}, {3, 33, 33, 0, 11},
                                       {4, 24, 64, 8, 8}, {2, 30, 31, 1, 1}, {70, 12, 16, 2, 6}};
// for each register layout of the CUDA kernels a full and a partly filled one, aligned and not, with groups and without
const std::vector<Case> kParityCases = {
    {300, 64, 160, 64, 0},   {41, 256, 256, 0, 0},       {37, 250, 511, 3, 0},     {7, 512, 1024, 512, 0},
    {19, 300, 301, 1, 0},    {9, 768, 1600, 4, 0},       {5, 1024, 2048, 1024, 0}, {3, 1001, 1001, 0, 0},
    {6, 2048, 4224, 0, 0},   {5, 2000, 2000, 0, 0},      {2, 8192, 8192, 0, 0},    {2, 5003, 5010, 7, 0},
    {5, 2048, 4128, 8, 512}, {11, 256, 300, 44, 64},     {11, 90, 97, 7, 9},       {3, 4096, 4096, 0, 1024},
    {4100, 64, 64, 0, 32},   {3, 12000, 12000, 0, 3000}, {2, 1200, 1201, 1, 600},  {5, 256, 257, 0, 128}};

// float32: one sum over a group; on CUDA exponential and quotient of the SiLU are approximations to 2e-7. bfloat16:
// inputs enter both sides rounded and sums are float32, so what differs is the rounding of the result, at most 2^-8
// = 3.9e-3 of it.
constexpr Tolerance kFloatTolerance{2e-5, 2e-5};
constexpr Tolerance kBf16Tolerance{4e-3, 4e-3};

std::vector<HostTensor> inputs_of(const Case& c) {
  return {randn({1, c.rows, c.width}), randn({1, c.rows, c.z_row}, Role::Activation, 2),
          uniform({c.width}, 0.5, 1.5, Role::Master, 3)};
}

Op op_of(const Case& c, bool norm_before_gate) {
  // a single channel is normalised to its sign: with a small eps its gradient is what is left of a cancellation
  const double eps = c.width == 1 || c.group == 1 ? 0.5 : 1e-5;
  return [=](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{gated_rms_norm(ctx, in[0], in[1], c.z_offset, in[2], norm_before_gate, c.group, eps)};
  };
}

void check_all_parities(Backend backend) {
  for (const bool norm_before_gate : {false, true}) {
    for (const std::vector<Case>& cases : {kSmallCases, kParityCases}) {
      for (const Case& c : cases) {
        CAPTURE(norm_before_gate);
        CAPTURE(c.group);
        check_parity(backend, Precision::Fp32, op_of(c, norm_before_gate), inputs_of(c), kFloatTolerance);
        check_parity(backend, Precision::Tf32, op_of(c, norm_before_gate), inputs_of(c), kFloatTolerance);
        check_parity(backend, Precision::Bf16, op_of(c, norm_before_gate), inputs_of(c), kBf16Tolerance);
      }
    }
  }
}

TEST_CASE("gated_rms_norm: matches its formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::vector<double> x{1, 2, -3, 6}, z{0.5, -1, 2, 3}, weight{1, 2, 1, -1};
  const Tensor packed = device.tensor({1, 6}, DType::F64, {9, z[0], z[1], z[2], z[3], 9});
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  for (const bool norm_before_gate : {false, true}) {
    for (const std::size_t group : {std::size_t{4}, std::size_t{2}}) {
      std::vector<double> expected;
      for (std::size_t i = 0; i < 4; ++i) {
        double square = 0;
        for (std::size_t j = i / group * group; j < (i / group + 1) * group; ++j) {
          const double u = norm_before_gate ? x[j] : x[j] * silu(z[j]);
          square += u * u / static_cast<double>(group);
        }
        expected.push_back(x[i] * silu(z[i]) * weight[i] / std::sqrt(square + 1e-5));
      }
      const std::vector<double> got = device.values(gated_rms_norm(device.ctx(), device.tensor({1, 4}, DType::F64, x),
                                                                   packed, 1, device.tensor({4}, DType::F64, weight),
                                                                   norm_before_gate, static_cast<std::int64_t>(group)));
      for (std::size_t i = 0; i < 4; ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-14));
    }
  }
}

TEST_CASE("gated_rms_norm: gradients match finite differences") {
  for (const bool norm_before_gate : {false, true}) {
    for (const Case& c : kSmallCases) {
      CAPTURE(norm_before_gate);
      CAPTURE(c.width);
      CHECK(gradcheck(op_of(c, norm_before_gate), inputs_of(c)) < 1e-7);
    }
  }
}

TEST_CASE("gated_rms_norm: gradients that nobody wants are left out") {
  const Case c{5, 12, 20, 3, 4};
  for (std::size_t wanted = 0; wanted < 3; ++wanted) {
    std::vector<HostTensor> inputs = inputs_of(c);
    for (std::size_t i = 0; i < 3; ++i) inputs[i].needs_gradient = i == wanted;
    CAPTURE(wanted);
    CHECK(gradcheck(op_of(c, false), inputs) < 1e-7);
  }
}

TEST_CASE("gated_rms_norm: gradients of a gate that two norms share match finite differences") {
  const auto op = [](const Context& ctx, const std::vector<Tensor>& in) {
    const Tensor first = gated_rms_norm(ctx, in[0], in[1], 2, in[2]);
    return std::vector<Tensor>{gated_rms_norm(ctx, first, in[1], 2, in[2], true),
                               gated_rms_norm(ctx, in[0], in[1], 7, in[2])};
  };
  CHECK(gradcheck(op, inputs_of({4, 5, 13, 0, 0})) < 1e-7);
}

TEST_CASE("gated_rms_norm: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("gated_rms_norm: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("gated_rms_norm: results do not depend on the number of threads") {
  const Case c{200, 48, 60, 6, 12};
  const Op op = op_of(c, false);
  const auto cotangents = random_cotangents(op, inputs_of(c));
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), op, inputs_of(c), cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), op, inputs_of(c), cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("gated_rms_norm: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  const Tensor x = zeros({3, 12});
  const Tensor z = zeros({3, 20});
  const Tensor weight = zeros({12});
  CHECK_THROWS_WITH_AS(
      gated_rms_norm(ctx, x, zeros({2, 20}), 0, weight),
      doctest::Contains("gated_rms_norm: z is [2, 20], expected the extents of x, [3, 12], but the last"),
      ArgumentError);
  CHECK_THROWS_WITH_AS(
      gated_rms_norm(ctx, x, z, 9, weight),
      doctest::Contains("columns 9 to 21 of z, which is [3, 20], expected a range within its 20 columns"),
      ArgumentError);
  CHECK_THROWS_WITH_AS(gated_rms_norm(ctx, x, z, 0, zeros({11})), doctest::Contains("weight is [11], expected [12]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(gated_rms_norm(ctx, x, z, 0, zeros({12}, DType::BF16)),
                       doctest::Contains("weight is bfloat16, expected float32 in fp32"), ArgumentError);
  CHECK_THROWS_WITH_AS(gated_rms_norm(ctx, x, zeros({3, 20}, DType::BF16), 0, weight),
                       doctest::Contains("x is float32 and z is bfloat16, expected float32 in fp32"), ArgumentError);
  CHECK_THROWS_WITH_AS(gated_rms_norm(ctx, x, z, 0, weight, false, 5),
                       doctest::Contains("group_size is 5, expected a divisor of the width 12"), ArgumentError);
  CHECK_THROWS_WITH_AS(gated_rms_norm(ctx, zeros({1, 8200}), zeros({1, 8200}), 0, zeros({8200})),
                       doctest::Contains("groups of 8200 channels, expected at most 8192"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
