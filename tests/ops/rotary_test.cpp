#include "ops/rotary.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"
#include "tests/support/pieces.h"
#include "tests/support/random.h"

namespace graft::test {
namespace {

struct Case {
  std::int64_t batch, tokens, row;
  AttentionLayout layout;
  std::int64_t dims;
};

const std::vector<Case> kCases = {
    {1, 1, 6, AttentionLayout::blocks(1, 2), 2},
    {2, 13, 96, AttentionLayout::blocks(2, 16), 4},
    {2, 13, 96, AttentionLayout::blocks(2, 16), 16},
    {3, 7, 192, AttentionLayout::interleaved(1, 64), 16},
    {2, 9, 3 * 5 * 24, AttentionLayout::interleaved(5, 24), 16},
    {2, 5, 50, {2, 6, 8, 1, 15, 23}, 6},  // keys before queries, gaps, columns left over
    {1, 3, 21, {1, 7, 3, 11, 0, 0}, 6},   // one head, no stride
    {2, 40, 3 * 256, AttentionLayout::blocks(1, 256), 256},
    {1, 6, 1200, AttentionLayout::blocks(4, 96), 24},
};

Op op_of(const Case& c, double base = 10000) {
  return [c, base](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{rotary(ctx, in[0], c.layout, c.dims, base)};
  };
}

HostTensor input_of(const Case& c) { return randn({c.batch, c.tokens, c.row}); }

std::vector<double> reference(const Case& c, std::vector<double> x, double base) {
  const auto half = static_cast<std::size_t>(c.dims / 2);
  for (std::int64_t i = 0; i < c.batch * c.tokens; ++i) {
    for (int head = 0; head < c.layout.heads; ++head) {
      for (const std::int64_t offset : {c.layout.q_offset, c.layout.k_offset}) {
        const auto start = static_cast<std::size_t>(i * c.row + offset + head * c.layout.head_stride);
        for (std::size_t k = start; k < start + half; ++k) {
          const double angle = static_cast<double>(i % c.tokens) *
                               std::pow(base, -static_cast<double>(k - start) / static_cast<double>(half));
          const double low = x[k];
          const double high = x[k + half];
          x[k] = low * std::cos(angle) - high * std::sin(angle);
          x[k + half] = high * std::cos(angle) + low * std::sin(angle);
        }
      }
    }
  }
  return x;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

void check_all_parities(Backend backend) {
  for (const Case& c : kCases) {
    CAPTURE(c.row);
    check_parity(backend, Precision::Fp32, op_of(c), {input_of(c)}, {2e-6, 2e-6});
    check_parity(backend, Precision::Tf32, op_of(c), {input_of(c)}, {2e-6, 2e-6});
    // one rounding to bfloat16: at most 2^-8 = 3.9e-3 of the value
    check_parity(backend, Precision::Bf16, op_of(c), {input_of(c)}, {4e-3, 4e-3});
  }
}

TEST_CASE("rotary: matches its definition") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const Case& c : kCases) {
    for (const double base : {10000.0, 50.0}) {
      CAPTURE(c.row);
      const HostTensor x = input_of(c);
      const std::vector<double> y = device.values(op_of(c, base)(device.ctx(), {device.tensor(x)})[0]);
      CHECK(largest_difference(y, reference(c, x.values, base)) < 1e-13);
    }
  }
}

TEST_CASE("rotary: gradients match finite differences") {
  for (const Case& c : kCases) {
    CAPTURE(c.row);
    CHECK(gradcheck(op_of(c), {input_of(c)}) < 1e-7);
  }
}

TEST_CASE("rotary: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("rotary: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("rotary: angles are exact at position 100000") {
  const Case c{1, 100001, 6, AttentionLayout::blocks(1, 2), 2};
  check_parity(Backend::Cpu, Precision::Fp32, op_of(c), {input_of(c)}, {1e-6, 1e-6});
  if (!skip_cuda()) check_parity(Backend::Cuda, Precision::Fp32, op_of(c), {input_of(c)}, {1e-6, 1e-6});
}

/// With a start, the rows of a longer sequence from there on: bit for bit, since angles are the same.
void check_start(Backend backend, Precision precision) {
  const TestDevice device(backend, precision);
  for (const Case& c : kCases) {
    if (c.tokens < 2) continue;
    CAPTURE(c.row);
    const HostTensor x = input_of(c);
    const std::vector<double> whole = device.values(op_of(c)(device.ctx(), {device.tensor(constant(x))})[0]);
    const std::int64_t first = c.tokens / 2;
    const Tensor start = device.tensor({1}, DType::I32, {static_cast<double>(first)});
    const Tensor rest = device.tensor(tokens_of(x, first, c.tokens - first));
    const std::vector<double> got = device.values(rotary(device.ctx(), rest, c.layout, c.dims, 10000, start));
    const HostTensor expected =
        tokens_of({{c.batch, c.tokens, c.row}, whole, Role::Activation, false}, first, c.tokens - first);
    CHECK(got == expected.values);
  }
}

TEST_CASE("rotary: starts at a position that the device knows") {
  check_start(Backend::Cpu, Precision::Fp64);
  check_start(Backend::Cpu, Precision::Bf16);
}

TEST_CASE("rotary: starts at a position, CUDA matches CPU") {
  if (skip_cuda()) return;
  check_start(Backend::Cuda, Precision::Fp32);
  check_start(Backend::Cuda, Precision::Bf16);
  const Case& c = kCases[4];
  const auto run = [&](const TestDevice& device) {
    const Tensor start = device.tensor({1}, DType::I32, {4321});
    return device.values(rotary(device.ctx(), device.tensor(constant(input_of(c))), c.layout, c.dims, 10000, start));
  };
  CHECK(largest_difference(run(TestDevice(Backend::Cuda, Precision::Fp32)),
                           run(TestDevice(Backend::Cpu, Precision::Fp32))) < 1e-5);
}

TEST_CASE("rotary: no dims are no rotation") {
  const TestDevice device;
  const Tensor x = device.tensor(input_of(kCases[1]));
  CHECK(rotary(device.ctx(), x, kCases[1].layout, 0).id() == x.id());
}

TEST_CASE("rotary: what does not fit is refused") {
  const TestDevice device;
  const auto apply = [&](const Shape& shape, const AttentionLayout& layout, std::int64_t dims, double base = 10000) {
    const auto size = static_cast<std::size_t>(shape.elements());
    static_cast<void>(
        rotary(device.ctx(), device.tensor(shape, DType::F32, std::vector<double>(size)), layout, dims, base));
  };
  const auto layout = AttentionLayout::blocks(2, 4);
  CHECK_THROWS_WITH_AS(apply({5, 24}, layout, 4), doctest::Contains("rotary: qkv is [5, 24], expected [B, T, row]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply({1, 5, 24}, layout, 3),
                       doctest::Contains("3 rotary dims, expected an even number from 0 to 4"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({1, 5, 24}, layout, 6), doctest::Contains("6 rotary dims"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({1, 5, 24}, layout, 4, 0), doctest::Contains("base is 0, expected a positive number"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply({1, 5, 12}, layout, 4), doctest::Contains("reads columns 0 to 16"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(rotary(device.ctx(), zeros(device.ctx(), {1, 5, 24}, DType::F32), layout, 4,
                                                10000, zeros(device.ctx(), {2}, DType::I32))),
                       doctest::Contains("rotary: start is [2] int32, expected [1] int32"), ArgumentError);
  Tape tape;
  CHECK_THROWS_WITH_AS(
      static_cast<void>(rotary(device.ctx().with_tape(tape), zeros(device.ctx(), {1, 5, 24}, DType::F32), layout, 4,
                               10000, zeros(device.ctx(), {1}, DType::I32))),
      doctest::Contains("rotary: a tape is recording"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({1, 5, 24}, {2, 4, 0, 2, 8, 12}, 4), doctest::Contains("parts that do not overlap"),
                       ArgumentError);
}

}  // namespace
}  // namespace graft::test
