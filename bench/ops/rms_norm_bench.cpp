#include "ops/rms_norm.h"

#include <fmt/format.h>

#include <initializer_list>
#include <vector>

#include "bench/support/bench.h"

// The RMS norms of the models in the studies: alone, and fused with the residual sum, forward and backward.

namespace graft::bench {
namespace {

struct Size {
  std::int64_t rows, width;
};

// rows = 64 sequences of 82 (41 points) tokens; of 109 (n-gram) and 205 (position) tokens of the retrieval models; wide
constexpr Size kSizes[] = {{5248, 256}, {6976, 1024}, {13120, 1024}, {4096, 4096}};

double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

Setup forward(Size size, bool fused) {
  return [=](const Context& ctx) -> Work {
    const DType stream = ctx.stream_dtype();
    const Tensor x = random_tensor(ctx, {size.rows, size.width}, stream, 1);
    const Tensor branch = random_tensor(ctx, x.shape(), ctx.compute_dtype(), 2);
    const Tensor weight = random_tensor(ctx, {size.width}, stream, 3);
    const Tensor sum = ctx.empty_run(x.shape(), stream, "sum");
    const Tensor y = ctx.empty_run(x.shape(), ctx.compute_dtype(), "y");
    const Tensor rstd = ctx.empty_run({size.rows}, stream, "rstd");
    const auto run = [=](const Context& c) {
      rms_norm_forward(c, {x.view(), fused ? branch.view() : ConstView{}, weight.view(),
                           fused ? sum.mutable_view() : View{}, y.mutable_view(), rstd.mutable_view(), 1e-5});
    };
    return {run, bytes_of({x, weight, y, rstd}) + (fused ? bytes_of({branch, sum}) : 0), 0};
  };
}

Setup backward(Size size, bool fused) {
  return [=](const Context& ctx) -> Work {
    const DType stream = ctx.stream_dtype();
    const DType compute = ctx.compute_dtype();
    const Tensor x = random_tensor(ctx, {size.rows, size.width}, stream, 1);
    const Tensor dy = random_tensor(ctx, x.shape(), compute, 2);
    const Tensor dsum = random_tensor(ctx, x.shape(), stream, 3);
    const Tensor weight = random_tensor(ctx, {size.width}, stream, 4);
    const Tensor rstd = random_tensor(ctx, {size.rows}, stream, 5);
    const Tensor dx = ctx.empty_run(x.shape(), stream, "dx");
    const Tensor dweight = ctx.empty_run(weight.shape(), stream, "dweight");
    const Tensor partial = ctx.empty_run({rms_norm_row_blocks(size.rows), size.width}, stream, "partial sums");
    // a branch of another dtype gets its own copy of the gradient
    const bool copies = fused && compute != stream;
    const Tensor dbranch = copies ? ctx.empty_run(x.shape(), compute, "dbranch") : Tensor();
    const auto run = [=](const Context& c) {
      rms_norm_backward(c, {fused ? dsum.view() : ConstView{}, dy.view(), x.view(), weight.view(), rstd.view(),
                            partial.mutable_view(), GradTarget{dx.mutable_view(), false},
                            copies ? GradTarget{dbranch.mutable_view(), false} : GradTarget{},
                            GradTarget{dweight.mutable_view(), false}});
    };
    return {run, bytes_of({x, dy, weight, rstd, dx, dweight, dbranch}) + (fused ? bytes_of({dsum}) : 0), 0};
  };
}

const std::vector<Precision> kPrecisions = {Precision::Fp32, Precision::Bf16};

const bool registered = [] {
  for (const Size& size : kSizes) {
    const std::string shape = fmt::format("{}x{}", size.rows, size.width);
    Add("rms_norm/forward/" + shape, kPrecisions, forward(size, false));
    Add("rms_norm/backward/" + shape, kPrecisions, backward(size, false));
    Add("add_rms_norm/forward/" + shape, kPrecisions, forward(size, true));
    Add("add_rms_norm/backward/" + shape, kPrecisions, backward(size, true));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
