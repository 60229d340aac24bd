#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <vector>

#include "bench/support/bench.h"
#include "engine/stream.h"
#include "ops/advance_length.h"
#include "ops/decode_attention.h"
#include "ops/decode_conv1d.h"
#include "ops/decode_s4d.h"
#include "ops/decode_scan.h"

// One step of decoding, and prefills, of the ops that extend sequences.
//
// A step moves its state once: the keys and values of all tokens, or a scan's state in and out. That is its floor; at
// 3.35e12 bytes/s, in bfloat16:
//   attention       B64 H16 hd64 after 200 tokens   52 MB of keys and values     16 us
//   scan, ssd       B64 2048 channels of 16 states  17 MB of states in and out   5 us
//                                     of 64 states  67 MB                        20 us
//   s4d             B64 1024 channels of 8 modes    8 MB                         2.5 us
//   conv1d          B64 2048 channels               1.5 MB                       a launch
// A prefill walks through time in one thread (a convolution) or a few lanes (a scan): latency, about 100 ns a token for
// a scan, against which a batch of sequences hides nothing once it fits the machine at once. Attention's blocks read
// the keys once a query, from the L2 cache: B64 H16 200 tokens are 2.6 GB, 0.5 ms or so.

namespace graft::bench {
namespace {

const std::vector<Precision> kPrecisions = {Precision::Fp32, Precision::Bf16};

Tensor zeros(const Context& ctx, const Shape& shape, DType dtype) {
  Tensor result = ctx.empty_run(shape, dtype, "zeros");
  ctx.stream->zero(result.mutable_view().data, result.bytes());
  return result;
}

/// `tokens` tokens after `seen` others.
Setup attention(std::int64_t batch, int heads, int head_dim, std::int64_t seen, std::int64_t tokens) {
  return [=](const Context& ctx) -> Work {
    const auto layout = AttentionLayout::blocks(heads, head_dim);
    const DType dtype = ctx.compute_dtype();
    const Tensor qkv = random_tensor(ctx, {batch, tokens, 3 * layout.width()}, dtype, 1);
    const Tensor keys = random_tensor(ctx, {batch, heads, seen + tokens, head_dim}, dtype, 2);
    const Tensor values = random_tensor(ctx, keys.shape(), dtype, 3);
    const Tensor y = ctx.empty_run({batch, tokens, layout.width()}, dtype, "y");
    const Tensor length = zeros(ctx, {1}, DType::I32);
    advance_length(ctx, length, seen);
    const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
    const auto run = [=](const Context& r) {
      attention_extension(
          r, {qkv.view(), length.view(), keys.mutable_view(), values.mutable_view(), y.mutable_view(), layout, scale});
    };
    const double keys_seen = static_cast<double>(seen) + static_cast<double>(tokens + 1) / 2;  // by a query, on average
    const double pairs = static_cast<double>(batch * heads * tokens) * keys_seen;
    return {run, bytes_of({qkv, keys, values, y}), 4 * pairs * head_dim};
  };
}

/// Mamba's scan, or with head_dim > 1 that of Mamba-2 with one group.
Setup scan(std::int64_t batch, std::int64_t tokens, std::int64_t channels, std::int64_t states, std::int64_t head_dim) {
  return [=](const Context& ctx) -> Work {
    const DType dtype = ctx.compute_dtype(), stream = ctx.stream_dtype();
    const bool mamba = head_dim == 1;
    const std::int64_t heads = channels / head_dim;
    const Tensor x = random_tensor(ctx, {batch, tokens, channels}, dtype, 1);
    const Tensor dt = random_tensor(ctx, {batch, tokens, heads}, dtype, 2);
    const Tensor bc = random_tensor(ctx, {batch, tokens, 2 * states}, dtype, 3);
    const Tensor a_log = random_tensor(ctx, mamba ? Shape{channels, states} : Shape{heads}, stream, 4);
    const Tensor bias = random_tensor(ctx, {heads}, stream, 5);
    const Tensor skip = random_tensor(ctx, {heads}, stream, 6);
    const Tensor z = mamba ? random_tensor(ctx, {batch, tokens, channels}, dtype, 7) : Tensor();
    const Tensor state = zeros(ctx, {batch, channels, states}, stream);
    const Tensor y = ctx.empty_run({batch, tokens, channels}, dtype, "y");
    ScanExtension args;
    args.x = x.view();
    args.dt = dt.view();
    args.bc = bc.view();
    args.a_log = a_log.view();
    args.bias = bias.view();
    args.skip = skip.view();
    if (mamba) args.z = z.view();
    args.state = state.mutable_view();
    args.y = y.mutable_view();
    args.c_offset = states;
    args.head_dim = head_dim;
    args.group = channels;
    args.skip_share = head_dim;
    args.dt_max = std::numeric_limits<double>::infinity();
    const std::vector<Tensor> kept = {x, dt, bc, a_log, bias, skip, z, state, y};
    const auto run = [args, kept](const Context& r) { scan_extension(r, args); };
    const double bytes = bytes_of({x, dt, bc, a_log, bias, skip, state, state, y, z});
    return {run, bytes, 6 * static_cast<double>(batch * tokens * channels * states)};
  };
}

Setup s4d(std::int64_t batch, std::int64_t tokens, std::int64_t channels, int modes) {
  return [=](const Context& ctx) -> Work {
    const DType dtype = ctx.compute_dtype(), stream = ctx.stream_dtype();
    const S4dLayout layout{.batch = batch, .tokens = tokens, .channels = channels, .modes = modes};
    const Tensor u = random_tensor(ctx, {batch, tokens, channels}, dtype, 1);
    const Tensor c = random_tensor(ctx, {channels, modes, 2}, stream, 2);
    const Tensor log_dt = random_tensor(ctx, {channels}, stream, 3);
    const Tensor log_a_real = random_tensor(ctx, {channels, modes}, stream, 4);
    const Tensor a_imag = random_tensor(ctx, {channels, modes}, stream, 5);
    const Tensor skip = random_tensor(ctx, {channels}, stream, 6);
    const Tensor table = ctx.empty_run({modes, kS4dTableRows, channels}, stream, "modes");
    const Tensor state = zeros(ctx, {batch, channels, modes, 2}, stream);
    const Tensor y = ctx.empty_run(u.shape(), dtype, "y");
    const auto run = [=](const Context& r) {
      s4d_modes(r, {c.view(), log_dt.view(), log_a_real.view(), a_imag.view(), table.mutable_view(), layout});
      s4d_extension(r, {u.view(), table.view(), skip.view(), {}, state.mutable_view(), y.mutable_view(), layout});
    };
    const double bytes = bytes_of({u, c, log_dt, log_a_real, a_imag, skip, state, state, y});
    return {run, bytes, 12 * static_cast<double>(batch * tokens * channels * modes)};
  };
}

Setup conv1d(std::int64_t batch, std::int64_t tokens, std::int64_t channels) {
  return [=](const Context& ctx) -> Work {
    const DType dtype = ctx.compute_dtype();
    const Tensor x = random_tensor(ctx, {batch, tokens, 2 * channels}, dtype, 1);
    const Tensor weight = random_tensor(ctx, {channels, 4}, dtype, 2);
    const Tensor bias = random_tensor(ctx, {channels}, dtype, 3);
    const Tensor state = zeros(ctx, {batch, 3, channels}, dtype);
    const Tensor y = ctx.empty_run({batch, tokens, channels}, dtype, "y");
    const auto run = [=](const Context& r) {
      causal_conv1d_extension(r,
                              {x.view(), weight.view(), bias.view(), state.mutable_view(), y.mutable_view(), 0, true});
    };
    return {run, bytes_of({y, y, weight, bias, state, state}), 8 * static_cast<double>(y.elements())};
  };
}

const bool registered = [] {
  Add("decode/attention/B64_H16_hd64_after200_n1", kPrecisions, attention(64, 16, 64, 200, 1));
  Add("decode/attention/B1_H16_hd64_after4096_n1", kPrecisions, attention(1, 16, 64, 4096, 1));
  Add("decode/attention/B64_H16_hd64_n200", kPrecisions, attention(64, 16, 64, 0, 200));
  for (const std::int64_t states : {16, 64}) {
    for (const std::int64_t tokens : {1, 200}) {
      const std::string shape = fmt::format("B64_D2048_N{}_n{}", states, tokens);
      Add("decode/selective_scan/" + shape, kPrecisions, scan(64, tokens, 2048, states, 1));
      Add("decode/ssd/" + shape, kPrecisions, scan(64, tokens, 2048, states, 64));
    }
  }
  for (const std::int64_t tokens : {1, 200}) {
    Add(fmt::format("decode/s4d/B64_H1024_M8_n{}", tokens), kPrecisions, s4d(64, tokens, 1024, 8));
    Add(fmt::format("decode/causal_conv1d/B64_C2048_n{}", tokens), kPrecisions, conv1d(64, tokens, 2048));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
