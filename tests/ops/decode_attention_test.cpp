#include "ops/decode_attention.h"

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
  std::int64_t batch, tokens, row, capacity;
  AttentionLayout layout;
  double scale = 0;
};

// one element; every number of column groups of the CUDA kernel, full and ragged; head dims that no group divides;
// layouts with gaps; a cache that is full and one with room; more keys than the streams of a block take at a time
const std::vector<Case> kCases = {
    {1, 1, 3, 1, AttentionLayout::blocks(1, 1)},
    {2, 13, 96, 20, AttentionLayout::blocks(2, 16)},
    {3, 10, 3 * 2 * 64, 10, AttentionLayout::interleaved(2, 64)},
    {1, 75, 3 * 32, 80, AttentionLayout::blocks(1, 32), 0.7},
    {2, 11, 60, 12, {2, 7, 8, 1, 15, 25}},
    {1, 70, 3 * 33, 71, AttentionLayout::blocks(1, 33)},
    {2, 12, 3 * 96, 12, AttentionLayout::blocks(1, 96)},
    {1, 40, 3 * 128, 64, AttentionLayout::blocks(1, 128)},
    {1, 19, 3 * 200, 19, AttentionLayout::blocks(1, 200)},
    {1, 21, 3 * 256, 32, AttentionLayout::interleaved(1, 256)},
};

Op whole_of(const Case& c) {
  return [c](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{causal_attention(ctx, in[0], c.layout, c.scale)};
  };
}

ExtensionMaker extension_of(const Case& c) {
  return [c](const Context& ctx) -> Extension {
    const Shape cache{c.batch, c.layout.heads, c.capacity, c.layout.head_dim};
    const Tensor keys = zeros(ctx, cache, ctx.compute_dtype());
    const Tensor values = zeros(ctx, cache, ctx.compute_dtype());
    return [c, ctx, keys, values](const std::vector<Tensor>& in, const Tensor& length) {
      return extend_attention(ctx, in[0], c.layout, keys, values, length, c.scale);
    };
  };
}

void check(Backend backend, Precision precision, double tolerance) {
  for (const Case& c : kCases) {
    CAPTURE(c.layout.head_dim);
    check_extension(backend, precision, whole_of(c), extension_of(c), {randn({c.batch, c.tokens, c.row})}, {0},
                    tolerance);
  }
}

// float32: products and sums of up to 256 columns and 75 keys. bfloat16: the caches hold inputs and all arithmetic is
// float32, so what differs is the rounding of results, at most 2^-8 = 3.9e-3 of them.
constexpr double kFloat = 1e-5;
constexpr double kBf16 = 4e-3;

TEST_CASE("decode_attention: pieces equal the whole") {
  check(Backend::Cpu, Precision::Fp64, 1e-12);
  check(Backend::Cpu, Precision::Fp32, kFloat);
  check(Backend::Cpu, Precision::Bf16, kBf16);
}

TEST_CASE("decode_attention: CUDA matches CPU") {
  if (skip_cuda()) return;
  check(Backend::Cuda, Precision::Fp32, kFloat);
  check(Backend::Cuda, Precision::Tf32, kFloat);
  check(Backend::Cuda, Precision::Bf16, kBf16);
}

TEST_CASE("decode_attention: large scores do not overflow") {
  const auto run = [](Backend backend) {
    const Case c{2, 20, 96, 20, AttentionLayout::blocks(2, 16), 100};
    check_extension(backend, Precision::Fp32, whole_of(c), extension_of(c), {randn({2, 20, 96}, Role::Activation, 9)},
                    {0}, 5e-5);  // measured: 9e-6; scores go up to 3000
  };
  run(Backend::Cpu);
  if (!skip_cuda()) run(Backend::Cuda);
}

TEST_CASE("decode_attention: a token beyond the capacity is not stored and gives NaN") {
  const auto run = [](Backend backend, std::int64_t tokens) {
    const TestDevice device(backend);
    const Context& ctx = device.ctx();
    // two sequences of one head: a token stored too far would be the next one's first
    const AttentionLayout layout = AttentionLayout::blocks(1, 4);
    const Tensor keys = zeros(ctx, {2, 1, 4, 4}, DType::F32);
    const Tensor values = zeros(ctx, {2, 1, 4, 4}, DType::F32);
    const HostTensor qkv = randn({2, tokens, 12});
    for (const int start : {3, 4, -1}) {
      const Tensor length = device.tensor({1}, DType::I32, {static_cast<double>(start)});
      const std::vector<double> before = device.values(keys);
      const std::vector<double> y =
          device.values(extend_attention(ctx, device.tensor(qkv), layout, keys, values, length));
      const std::vector<double> after = device.values(keys);
      const auto fits = [&](std::int64_t position) { return position >= 0 && position < 4; };
      for (std::int64_t i = 0; i < 2 * tokens; ++i) {
        CHECK(std::isnan(y[static_cast<std::size_t>(4 * i)]) == !fits(start + i % tokens));
      }
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t position = 0; position < 4; ++position) {
          const std::int64_t token = position - start;
          const auto at = static_cast<std::size_t>((b * 4 + position) * 4);
          const double expected = token >= 0 && token < tokens
                                      ? qkv.values[static_cast<std::size_t>((b * tokens + token) * 12 + 4)]
                                      : before[at];
          CHECK(after[at] == doctest::Approx(expected));
        }
      }
    }
  };
  for (const std::int64_t tokens : {1, 3}) {
    run(Backend::Cpu, tokens);
    if (!skip_cuda()) run(Backend::Cuda, tokens);
  }
}

TEST_CASE("decode_attention: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const AttentionLayout layout = AttentionLayout::blocks(2, 4);
  const auto apply = [&](const Shape& qkv, const Shape& keys, const Shape& values, DType length = DType::I32,
                         AttentionLayout parts = AttentionLayout::blocks(2, 4)) {
    static_cast<void>(extend_attention(ctx, zeros(ctx, qkv, DType::F32), parts, zeros(ctx, keys, DType::F32),
                                       zeros(ctx, values, DType::F32), zeros(ctx, {1}, length)));
  };
  const Shape cache{2, 2, 8, 4};
  CHECK_THROWS_WITH_AS(apply({2, 24}, cache, cache), doctest::Contains("extend_attention: qkv is [2, 24], expected"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 20}, cache, cache),
                       doctest::Contains("columns 0 to 24, expected within a row of 20"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 24}, {2, 8, 2, 4}, cache),
                       doctest::Contains("keys are [2, 8, 2, 4], expected [2, 2, capacity, 4]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 24}, cache, {2, 2, 9, 4}),
                       doctest::Contains("values is [2, 2, 9, 4], expected [2, 2, 8, 4]"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 9, 24}, cache, cache), doctest::Contains("9 tokens for a cache of 8"), ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 24}, cache, cache, DType::I64), doctest::Contains("length is [1] int64"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(apply({2, 1, 900}, cache, cache, DType::I32, AttentionLayout::blocks(1, 300)),
                       doctest::Contains("1 heads of 300 columns, expected at least 1 of 1 to 256"), ArgumentError);
  Tape tape;
  const Tensor keys = zeros(ctx, cache, DType::F32);
  CHECK_THROWS_WITH_AS(static_cast<void>(extend_attention(ctx.with_tape(tape), zeros(ctx, {2, 1, 24}, DType::F32),
                                                          layout, keys, keys, zeros(ctx, {1}, DType::I32))),
                       doctest::Contains("a tape is recording"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
