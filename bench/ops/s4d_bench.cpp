#include "ops/s4d.h"

#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"

namespace graft::bench {
namespace {

constexpr int kModes = 8;

struct Size {
  std::int64_t batch, tokens, channels;
};
// S4 and S4-Mamba on prompts of 41 and 101 points and on the longest ones, and one sequence that is cut into chunks.
constexpr Size kSizes[] = {{64, 82, 128}, {64, 202, 256}, {64, 202, 512}, {64, 1024, 256}, {1, 4096, 512}};

Setup s4d_work(Size size, bool gated, bool backward) {
  return [=](const Context& ctx) -> Work {
    S4dLayout layout{.batch = size.batch, .tokens = size.tokens, .channels = size.channels, .modes = kModes};
    layout.chunks = static_cast<int>(s4d_chunks(size.batch, size.tokens, size.channels));
    if (gated) {
      layout.gate_row = 2 * size.channels;
      layout.gate_offset = size.channels;
    }
    const DType stream = ctx.stream_dtype();
    const Shape shape{size.batch, size.tokens, size.channels};
    const Tensor u = random_tensor(ctx, shape, ctx.compute_dtype(), 1);
    const Tensor dy = random_tensor(ctx, shape, ctx.compute_dtype(), 2);
    const Tensor out = ctx.empty_run(shape, ctx.compute_dtype(), "out");
    const Tensor packed =
        gated ? random_tensor(ctx, {size.batch, size.tokens, layout.gate_row}, u.dtype(), 3) : Tensor();
    const Tensor dpacked = gated ? ctx.empty_run(packed.shape(), u.dtype(), "gate gradient") : Tensor();
    const Tensor c = random_tensor(ctx, {size.channels, kModes, 2}, stream, 4);
    const Tensor log_dt = random_tensor(ctx, {size.channels}, stream, 5);
    const Tensor log_a_real = random_tensor(ctx, {size.channels, kModes}, stream, 6);
    const Tensor a_imag = random_tensor(ctx, {size.channels, kModes}, stream, 7);
    const Tensor skip = random_tensor(ctx, {size.channels}, stream, 8);
    const Tensor table = ctx.empty_run({kModes, kS4dTableRows, size.channels}, stream, "modes");
    const Tensor states = ctx.empty_run({size.batch * layout.chunks, kModes, 4, size.channels}, stream, "chunk states");
    const Tensor partial = ctx.empty_run({layout.rows(), layout.columns(), size.channels}, stream, "partial");
    const Tensor dc = ctx.empty_run(c.shape(), stream, "dc");
    const Tensor dlog_dt = ctx.empty_run(log_dt.shape(), stream, "dlog_dt");
    const Tensor dlog_a_real = ctx.empty_run(log_a_real.shape(), stream, "dlog_a_real");
    const Tensor da_imag = ctx.empty_run(a_imag.shape(), stream, "da_imag");
    const Tensor dskip = ctx.empty_run(skip.shape(), stream, "dskip");
    const S4dModes modes{c.view(), log_dt.view(), log_a_real.view(), a_imag.view(), table.mutable_view(), layout};
    const auto run = [=](const Context& context) {
      const View chunk_states = layout.chunks > 1 ? states.mutable_view() : View{};
      const ConstView gate = gated ? packed.view() : ConstView{};
      if (!backward) {
        s4d_modes(context, modes);
        s4d_forward(context, {u.view(), table.view(), skip.view(), gate, chunk_states, out.mutable_view(), layout});
        return;
      }
      S4dBackward args{.dy = dy.view(),
                       .u = u.view(),
                       .table = table.view(),
                       .skip = skip.view(),
                       .gate = gate,
                       .c = c.view(),
                       .log_dt = log_dt.view(),
                       .log_a_real = log_a_real.view(),
                       .a_imag = a_imag.view(),
                       .states = chunk_states,
                       .partial = partial.mutable_view(),
                       .layout = layout};
      args.du = {out.mutable_view(), false};
      if (gated) args.dgate = {dpacked.mutable_view(), false};
      args.dc = {dc.mutable_view(), false};
      args.dlog_dt = {dlog_dt.mutable_view(), false};
      args.dlog_a_real = {dlog_a_real.mutable_view(), false};
      args.da_imag = {da_imag.mutable_view(), false};
      args.dskip = {dskip.mutable_view(), false};
      s4d_backward(context, args);
    };
    s4d_modes(ctx, modes);  // backward reads the table
    const auto bytes = static_cast<double>(u.bytes());
    // forward u, y, gate; backward u, dy, du, gate and its gradient
    const double tensors = backward ? (gated ? 5 : 3) : (gated ? 3 : 2);
    // a mode's step is 4 multiply-adds and 2 for its output; backward: one such for du and dgate each, 12 for the sums
    const double adds = backward ? (gated ? 24 : 18) : 6;
    return {run, tensors * bytes, 2 * adds * kModes * static_cast<double>(u.elements())};
  };
}

const bool registered = [] {
  for (const Size& size : kSizes) {
    for (const bool gated : {false, true}) {
      const std::string shape =
          fmt::format("B{}_T{}_H{}{}", size.batch, size.tokens, size.channels, gated ? "_gate" : "");
      Add("s4d/forward/" + shape, {Precision::Fp32, Precision::Bf16}, s4d_work(size, gated, false));
      Add("s4d/backward/" + shape, {Precision::Fp32, Precision::Bf16}, s4d_work(size, gated, true));
    }
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
