#include "ops/gated_rms_norm.h"

#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"

// The norm behind the scan of Mamba-2: gate before the norm, the gate being the first columns of the packed projection.

namespace graft::bench {
namespace {

struct Size {
  std::int64_t rows, width, z_row, group;
};

// 64 sequences of 82 tokens, width 512; of 109 and 205 tokens, width 2048; the latter in groups
constexpr Size kSizes[] = {
    {5248, 512, 1088, 512}, {6976, 2048, 4160, 2048}, {13120, 2048, 4160, 2048}, {6976, 2048, 4160, 256}};

struct Inputs {
  Inputs(const Context& ctx, Size size)
      : x(random_tensor(ctx, {size.rows, size.width}, ctx.compute_dtype(), 1)),
        z(random_tensor(ctx, {size.rows, size.z_row}, ctx.compute_dtype(), 2)),
        weight(random_tensor(ctx, {size.width}, ctx.stream_dtype(), 3)) {}
  Tensor x, z, weight;
};

Setup forward(Size size) {
  return [=](const Context& ctx) -> Work {
    const Inputs in(ctx, size);
    const Tensor y = ctx.empty_run(in.x.shape(), ctx.compute_dtype(), "y");
    const Tensor rstd = ctx.empty_run({size.rows, size.width / size.group}, ctx.stream_dtype(), "rstd");
    const auto run = [=](const Context& c) {
      gated_rms_norm_forward(c, {in.x.view(), in.z.view(), in.weight.view(), y.mutable_view(), rstd.mutable_view(), 0,
                                 size.group, false, 1e-5});
    };
    return {run, 3 * bytes_of({y}) + bytes_of({in.weight, rstd}), 0};
  };
}

Setup backward(Size size) {
  return [=](const Context& ctx) -> Work {
    const Inputs in(ctx, size);
    const Tensor dy = random_tensor(ctx, in.x.shape(), ctx.compute_dtype(), 4);
    const Tensor rstd = random_tensor(ctx, {size.rows, size.width / size.group}, ctx.stream_dtype(), 5);
    const Tensor dx = ctx.empty_run(in.x.shape(), ctx.compute_dtype(), "dx");
    const Tensor dz = ctx.empty_run(in.z.shape(), ctx.compute_dtype(), "dz");
    const Tensor dweight = ctx.empty_run(in.weight.shape(), ctx.stream_dtype(), "dweight");
    const Tensor partial =
        ctx.empty_run({gated_rms_norm_row_blocks(size.rows), size.width}, ctx.stream_dtype(), "partial sums");
    const auto run = [=](const Context& c) {
      gated_rms_norm_backward(
          c, {dy.view(), in.x.view(), in.z.view(), in.weight.view(), rstd.view(), partial.mutable_view(),
              GradTarget{dx.mutable_view(), false}, GradTarget{dz.mutable_view(), false},
              GradTarget{dweight.mutable_view(), false}, 0, size.group, false});
    };
    return {run, 5 * bytes_of({dy}) + bytes_of({in.weight, rstd, dweight}), 0};
  };
}

const std::vector<Precision> kPrecisions = {Precision::Fp32, Precision::Bf16};

const bool registered = [] {
  for (const Size& size : kSizes) {
    const std::string shape = fmt::format("{}x{}_group{}", size.rows, size.width, size.group);
    Add("gated_rms_norm/forward/" + shape, kPrecisions, forward(size));
    Add("gated_rms_norm/backward/" + shape, kPrecisions, backward(size));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
