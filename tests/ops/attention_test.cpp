#include "ops/attention.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"
#include "tests/support/random.h"

using namespace graft;
using namespace graft::test;

namespace {

Op attention_of(const AttentionLayout& layout, double scale = 0.0) {
  return [layout, scale](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{causal_attention(ctx, in[0], layout, scale)};
  };
}

// Keys before queries, gaps between heads, columns left over at both ends.
AttentionLayout padded_layout(int heads, int head_dim) {
  return {heads, head_dim, 1 + head_dim, 1, 1 + 2 * head_dim, 3 * head_dim + 2};
}
std::int64_t padded_row(int heads, int head_dim) { return 1 + heads * (3 * head_dim + 2) + 3; }

// The definition, term by term.
std::vector<double> reference(const std::vector<double>& qkv, std::int64_t batch, std::int64_t tokens, std::int64_t row,
                              const AttentionLayout& layout, double scale) {
  std::vector<double> y;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (int h = 0; h < layout.heads; ++h) {
        const auto at = [&](std::int64_t token, std::int64_t offset, int d) {
          return qkv[static_cast<std::size_t>((b * tokens + token) * row + offset + h * layout.head_stride + d)];
        };
        std::vector<double> weights;
        double sum = 0;
        for (std::int64_t j = 0; j <= i; ++j) {
          double score = 0;
          for (int d = 0; d < layout.head_dim; ++d) score += at(i, layout.q_offset, d) * at(j, layout.k_offset, d);
          weights.push_back(std::exp(score * scale));
          sum += weights.back();
        }
        for (int d = 0; d < layout.head_dim; ++d) {
          double value = 0;
          for (std::int64_t j = 0; j <= i; ++j) {
            value += weights[static_cast<std::size_t>(j)] / sum * at(j, layout.v_offset, d);
          }
          y.push_back(value);
        }
      }
    }
  }
  return y;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// Measured on random normals, tokens 1 to 400: fp32 9e-7 and 1.2e-6, tf32 5e-4 and 1e-3, bf16 3.5e-3 and 6e-3.
// tf32 and bf16 round every factor, to 11 and 8 bits; with one or two columns a head no average makes up for it.
Tolerance tolerance(Precision precision) {
  switch (precision) {
    case Precision::Tf32:
      return {.outputs = 2e-3, .gradients = 3e-3};
    case Precision::Bf16:
      return {.outputs = 8e-3, .gradients = 1.6e-2};
    default:
      return {.outputs = 3e-6, .gradients = 5e-6};
  }
}

void check_cuda(Precision precision, std::int64_t batch, std::int64_t tokens, int heads, int head_dim) {
  CAPTURE(name_of(precision));
  CAPTURE(batch);
  CAPTURE(tokens);
  CAPTURE(heads);
  CAPTURE(head_dim);
  const HostTensor qkv = randn({batch, tokens, 3 * heads * head_dim}, Role::Activation, 7);
  check_parity(Backend::Cuda, precision, attention_of(AttentionLayout::blocks(heads, head_dim)), {qkv},
               tolerance(precision));
}

// Whether y of tokens before `changed` stays the same, bit for bit, when the tokens from there on change.
bool is_causal(Backend backend, Precision precision, std::int64_t tokens, std::int64_t changed, int head_dim) {
  const TestDevice device(backend, precision);
  HostTensor qkv = randn({1, tokens, 6 * head_dim});
  const AttentionLayout layout = AttentionLayout::interleaved(2, head_dim);
  const std::vector<std::byte> before = device.bytes(causal_attention(device.ctx(), device.tensor(qkv), layout));
  const auto first = static_cast<std::ptrdiff_t>(changed * 6 * head_dim);
  for (auto x = qkv.values.begin() + first; x != qkv.values.end(); ++x) *x = 3 * *x + 1;
  const std::vector<std::byte> after = device.bytes(causal_attention(device.ctx(), device.tensor(qkv), layout));
  const auto kept = static_cast<std::ptrdiff_t>(before.size() / static_cast<std::size_t>(tokens)) * changed;
  return std::equal(before.begin(), before.begin() + kept, after.begin()) && before != after;
}

}  // namespace

TEST_CASE("causal_attention: equals its definition") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const int head_dim : {1, 5, 16}) {
    for (const std::int64_t tokens : {1, 2, 7, 33}) {
      const HostTensor blocks = randn({2, tokens, 9 * head_dim});
      const HostTensor padded = randn({2, tokens, padded_row(3, head_dim)});
      for (const double scale : {0.0, 0.7}) {
        const double factor = scale == 0.0 ? 1 / std::sqrt(head_dim) : scale;
        for (const AttentionLayout& layout :
             {AttentionLayout::blocks(3, head_dim), AttentionLayout::interleaved(3, head_dim)}) {
          const Tensor y = causal_attention(device.ctx(), device.tensor(blocks), layout, scale);
          CHECK(y.shape() == Shape{2, tokens, 3 * head_dim});
          CHECK(largest_difference(device.values(y),
                                   reference(blocks.values, 2, tokens, 9 * head_dim, layout, factor)) < 1e-14 * 20);
        }
        const AttentionLayout layout = padded_layout(3, head_dim);
        const Tensor y = causal_attention(device.ctx(), device.tensor(padded), layout, scale);
        CHECK(largest_difference(device.values(y), reference(padded.values, 2, tokens, padded_row(3, head_dim), layout,
                                                             factor)) < 1e-14 * 20);
      }
    }
  }
}

TEST_CASE("causal_attention: gradients match finite differences") {
  for (const int head_dim : {1, 5, 16}) {
    for (const std::int64_t tokens : {1, 2, 7, 33}) {
      CAPTURE(head_dim);
      CAPTURE(tokens);
      const HostTensor qkv = randn({2, tokens, 6 * head_dim});
      CHECK(gradcheck(attention_of(AttentionLayout::blocks(2, head_dim)), {qkv}) < 1e-7);
      CHECK(gradcheck(attention_of(AttentionLayout::interleaved(2, head_dim), 0.3), {qkv}) < 1e-7);
      const HostTensor padded = randn({2, tokens, padded_row(2, head_dim)});
      CHECK(gradcheck(attention_of(padded_layout(2, head_dim)), {padded}) < 1e-7);
    }
  }
}

TEST_CASE("causal_attention: float32 and bfloat16 on the CPU match float64") {
  for (const std::int64_t tokens : {1, 16, 82, 130}) {
    for (const int head_dim : {3, 16, 32}) {
      CAPTURE(tokens);
      CAPTURE(head_dim);
      for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
        check_parity(Backend::Cpu, precision, attention_of(AttentionLayout::blocks(2, head_dim)),
                     {randn({2, tokens, 6 * head_dim})}, tolerance(precision));
      }
    }
  }
}

TEST_CASE("causal_attention: scores far apart neither overflow nor vanish") {
  const TestDevice device(Backend::Cpu, Precision::Fp32);
  HostTensor qkv = randn({1, 40, 12});
  for (double& x : qkv.values) x *= 40;  // scores to several thousands
  const std::vector<double> y =
      device.values(causal_attention(device.ctx(), device.tensor(qkv), AttentionLayout::blocks(1, 4)));
  CHECK(std::all_of(y.begin(), y.end(), [](double x) { return std::isfinite(x); }));
  CHECK(y[0] == doctest::Approx(qkv.values[8]));  // the first token sees only itself
}

TEST_CASE("causal_attention: later tokens leave earlier outputs unchanged") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16, Precision::Fp64}) {
    for (const std::int64_t changed : {1, 16, 47}) CHECK(is_causal(Backend::Cpu, precision, 48, changed, 8));
  }
}

TEST_CASE("causal_attention: the number of CPU threads does not change a bit") {
  const HostTensor qkv = randn({3, 37, 3 * 4 * 8});
  const Op op = attention_of(AttentionLayout::blocks(4, 8));
  const auto cotangents = random_cotangents(op, {qkv});
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), op, {qkv}, cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), op, {qkv}, cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("causal_attention: mistakes are refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const Tensor qkv = device.tensor(randn({2, 4, 24}));
  const auto refused = [&](const Tensor& x, const AttentionLayout& layout, const char* message, double scale = 0.0) {
    CHECK_THROWS_WITH_AS((void)causal_attention(ctx, x, layout, scale), doctest::Contains(message), ArgumentError);
  };
  refused(device.tensor(randn({8, 24})), AttentionLayout::blocks(2, 4), "expected [B, T, row]");
  refused(device.tensor(integers({2, 4, 24}, 5)), AttentionLayout::blocks(2, 4), "qkv is int32");
  refused(qkv, AttentionLayout::blocks(2, 5), "expected within a row of 24");
  refused(qkv, AttentionLayout::blocks(0, 4), "0 heads");
  refused(qkv, AttentionLayout::blocks(1, 257), "expected 1 to 256");
  refused(qkv, {2, 4, -4, 8, 16, 4}, "expected within a row");
  refused(qkv, {2, 4, 0, 4, 16, 4}, "do not overlap");
  refused(qkv, AttentionLayout::blocks(2, 4), "expected a positive factor", -1.0);
}

TEST_CASE("causal_attention: CUDA matches CPU") {
  if (skip_cuda()) return;
  const std::vector<std::int64_t> all = {1, 2, 15, 16, 17, 63, 64, 65, 82, 127, 128, 129, 202, 300};
  const std::vector<std::int64_t> some = {1, 17, 64, 82, 129, 300};
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    for (const int head_dim : {8, 16, 32, 64, 128}) {
      for (const std::int64_t tokens : all) check_cuda(precision, 2, tokens, 2, head_dim);
    }
    for (const int head_dim : {1, 5, 20, 96, 100, 200, 256}) {
      for (const std::int64_t tokens : some) check_cuda(precision, 1, tokens, 2, head_dim);
    }
    check_cuda(precision, 3, 700, 3, 32);  // several thread blocks a head, an odd number of heads
  }
}

TEST_CASE("causal_attention: CUDA matches CPU for other layouts and gradient targets") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    CAPTURE(name_of(precision));
    for (const int head_dim : {8, 20, 32, 64, 160}) {
      for (const std::int64_t tokens : {33, 150, 270}) {
        CAPTURE(head_dim);
        CAPTURE(tokens);
        // A weight's gradient is float32 and starts from what is there.
        for (const Role role : {Role::Activation, Role::Weight}) {
          check_parity(Backend::Cuda, precision, attention_of(AttentionLayout::interleaved(2, head_dim), 0.2),
                       {randn({2, tokens, 6 * head_dim}, role)}, tolerance(precision));
          check_parity(Backend::Cuda, precision, attention_of(padded_layout(2, head_dim)),
                       {randn({2, tokens, padded_row(2, head_dim)}, role)}, tolerance(precision));
          // Aligned, with padding columns.
          check_parity(Backend::Cuda, precision, attention_of(AttentionLayout::blocks(2, head_dim)),
                       {randn({2, tokens, 6 * head_dim + 16}, role)}, tolerance(precision));
        }
      }
    }
  }
}

TEST_CASE("causal_attention: on CUDA later tokens leave earlier outputs unchanged") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    for (const int head_dim : {16, 32, 64, 128}) {
      for (const std::int64_t changed : {1, 31, 64, 149}) {
        CHECK(is_causal(Backend::Cuda, precision, 150, changed, head_dim));
      }
    }
  }
}
