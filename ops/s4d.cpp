#include "ops/s4d.h"

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/checks.h"

namespace graft {
namespace {

/// Checks c, log_dt, log_a_real and a_imag for `channels` channels and returns the number of modes.
int check_modes(const Context& ctx, const char* op, const S4dParameters& p, std::int64_t channels) {
  const Shape& c = p.c.shape();
  require(p.c && c.rank() == 3 && c[0] == channels && c[2] == 2 && c[1] >= 1 && c[1] <= kS4dMaxModes,
          "{}: c is {}, expected [{}, 1 to {} modes, 2]", op, p.c ? c.str() : "empty", channels, kS4dMaxModes);
  check_tensor(ctx, op, "c", p.c, c, ctx.stream_dtype());
  check_tensor(ctx, op, "log_dt", p.log_dt, {channels}, ctx.stream_dtype());
  check_tensor(ctx, op, "log_a_real", p.log_a_real, {channels, c[1]}, ctx.stream_dtype());
  check_tensor(ctx, op, "a_imag", p.a_imag, {channels, c[1]}, ctx.stream_dtype());
  return static_cast<int>(c[1]);
}

Tensor make_table(const Context& ctx, const S4dParameters& p, const S4dLayout& layout) {
  Tensor table = ctx.empty({layout.modes, kS4dTableRows, layout.channels}, ctx.stream_dtype(), "s4d modes");
  s4d_modes(ctx, {p.c.view(), p.log_dt.view(), p.log_a_real.view(), p.a_imag.view(), table.mutable_view(), layout});
  return table;
}

/// `values` numbers of every mode for each chunk of each sequence; nothing where a sequence is one chunk.
Tensor chunk_states(const Context& ctx, const S4dLayout& layout, std::int64_t values) {
  if (layout.chunks == 1) return {};
  return ctx.empty({layout.batch * layout.chunks, layout.modes, values, layout.channels}, ctx.stream_dtype(),
                   "s4d chunk states");
}

}  // namespace

Tensor s4d(const Context& ctx, const Tensor& u, const S4dParameters& parameters, const S4dGate& gate) {
  require(u.shape().rank() == 3 && u.elements() > 0, "s4d: u is {}, expected [B, T, H]", u.shape().str());
  require(u.dtype() == ctx.compute_dtype(), "s4d: u is {}, expected {} in {}", name_of(u.dtype()),
          name_of(ctx.compute_dtype()), name_of(ctx.precision));
  const std::int64_t channels = u.shape()[2];
  const int modes = check_modes(ctx, "s4d", parameters, channels);
  check_tensor(ctx, "s4d", "skip", parameters.skip, {channels}, ctx.stream_dtype());
  if (gate.packed) {
    check_columns(ctx, "s4d", "the gate's tensor", gate.packed, u.shape()[0], u.shape()[1], gate.offset, channels,
                  "the gate");
  }

  S4dLayout layout{.batch = u.shape()[0], .tokens = u.shape()[1], .channels = channels, .modes = modes};
  layout.chunks = static_cast<int>(s4d_chunks(layout.batch, layout.tokens, channels));
  if (gate.packed) {
    layout.activation = gate.activation;
    layout.gate_row = gate.packed.shape()[2];
    layout.gate_offset = gate.offset;
  }
  const Tensor table = make_table(ctx, parameters, layout);
  Tensor y = ctx.empty(u.shape(), u.dtype(), "s4d");
  {
    const Tensor states = chunk_states(ctx, layout, 2);
    s4d_forward(ctx, {u.view(), table.view(), parameters.skip.view(), view_or_null(gate.packed),
                      mutable_view_or_null(states), y.mutable_view(), layout});
  }
  if (ctx.tape == nullptr) return y;
  ctx.tape->record(
      "s4d",
      {u, parameters.c, parameters.log_dt, parameters.log_a_real, parameters.a_imag, parameters.skip, gate.packed}, y,
      [u, p = parameters, gate, table, layout](const Context& c, Grads& grads, const GradRef& dy) {
        S4dBackward args{.dy = grads.of(dy),
                         .u = u.view(),
                         .table = table.view(),
                         .skip = p.skip.view(),
                         .gate = view_or_null(gate.packed),
                         .c = p.c.view(),
                         .log_dt = p.log_dt.view(),
                         .log_a_real = p.log_a_real.view(),
                         .a_imag = p.a_imag.view(),
                         .layout = layout};
        args.du = grads.into(u);
        if (gate.packed) args.dgate = grads.into_columns(gate.packed, gate.offset, layout.channels);
        args.dc = grads.into(p.c);
        args.dlog_dt = grads.into(p.log_dt);
        args.dlog_a_real = grads.into(p.log_a_real);
        args.da_imag = grads.into(p.a_imag);
        args.dskip = grads.into(p.skip);
        const Tensor states = chunk_states(c, layout, 4);
        args.states = mutable_view_or_null(states);
        Tensor partial;
        if (args.dc || args.dlog_dt || args.dlog_a_real || args.da_imag || args.dskip) {
          partial = c.empty({layout.rows(), layout.columns(), layout.channels}, c.stream_dtype(), "s4d partial sums");
        }
        args.partial = mutable_view_or_null(partial);
        s4d_backward(c, args);
      });
  return y;
}

Tensor s4d_kernel(const Context& ctx, const S4dParameters& parameters, std::int64_t tokens) {
  require(tokens >= 1, "s4d_kernel: {} tokens, expected at least 1", tokens);
  require(parameters.log_dt && parameters.log_dt.shape().rank() == 1 && parameters.log_dt.elements() > 0,
          "s4d_kernel: log_dt is {}, expected [H]", parameters.log_dt ? parameters.log_dt.shape().str() : "missing");
  const std::int64_t channels = parameters.log_dt.shape()[0];
  const int modes = check_modes(ctx, "s4d_kernel", parameters, channels);
  const S4dLayout layout{.batch = 1, .tokens = tokens, .channels = channels, .modes = modes, .impulse = true};
  const Tensor table = make_table(ctx, parameters, layout);
  Tensor y = ctx.empty({channels, tokens}, ctx.stream_dtype(), "s4d kernel");
  s4d_forward(ctx, {{}, table.view(), {}, {}, {}, y.mutable_view(), layout});
  if (ctx.tape == nullptr) return y;
  S4dParameters p = parameters;
  p.skip = {};
  ctx.tape->record("s4d_kernel", {p.c, p.log_dt, p.log_a_real, p.a_imag}, y,
                   [p, table, layout](const Context& c, Grads& grads, const GradRef& dy) {
                     S4dBackward args{.dy = grads.of(dy),
                                      .table = table.view(),
                                      .c = p.c.view(),
                                      .log_dt = p.log_dt.view(),
                                      .log_a_real = p.log_a_real.view(),
                                      .a_imag = p.a_imag.view(),
                                      .layout = layout};
                     args.dc = grads.into(p.c);
                     args.dlog_dt = grads.into(p.log_dt);
                     args.dlog_a_real = grads.into(p.log_a_real);
                     args.da_imag = grads.into(p.a_imag);
                     const Tensor partial = c.empty({layout.rows(), layout.columns(), layout.channels},
                                                    c.stream_dtype(), "s4d partial sums");
                     args.partial = partial.mutable_view();
                     s4d_backward(c, args);
                   });
  return y;
}

}  // namespace graft
