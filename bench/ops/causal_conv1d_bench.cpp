#include "ops/causal_conv1d.h"

#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"

// The convolutions in front of the scans of the models in the studies: width 4, bias, SiLU, columns of a packed
// projection.

namespace graft::bench {
namespace {

struct Size {
  std::int64_t batch, tokens, row, offset, channels;
};

// Mamba of width 256 with 41 and 101 points; of width 1024 (x before z); Mamba-2 of width 1024 (z before x, B and C,
// then 32 heads); long sequences
constexpr Size kSizes[] = {{64, 82, 1024, 0, 512},   {64, 202, 1024, 0, 512},     {64, 110, 4096, 0, 2048},
                           {64, 205, 4096, 0, 2048}, {64, 110, 4160, 2048, 2080}, {1, 8192, 4096, 0, 2048}};
constexpr std::int64_t kWidth = 4;

Setup forward(Size size) {
  return [=](const Context& ctx) -> Work {
    const DType compute = ctx.compute_dtype();
    const Tensor x = random_tensor(ctx, {size.batch, size.tokens, size.row}, compute, 1);
    const Tensor weight = random_tensor(ctx, {size.channels, kWidth}, compute, 2);
    const Tensor bias = random_tensor(ctx, {size.channels}, compute, 3);
    const Tensor y = ctx.empty_run({size.batch, size.tokens, size.channels}, compute, "y");
    const auto run = [=](const Context& c) {
      causal_conv1d_forward(c, {x.view(), weight.view(), bias.view(), y.mutable_view(), size.offset, true});
    };
    return {run, 2 * bytes_of({y}) + bytes_of({weight, bias}), 0};  // the columns read are as many as those written
  };
}

Setup backward(Size size) {
  return [=](const Context& ctx) -> Work {
    const DType compute = ctx.compute_dtype();
    const DType stream = ctx.stream_dtype();
    const Tensor x = random_tensor(ctx, {size.batch, size.tokens, size.row}, compute, 1);
    const Tensor weight = random_tensor(ctx, {size.channels, kWidth}, compute, 2);
    const Tensor bias = random_tensor(ctx, {size.channels}, compute, 3);
    const Tensor dy = random_tensor(ctx, {size.batch, size.tokens, size.channels}, compute, 4);
    const Tensor dx = ctx.empty_run(x.shape(), compute, "dx");
    const Tensor dweight = ctx.empty_run(weight.shape(), stream, "dweight");
    const Tensor dbias = ctx.empty_run(bias.shape(), stream, "dbias");
    const std::int64_t parts = causal_conv1d_split(size.batch, size.tokens, size.channels).parts;
    const Tensor partial = ctx.empty_run({parts, kWidth + 1, size.channels}, stream, "partial sums");
    const auto run = [=](const Context& c) {
      causal_conv1d_backward(c, {dy.view(), x.view(), weight.view(), bias.view(), partial.mutable_view(),
                                 GradTarget{dx.mutable_view(), false}, GradTarget{dweight.mutable_view(), false},
                                 GradTarget{dbias.mutable_view(), false}, size.offset, true});
    };
    return {run, 3 * bytes_of({dy}) + bytes_of({weight, bias, dweight, dbias}), 0};
  };
}

const std::vector<Precision> kPrecisions = {Precision::Fp32, Precision::Bf16};

const bool registered = [] {
  for (const Size& size : kSizes) {
    const std::string shape = fmt::format("B{}_T{}_D{}_row{}", size.batch, size.tokens, size.channels, size.row);
    Add("causal_conv1d/forward/" + shape, kPrecisions, forward(size));
    Add("causal_conv1d/backward/" + shape, kPrecisions, backward(size));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
