#include "ops/ssd.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bench/support/bench.h"

// The state-space dual as a Mamba-2 block calls it: x, B and C packed behind their convolution, step sizes in the last
// columns of the in-projection, skip a head, no gate (the norm that follows has it). Forward and backward.
//
// Floors on an H100 (3.35e12 bytes/s; 9.9e14 bfloat16 and 6.7e13 float32 operations/s; 3.7e12 exponentials/s) in
// bfloat16, chunks of Q = min(T, 128) steps with the causal half of their pairs counted:
//   bytes         forward reads x, B, C, dt and writes y; backward reads these and dy and writes dx, dB, dC, ddt; with
//                 several chunks the states between them are written by forward and read by backward. What kernels
//                 hand each other through memory on top of this (states read again, their gradients, parts of dB and
//                 dC a head block) is not counted.
//   operations    a step and head: pairs forward Q P, backward 2 Q P; a step and group: forward Q N, backward 3 Q N;
//                 with several chunks a step and head: states forward 4 N P, backward 8 N P
//   exponentials  B H T Q / 2 decays between the steps of pairs, each way
//   case                       forward: bytes, operations, exponentials    backward
//   B64 H32 P64 T110  N16      17 us,  2 us,  3 us                         26 us,  3 us,  3 us
//   B64 H32 P64 T110  N64      18 us,  2 us,  3 us                         27 us,  3 us,  3 us
//   B8  H32 P64 T2048 N64      62 us, 13 us,  9 us                         83 us, 26 us,  9 us

namespace graft::bench {
namespace {

struct Case {
  std::int64_t batch, heads, head_dim, tokens, state;

  [[nodiscard]] std::int64_t inner() const { return heads * head_dim; }
  [[nodiscard]] std::int64_t chunks() const { return ssd_chunks(tokens); }
};

constexpr Case kCases[] = {{64, 32, 64, 110, 16}, {64, 32, 64, 110, 64}, {8, 32, 64, 2048, 64}};

struct Inputs {
  Tensor xbc, projection, a_log, bias, skip;

  Inputs(const Context& ctx, const Case& c)
      : xbc(random_tensor(ctx, {c.batch, c.tokens, c.inner() + 2 * c.state}, ctx.compute_dtype(), 1)),
        projection(random_tensor(ctx, {c.batch, c.tokens, 2 * c.inner() + 2 * c.state + c.heads}, xbc.dtype(), 2)),
        a_log(random_tensor(ctx, {c.heads}, ctx.stream_dtype(), 3)),
        bias(random_tensor(ctx, {c.heads}, ctx.stream_dtype(), 4)),
        skip(random_tensor(ctx, {c.heads}, ctx.stream_dtype(), 5)) {}

  [[nodiscard]] SsdSource source(const Case& c) const {
    SsdSource source;
    source.xbc = xbc.view();
    source.dt = projection.view();
    source.a_log = a_log.view();
    source.dt_bias = bias.view();
    source.skip = skip.view();
    source.b_offset = c.inner();
    source.c_offset = c.inner() + c.state;
    source.dt_offset = 2 * c.inner() + 2 * c.state;
    source.heads = c.heads;
    source.head_dim = c.head_dim;
    source.state = c.state;
    return source;
  }
  /// x, B, C and the columns of the step sizes.
  [[nodiscard]] double bytes(const Case& c) const {
    const auto steps = static_cast<double>(c.batch * c.tokens * c.heads);
    return bytes_of({xbc}) + steps * static_cast<double>(size_of(projection.dtype()));
  }
};

Tensor states_of(const Context& ctx, const Case& c, const char* name) {
  if (c.chunks() == 1) return {};
  return ctx.empty_run({c.batch, c.chunks(), c.heads, c.head_dim, c.state}, ctx.stream_dtype(), name);
}
View view_or_null(const Tensor& tensor) { return tensor ? tensor.mutable_view() : View{}; }

/// Operations of `pairs` products over pairs of steps with the channels, `shared` with the states of B and C, and
/// `states` products of channels with states.
double operations(const Case& c, double pairs, double shared, double states) {
  const auto steps = static_cast<double>(c.batch * c.tokens), inner = static_cast<double>(c.inner());
  const auto chunk = static_cast<double>(std::min(c.tokens, kSsdChunk)), state = static_cast<double>(c.state);
  const double between = c.chunks() > 1 ? 2 * states * state * inner : 0;
  return steps * (chunk * (pairs * inner + shared * state) + between);
}

Setup forward(Case c) {
  return [=](const Context& ctx) -> Work {
    const Inputs in(ctx, c);
    const Tensor y = ctx.empty_run({c.batch, c.tokens, c.inner()}, ctx.compute_dtype(), "y");
    const Tensor states = states_of(ctx, c, "states");
    const auto run = [=](const Context& r) {
      ssd_forward(r, {in.source(c), y.mutable_view(), view_or_null(states), {}});
    };
    return {run, in.bytes(c) + bytes_of({y, states}), operations(c, 1, 1, 2)};
  };
}

Setup backward(Case c) {
  return [=](const Context& ctx) -> Work {
    const Inputs in(ctx, c);
    const DType stream = ctx.stream_dtype();
    const Tensor dy = random_tensor(ctx, {c.batch, c.tokens, c.inner()}, ctx.compute_dtype(), 6);
    const Tensor y = ctx.empty_run(dy.shape(), dy.dtype(), "y");
    const Tensor states = states_of(ctx, c, "states"), dstates = states_of(ctx, c, "gradients of states");
    ssd_forward(ctx, {in.source(c), y.mutable_view(), view_or_null(states), {}});
    const Tensor partial_bc =
        ctx.empty_run({c.batch, c.tokens, c.heads / ssd_head_block(c.heads, 1), 2, c.state}, stream, "partial dB, dC");
    const Tensor partial_heads = ctx.empty_run({c.batch, c.chunks(), 2, c.heads}, stream, "partial dA, ddt_bias");
    const Tensor partial_skip = ctx.empty_run({c.batch, c.chunks(), c.inner()}, stream, "partial dskip");
    const auto like = [&](const Tensor& tensor) { return ctx.empty_run(tensor.shape(), tensor.dtype(), "gradient"); };
    const Tensor dxbc = like(in.xbc), dprojection = like(in.projection), da_log = like(in.a_log), dbias = like(in.bias),
                 dskip = like(in.skip);
    const auto target = [](const Tensor& tensor) { return GradTarget{tensor.mutable_view(), false}; };
    SsdBackward args;
    args.in = in.source(c);
    args.dy = dy.view();
    args.states = view_or_null(states);
    args.dstates = view_or_null(dstates);
    args.partial_bc = partial_bc.mutable_view();
    args.partial_heads = partial_heads.mutable_view();
    args.partial_skip = partial_skip.mutable_view();
    args.dx = args.db = args.dc = target(dxbc);
    args.ddt = target(dprojection);
    args.da_log = target(da_log);
    args.ddt_bias = target(dbias);
    args.dskip = target(dskip);
    // the arguments are views only: what they look at lives as long as the launch
    const auto run = [args, kept = std::vector<Tensor>{in.xbc, in.projection, in.a_log, in.bias, in.skip, dy, states,
                                                       dstates, partial_bc, partial_heads, partial_skip, dxbc,
                                                       dprojection, da_log, dbias, dskip}](const Context& r) {
      ssd_backward(r, args);
    };
    return {run, 2 * in.bytes(c) + bytes_of({dy, states}), operations(c, 2, 3, 4)};
  };
}

const std::vector<Precision> kPrecisions = {Precision::Fp32, Precision::Bf16};

const bool registered = [] {
  for (const Case& c : kCases) {
    const std::string shape = fmt::format("B{}_H{}_P{}_T{}_N{}", c.batch, c.heads, c.head_dim, c.tokens, c.state);
    Add("ssd/forward/" + shape, kPrecisions, forward(c));
    Add("ssd/backward/" + shape, kPrecisions, backward(c));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
