#include "ops/selective_scan.h"

#include <fmt/format.h>

#include <vector>

#include "bench/support/bench.h"

// The selective scan with gate, skip and bias: forward as in inference, forward that keeps the states backward starts
// from, and backward.
//
// Floors on an H100 (3.35e12 bytes/s; 16 exponentials a clock and multiprocessor, 3.7e12/s; 128 lanes of float32), in
// bfloat16, with P = B T D N states in all:
//   bytes         forward reads u, delta, z and writes y: 8 B T D; training adds P / 4 of checkpoints; backward moves
//                 14 B T D, reads the checkpoints, and moves 16 N a step and block of channels for dB and dC
//   exponentials  forward P, its decays; backward 7/4 P: three quarters of a tile are run twice
//   instructions  forward about P (5.5 + 50 / N): arithmetic, exponential and loads of B and C of a state; step size,
//                 gate, loads and stores of a channel. Backward, counted in the machine code, 27 P: 18 where states and
//                 decays are in registers, 3.4 for the first run, the rest around them; 31 P with blocks of 64
//                 channels, the last case. 528 schedulers, 9.3e11 warp instructions/s.
//   case                     bytes    exponentials  instructions     floor: forward, backward
//   B64 T82   D512  N16      7 us     12, 20 us     13, 40 us        13 us,  40 us
//   B64 T110  D2048 N16      35 us    62, 109 us    67, 212 us       67 us,  212 us
//   B64 T110  D2048 N64      190 us   249, 436 us   195, 834 us      249 us, 834 us
//   B8  T2048 D2048 N16      80 us    145, 254 us   156, 570 us      156 us, 570 us

namespace graft::bench {
namespace {

struct Case {
  std::int64_t batch, tokens, width, state;
};

constexpr Case kCases[] = {{64, 82, 512, 16}, {64, 110, 2048, 16}, {64, 110, 2048, 64}, {8, 2048, 2048, 16}};

struct Inputs {
  Tensor u, delta, a_log, bc, skip, z, bias;

  Inputs(const Context& ctx, const Case& c)
      : u(random_tensor(ctx, {c.batch, c.tokens, c.width}, ctx.compute_dtype(), 1)),
        delta(random_tensor(ctx, u.shape(), u.dtype(), 2)),
        a_log(random_tensor(ctx, {c.width, c.state}, ctx.stream_dtype(), 3)),
        bc(random_tensor(ctx, {c.batch, c.tokens, 2 * c.state}, u.dtype(), 4)),
        skip(random_tensor(ctx, {c.width}, ctx.stream_dtype(), 5)),
        z(random_tensor(ctx, u.shape(), u.dtype(), 6)),
        bias(random_tensor(ctx, {c.width}, ctx.stream_dtype(), 7)) {}

  [[nodiscard]] SelectiveScanSource source() const {
    return {u.view(), delta.view(), a_log.view(), bc.view(), skip.view(), z.view(), bias.view(), 0, a_log.shape()[1],
            0,        true};
  }
  [[nodiscard]] double bytes() const { return bytes_of({u, delta, a_log, bc, skip, z, bias}); }
};

Tensor checkpoints_of(const Context& ctx, const Case& c) {
  return ctx.empty_run({c.batch, selective_scan_checkpoints(c.tokens), c.width, c.state}, ctx.stream_dtype(), "states");
}

double pairs(const Case& c) { return static_cast<double>(c.batch * c.tokens * c.width * c.state); }

Setup forward(Case c, bool training) {
  return [=](const Context& ctx) -> Work {
    const Inputs in(ctx, c);
    const Tensor y = ctx.empty_run(in.u.shape(), in.u.dtype(), "y");
    const Tensor states = training ? checkpoints_of(ctx, c) : Tensor();
    const auto run = [=](const Context& r) {
      selective_scan_forward(r, {in.source(), y.mutable_view(), training ? states.mutable_view() : View{}, {}});
    };
    return {run, in.bytes() + bytes_of({y, states}), 6 * pairs(c)};
  };
}

Setup backward(Case c) {
  return [=](const Context& ctx) -> Work {
    const Inputs in(ctx, c);
    const Tensor dy = random_tensor(ctx, in.u.shape(), in.u.dtype(), 8);
    const Tensor states = checkpoints_of(ctx, c);
    const Tensor y = ctx.empty_run(in.u.shape(), in.u.dtype(), "y");
    selective_scan_forward(ctx, {in.source(), y.mutable_view(), states.mutable_view(), {}});
    const std::int64_t block = selective_scan_channel_block(c.batch, c.width, c.state);
    const DType stream = ctx.stream_dtype();
    const Tensor partial_bc = ctx.empty_run({c.batch, c.tokens, (c.width + block - 1) / block, 2, c.state}, stream);
    const Tensor partial_a = ctx.empty_run({c.batch, c.width, c.state}, stream);
    const Tensor partial_channels = ctx.empty_run({c.batch, 2, c.width}, stream);
    const auto like = [&](const Tensor& tensor) { return ctx.empty_run(tensor.shape(), tensor.dtype(), "gradient"); };
    const Tensor du = like(in.u), ddelta = like(in.delta), da_log = like(in.a_log), dbc = like(in.bc), dz = like(in.z),
                 dskip = like(in.skip), dbias = like(in.bias);
    const auto target = [](const Tensor& tensor) { return GradTarget{tensor.mutable_view(), false}; };
    const auto run = [=](const Context& r) {
      selective_scan_backward(r, {in.source(), dy.view(), states.view(), partial_bc.mutable_view(),
                                  partial_a.mutable_view(), partial_channels.mutable_view(), target(du), target(ddelta),
                                  target(da_log), target(dbc), target(dbc), target(dz), target(dskip), target(dbias)});
    };
    return {run, in.bytes() + bytes_of({dy, states, du, ddelta, da_log, dbc, dz, dskip, dbias}), 21 * pairs(c)};
  };
}

const std::vector<Precision> kPrecisions = {Precision::Fp32, Precision::Bf16};

const bool registered = [] {
  for (const Case& c : kCases) {
    const std::string shape = fmt::format("B{}_T{}_D{}_N{}", c.batch, c.tokens, c.width, c.state);
    Add("selective_scan/forward/" + shape, kPrecisions, forward(c, false));
    Add("selective_scan/forward_training/" + shape, kPrecisions, forward(c, true));
    Add("selective_scan/backward/" + shape, kPrecisions, backward(c));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
