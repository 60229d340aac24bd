#include "ops/attention.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/support/bench.h"

namespace graft::bench {
namespace {

struct Case {
  std::int64_t batch;
  int heads;
  std::int64_t tokens;
  int head_dim;
  std::vector<Precision> precisions;
};

// Causal products only: half of the [T, T] square. Forward has two products, backward five (it recomputes one).
double flops(const Case& c, double products) {
  return products * static_cast<double>(c.batch * c.heads * c.head_dim) * static_cast<double>(c.tokens) *
         static_cast<double>(c.tokens);
}

struct Tensors {
  Tensor qkv, y, lse;
};

Tensors make_tensors(const Context& ctx, const Case& c) {
  const std::int64_t width = std::int64_t{c.heads} * c.head_dim;
  return {random_tensor(ctx, {c.batch, c.tokens, 3 * width}, ctx.compute_dtype()),
          ctx.empty_run({c.batch, c.tokens, width}, ctx.compute_dtype(), "attention y"),
          ctx.empty_run({c.batch, c.heads, c.tokens}, ctx.stream_dtype(), "attention lse")};
}

double scale_of(const Case& c) { return 1.0 / std::sqrt(static_cast<double>(c.head_dim)); }

Work forward(const Context& ctx, const Case& c) {
  const Tensors t = make_tensors(ctx, c);
  const AttentionLayout layout = AttentionLayout::blocks(c.heads, c.head_dim);
  return {[=](const Context& run) {
            attention_forward(
                run, {t.qkv.view(), t.y.mutable_view(), t.lse.mutable_view(), layout, scale_of(c), run.precision});
          },
          static_cast<double>(t.qkv.bytes() + t.y.bytes() + t.lse.bytes()), flops(c, 2)};
}

Work backward(const Context& ctx, const Case& c) {
  const Tensors t = make_tensors(ctx, c);
  const AttentionLayout layout = AttentionLayout::blocks(c.heads, c.head_dim);
  attention_forward(ctx, {t.qkv.view(), t.y.mutable_view(), t.lse.mutable_view(), layout, scale_of(c), ctx.precision});
  const Tensor dy = random_tensor(ctx, t.y.shape(), t.y.dtype(), 2);
  const Tensor dqkv = ctx.empty_run(t.qkv.shape(), t.qkv.dtype(), "attention dqkv");
  const Tensor delta = ctx.empty_run(t.lse.shape(), t.lse.dtype(), "attention delta");
  return {[=](const Context& run) {
            attention_backward(run, {dy.view(), t.qkv.view(), t.y.view(), t.lse.view(), delta.mutable_view(),
                                     GradTarget{dqkv.mutable_view(), false}, layout, scale_of(c), run.precision});
          },
          static_cast<double>(2 * t.qkv.bytes() + 2 * t.y.bytes() + t.lse.bytes()), flops(c, 5)};
}

const bool registered = [] {
  const std::vector<Precision> all = {Precision::Fp32, Precision::Tf32, Precision::Bf16};
  const std::vector<Precision> tensor_cores = {Precision::Tf32, Precision::Bf16};
  const std::vector<Precision> bf16 = {Precision::Bf16};
  for (const Case& c : {Case{64, 8, 82, 32, all}, Case{64, 8, 202, 16, tensor_cores},
                        Case{64, 8, 1024, 16, tensor_cores}, Case{64, 16, 110, 64, bf16}, Case{64, 16, 400, 64, bf16},
                        Case{8, 16, 2048, 64, bf16}, Case{4, 16, 4096, 128, bf16}}) {
    const std::string shape = fmt::format("B{}_H{}_T{}_hd{}", c.batch, c.heads, c.tokens, c.head_dim);
    const Add add_forward{"attention/forward/" + shape, c.precisions,
                          [c](const Context& ctx) { return forward(ctx, c); }};
    const Add add_backward{"attention/backward/" + shape, c.precisions,
                           [c](const Context& ctx) { return backward(ctx, c); }};
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
