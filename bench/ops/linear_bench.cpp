#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "bench/support/bench.h"
#include "ops/linear.h"

// The linear maps of the models in the studies: forward, both gradients, and each with the elementwise work beside it
// once in the matrix library's epilogue ("fused") and once in kernels of ours ("separate").

namespace graft::bench {
namespace {

struct Size {
  const char* model;
  std::int64_t rows, in, out;
};

// rows = 64 sequences of 82 (41 points), 202 (101 points) or 110 tokens
constexpr Size kSizes[] = {
    {"L12_d256_T82_qkv", 5248, 256, 768},   {"L12_d256_T82_projection", 5248, 256, 256},
    {"L12_d256_T82_up", 5248, 256, 1024},   {"L12_d256_T82_down", 5248, 1024, 256},
    {"L12_d256_T202_qkv", 12928, 256, 768}, {"L12_d256_T202_projection", 12928, 256, 256},
    {"L12_d256_T202_up", 12928, 256, 1024}, {"L12_d256_T202_down", 12928, 1024, 256},
    {"L2_d128_T82_qkv", 5248, 128, 384},    {"L2_d128_T82_projection", 5248, 128, 128},
    {"L2_d128_T82_up", 5248, 128, 512},     {"L2_d128_T82_down", 5248, 512, 128},
    {"d1024_T110_up", 7040, 1024, 4096},    {"d1024_T110_down", 7040, 4096, 1024},
};

std::string dimensions(const Size& size) { return fmt::format("{}x{}x{}", size.rows, size.out, size.in); }

double flops_of(const Size& size) {
  return 2.0 * static_cast<double>(size.rows) * static_cast<double>(size.in) * static_cast<double>(size.out);
}

FusedEpilogues all(bool fused) { return {fused, fused, fused}; }

/// x W^T + b; with an activation also the pre-activation.
Setup forward(const Size& size, Activation activation, bool fused) {
  return [=](const Context& ctx) -> Work {
    const DType dtype = ctx.compute_dtype();
    const Tensor x = random_tensor(ctx, {size.rows, size.in}, dtype, 1);
    const Tensor weight = random_tensor(ctx, {size.out, size.in}, dtype, 2);
    const Tensor bias = random_tensor(ctx, {size.out}, dtype, 3);
    const Tensor y = ctx.empty_run({size.rows, size.out}, dtype, "y");
    const Tensor pre = activation == Activation::None ? Tensor() : ctx.empty_run(y.shape(), dtype, "pre-activation");
    const auto run = [=](const Context& c) {
      linear_forward(c, {x.view(), weight.view(), bias.view(), y.mutable_view(), pre.mutable_view(), activation,
                         c.precision, all(fused)});
    };
    return {run, bytes_of({x, weight, bias, y, pre}), flops_of(size)};
  };
}

/// dx = dy W; with an activation also its slope and the bias gradient of the layer before.
Setup backward_data(const Size& size, Activation activation, bool fused) {
  return [=](const Context& ctx) -> Work {
    const DType dtype = ctx.compute_dtype();
    const Tensor dy = random_tensor(ctx, {size.rows, size.out}, dtype, 1);
    const Tensor weight = random_tensor(ctx, {size.out, size.in}, dtype, 2);
    const Tensor dx = ctx.empty_run({size.rows, size.in}, dtype, "dx");
    Tensor pre, sums, scratch;
    if (activation != Activation::None) {
      pre = random_tensor(ctx, dx.shape(), dtype, 3);
      sums = ctx.empty_run({size.in}, ctx.stream_dtype(), "bias gradient");
      scratch = ctx.empty_run({column_sum_parts(size.rows), size.in}, ctx.stream_dtype(), "scratch");
    }
    const auto run = [=](const Context& c) {
      const Tensor transposed = transposed_weight_scratch(c, weight);
      linear_backward_data(c, {dy.view(), weight.view(), pre.view(), GradTarget{dx.mutable_view(), false},
                               GradTarget{sums.mutable_view(), false}, scratch.mutable_view(),
                               transposed.mutable_view(), activation, c.precision, all(fused)});
    };
    return {run, bytes_of({dy, weight, dx, pre, sums}), flops_of(size)};
  };
}

/// dW = dy^T x, with or without db = column sums of dy.
Setup backward_weight(const Size& size, bool bias, bool fused) {
  return [=](const Context& ctx) -> Work {
    const DType dtype = ctx.compute_dtype();
    const Tensor dy = random_tensor(ctx, {size.rows, size.out}, dtype, 1);
    const Tensor x = random_tensor(ctx, {size.rows, size.in}, dtype, 2);
    const Tensor dweight = ctx.empty_run({size.out, size.in}, ctx.stream_dtype(), "dweight");
    Tensor dbias, scratch;
    if (bias) {
      dbias = ctx.empty_run({size.out}, ctx.stream_dtype(), "dbias");
      scratch = ctx.empty_run({column_sum_parts(size.rows), size.out}, ctx.stream_dtype(), "scratch");
    }
    const auto run = [=](const Context& c) {
      linear_backward_weight(
          c, {dy.view(), x.view(), GradTarget{dweight.mutable_view(), false}, GradTarget{dbias.mutable_view(), false},
              scratch.mutable_view(), c.precision, all(fused)});
    };
    return {run, bytes_of({dy, x, dweight, dbias}), flops_of(size)};
  };
}

struct Registrations {
  Registrations() {
    const std::vector<Precision> precisions{Precision::Fp32, Precision::Tf32, Precision::Bf16};
    const auto add = [&](const char* what, const Size& size, const Setup& setup) {
      const Add registered(fmt::format("linear/{}/{}_{}", what, size.model, dimensions(size)), precisions, setup);
    };
    for (const Size& size : kSizes) {
      add("forward", size, forward(size, Activation::None, true));
      add("backward_data", size, backward_data(size, Activation::None, true));
      add("backward_weight", size, backward_weight(size, false, true));
      add("backward_weight_bias_fused", size, backward_weight(size, true, true));
      add("backward_weight_bias_separate", size, backward_weight(size, true, false));
      const std::string_view model = size.model;
      if (model.ends_with("_up")) {
        add("forward_gelu_fused", size, forward(size, Activation::GeluTanh, true));
        add("forward_gelu_separate", size, forward(size, Activation::GeluTanh, false));
        add("forward_gelu_erf", size, forward(size, Activation::GeluErf, false));
      }
      if (model.ends_with("_down")) {
        add("backward_data_gelu_fused", size, backward_data(size, Activation::GeluTanh, true));
        add("backward_data_gelu_separate", size, backward_data(size, Activation::GeluTanh, false));
        add("backward_data_gelu_erf", size, backward_data(size, Activation::GeluErf, false));
      }
    }
  }
};
const Registrations registrations;

}  // namespace
}  // namespace graft::bench
