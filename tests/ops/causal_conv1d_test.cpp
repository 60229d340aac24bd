#include "ops/causal_conv1d.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

/// One convolution: which columns of a packed tensor, how many taps, what else.
struct Case {
  std::int64_t batch, tokens, row, offset, channels, width;
  bool bias = true, silu = true;
  Role parameters = Role::Weight;
};

// float32: sums of at most 4 products a value, of all tokens a gradient of a tap; on CUDA exponential and quotient of
// the SiLU are approximations to 2e-7. bfloat16: inputs enter both sides rounded and sums are float32, so what differs
// is the rounding of the result, at most 2^-8 = 3.9e-3 of it.
constexpr Tolerance kFloatTolerance{2e-5, 2e-5};
constexpr Tolerance kBf16Tolerance{4e-3, 4e-3};

std::vector<HostTensor> inputs_of(const Case& c) {
  std::vector<HostTensor> inputs{randn({c.batch, c.tokens, c.row}), randn({c.channels, c.width}, c.parameters, 2)};
  if (c.bias) inputs.push_back(randn({c.channels}, c.parameters, 3));
  return inputs;
}

Op op_of(const Case& c) {
  return [c](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        causal_conv1d(ctx, in[0], c.offset, c.channels, in[1], c.bias ? in[2] : Tensor(), c.silu)};
  };
}

/// Every width with and without bias and SiLU, on one shape.
std::vector<Case> variants(std::int64_t batch, std::int64_t tokens, std::int64_t row, std::int64_t offset,
                           std::int64_t channels) {
  std::vector<Case> cases;
  for (const std::int64_t width : {2, 3, 4}) {
    for (const bool bias : {false, true}) {
      for (const bool silu : {false, true}) cases.push_back({batch, tokens, row, offset, channels, width, bias, silu});
    }
  }
  return cases;
}

/// The definition, term by term.
std::vector<double> reference(const Case& c, const std::vector<HostTensor>& inputs) {
  std::vector<double> y;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      for (std::int64_t k = 0; k < c.channels; ++k) {
        double v = c.bias ? inputs[2].values[static_cast<std::size_t>(k)] : 0;
        for (std::int64_t j = 0; j < c.width; ++j) {
          const std::int64_t from = t - (c.width - 1) + j;
          if (from < 0) continue;
          v += inputs[1].values[static_cast<std::size_t>(k * c.width + j)] *
               inputs[0].values[static_cast<std::size_t>((b * c.tokens + from) * c.row + c.offset + k)];
        }
        y.push_back(c.silu ? v / (1 + std::exp(-v)) : v);
      }
    }
  }
  return y;
}

/// The parts of one projection: two convolutions of neighbouring columns, one of the same columns again.
std::vector<Tensor> shared_op(const Context& ctx, const std::vector<Tensor>& in) {
  return {causal_conv1d(ctx, in[0], 2, 3, in[1], in[2], true), causal_conv1d(ctx, in[0], 5, 3, in[1], in[2], false),
          causal_conv1d(ctx, in[0], 2, 3, in[1], {}, true)};
}

void check_all_parities(Backend backend) {
  const auto check = [&](const Case& c) {
    check_parity(backend, Precision::Fp32, op_of(c), inputs_of(c), kFloatTolerance);
    check_parity(backend, Precision::Tf32, op_of(c), inputs_of(c), kFloatTolerance);
    check_parity(backend, Precision::Bf16, op_of(c), inputs_of(c), kBf16Tolerance);
  };
  for (const std::int64_t tokens : {1, 2, 3, 5, 64, 110, 257}) {
    CAPTURE(tokens);
    check({2, tokens, 24, 8, 16, 4});                   // aligned
    check({3, tokens, 19, 3, 7, 4});                    // ragged
    check({2, tokens, 20, 4, 12, 3, tokens % 2 == 0});  // four channels at a time, not eight
    check({2, tokens, 33, 0, 32, 2, true, tokens == 64});
  }
  for (const Case& c : variants(3, 37, 24, 8, 8)) check(c);
  for (const Case& c : variants(2, 6, 11, 1, 9)) check(c);
  // bfloat16 activations with float32 parameters; several blocks of channels; several parts; most parts
  check({2, 40, 16, 0, 16, 4, true, true, Role::Master});
  check({2, 35, 600, 64, 520, 4});
  check({2, 35, 150, 7, 131, 4});
  check({40, 33, 12, 4, 8, 4});
  check({300, 70, 4, 0, 4, 4});
}

TEST_CASE("causal_conv1d: matches its definition") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const std::int64_t tokens : {1, 2, 3, 5, 70}) {
    for (const Case& c : variants(2, tokens, 9, 2, 5)) {
      const std::vector<HostTensor> inputs = inputs_of(c);
      std::vector<Tensor> in;
      for (const HostTensor& input : inputs) in.push_back(device.tensor(input));
      const std::vector<double> got = device.values(op_of(c)(device.ctx(), in)[0]);
      const std::vector<double> expected = reference(c, inputs);
      REQUIRE(got.size() == expected.size());
      for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-13));
    }
  }
}

TEST_CASE("causal_conv1d: no output depends on a later token") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const Case c{1, 40, 6, 1, 4, 4};
  std::vector<HostTensor> inputs = inputs_of(c);
  const auto run = [&] {
    return device.values(
        op_of(c)(device.ctx(), {device.tensor(inputs[0]), device.tensor(inputs[1]), device.tensor(inputs[2])})[0]);
  };
  const std::vector<double> before = run();
  for (std::size_t i = 33 * 6; i < 34 * 6; ++i) inputs[0].values[i] += 1;  // token 33
  const std::vector<double> after = run();
  for (std::size_t t = 0; t < 40; ++t) {
    CAPTURE(t);
    CHECK((before[t * 4] == after[t * 4]) == (t < 33 || t > 36));
  }
}

TEST_CASE("causal_conv1d: gradients match finite differences") {
  for (const std::int64_t tokens : {1, 2, 3, 5}) {
    for (const Case& c : variants(2, tokens, 7, 2, 3)) {
      CAPTURE(tokens);
      CAPTURE(c.width);
      CHECK(gradcheck(op_of(c), inputs_of(c)) < 1e-7);
    }
  }
  for (const Case& c : {Case{1, 1, 1, 0, 1, 4}, Case{2, 64, 5, 0, 5, 4}, Case{3, 75, 6, 3, 3, 3},
                        Case{20, 33, 4, 1, 2, 2}, Case{2, 9, 140, 5, 133, 4, true, true, Role::Master}}) {
    CAPTURE(c.tokens);
    CHECK(gradcheck(op_of(c), inputs_of(c)) < 1e-7);
  }
}

TEST_CASE("causal_conv1d: gradients of a packed tensor that several ops read match finite differences") {
  const std::vector<HostTensor> inputs{randn({2, 6, 11}), randn({3, 4}, Role::Weight, 2), randn({3}, Role::Weight, 3)};
  CHECK(gradcheck(shared_op, inputs) < 1e-7);
}

TEST_CASE("causal_conv1d: gradients that nobody wants are left out") {
  const Case c{2, 40, 7, 2, 3, 4};
  for (std::size_t wanted = 0; wanted < 3; ++wanted) {
    std::vector<HostTensor> inputs = inputs_of(c);
    for (std::size_t i = 0; i < 3; ++i) inputs[i].needs_gradient = i == wanted;
    CAPTURE(wanted);
    CHECK(gradcheck(op_of(c), inputs) < 1e-7);
  }
}

TEST_CASE("causal_conv1d: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("causal_conv1d: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
  check_parity(Backend::Cuda, Precision::Bf16, op_of({4, 110, 2304, 128, 2048, 4}),
               inputs_of({4, 110, 2304, 128, 2048, 4}), kBf16Tolerance);
}

TEST_CASE("causal_conv1d: results do not depend on the number of threads") {
  const Case c{20, 70, 19, 3, 16, 4};
  const auto cotangents = random_cotangents(op_of(c), inputs_of(c));
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), op_of(c), inputs_of(c), cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), op_of(c), inputs_of(c), cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("causal_conv1d: pieces and parts cover all tokens") {
  for (const std::int64_t batch : {1, 3, 64, 5000}) {
    for (const std::int64_t tokens : {1, 2, 31, 32, 33, 110, 257, 1000}) {
      for (const std::int64_t longest : {16, 32}) {
        const CausalConvSplit split = causal_conv1d_split(batch, tokens, 512, longest);
        CHECK(split.pieces == batch * split.pieces_a_sequence);
        CHECK(split.parts >= 1);
        CHECK(split.parts <= split.pieces);
        std::int64_t next = 0;
        for (std::int64_t i = 0; i < split.pieces_a_sequence; ++i) {
          const CausalConvPiece piece = split.piece((batch - 1) * split.pieces_a_sequence + i);
          CHECK(piece.sequence == batch - 1);
          CHECK(piece.first == next);
          CHECK(piece.last > piece.first);
          CHECK(piece.last - piece.first <= longest);
          next = piece.last;
        }
        CHECK(next == tokens);
      }
    }
  }
}

TEST_CASE("causal_conv1d: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  const Tensor x = zeros({2, 5, 10});
  CHECK_THROWS_WITH_AS(causal_conv1d(ctx, zeros({5, 10}), 0, 10, zeros({10, 4}), {}, true),
                       doctest::Contains("causal_conv1d: x is [5, 10], expected [B, T, row]"), ArgumentError);
  CHECK_THROWS_WITH_AS(causal_conv1d(ctx, zeros({2, 5, 10}, DType::BF16), 0, 10, zeros({10, 4}), {}, true),
                       doctest::Contains("x is bfloat16, expected float32 in fp32"), ArgumentError);
  CHECK_THROWS_WITH_AS(causal_conv1d(ctx, x, 3, 8, zeros({8, 4}), {}, true),
                       doctest::Contains("columns 3 to 11 of x, which is [2, 5, 10], expected a range within its 10"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(causal_conv1d(ctx, x, 0, 8, zeros({8, 5}), {}, true),
                       doctest::Contains("weight is [8, 5], expected [8, width] with a width of 2 to 4"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(causal_conv1d(ctx, x, 0, 8, zeros({7, 4}), {}, true),
                       doctest::Contains("weight is [7, 4], expected [8, width]"), ArgumentError);
  CHECK_THROWS_WITH_AS(causal_conv1d(ctx, x, 0, 8, zeros({8, 4}, DType::BF16), {}, true),
                       doctest::Contains("weight is bfloat16, expected float32"), ArgumentError);
  CHECK_THROWS_WITH_AS(causal_conv1d(ctx, x, 0, 8, zeros({8, 4}), zeros({8, 1}), true),
                       doctest::Contains("bias is [8, 1], expected [8]"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
