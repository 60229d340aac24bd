#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"
#include "ops/selective_scan.h"

namespace graft {
namespace {

template <class A>
A sigmoid(A v) {
  return A{1} / (A{1} + std::exp(-v));
}

template <class A>
A softplus(A v) {
  return v > A{20} ? v : std::log1p(std::exp(v));
}

/// One sequence and one block of channels: the rows it reads, step by step. Arrays over channels have `count`
/// elements, those over states `state`.
template <class A>
class ChannelBlock {
 public:
  ChannelBlock(const SelectiveScanSource& in, std::int64_t index)
      : in_(in),
        tokens_(in.u.shape[1]),
        width_(in.u.shape[2]),
        state_(in.a_log.shape[1]),
        block_(selective_scan_channel_block(in.u.shape[0], width_, state_)),
        blocks_(ceil_div(width_, block_)),
        batch_(index / blocks_),
        channel_block_(index % blocks_),
        first_(channel_block_ * block_),
        count_(std::min(block_, width_ - first_)),
        decay_(elements(count_ * state_)),
        skip_(elements(count_), A{0}),
        bias_(elements(count_), A{0}) {
    load_row(in.a_log, first_ * state_, count_ * state_, decay_.data());
    for (A& a : decay_) a = -std::exp(a);
    if (in.skip) load_row(in.skip, first_, count_, skip_.data());
    if (in.delta_bias) load_row(in.delta_bias, first_, count_, bias_.data());
  }

  static std::int64_t number(const SelectiveScanSource& in) {
    return in.u.shape[0] *
           ceil_div(in.u.shape[2], selective_scan_channel_block(in.u.shape[0], in.u.shape[2], in.a_log.shape[1]));
  }
  static std::size_t elements(std::int64_t n) { return static_cast<std::size_t>(n); }

  [[nodiscard]] std::int64_t row(std::int64_t t) const { return batch_ * tokens_ + t; }
  /// Where the channels of step t start in a [B, T, D] tensor.
  [[nodiscard]] std::int64_t at(std::int64_t t) const { return row(t) * width_ + first_; }
  [[nodiscard]] std::int64_t gate_at(std::int64_t t) const { return row(t) * in_.z.shape[2] + in_.z_offset + first_; }
  /// Where the states of checkpoint k start.
  [[nodiscard]] std::int64_t checkpoint_at(std::int64_t k) const {
    return ((batch_ * selective_scan_checkpoints(tokens_) + k) * width_ + first_) * state_;
  }

  void load_b(std::int64_t t, A* b) const { load_row(in_.bc, row(t) * in_.bc.shape[2] + in_.b_offset, state_, b); }
  void load_c(std::int64_t t, A* c) const { load_row(in_.bc, row(t) * in_.bc.shape[2] + in_.c_offset, state_, c); }
  /// delta with its bias, and the step size that comes of it.
  void load_step(std::int64_t t, A* raw, A* dt) const {
    load_row(in_.delta, at(t), count_, raw);
    for (std::int64_t c = 0; c < count_; ++c) {
      raw[c] += bias_[elements(c)];
      dt[c] = in_.softplus ? softplus(raw[c]) : raw[c];
    }
  }

  const SelectiveScanSource& in_;
  std::int64_t tokens_, width_, state_, block_, blocks_, batch_, channel_block_, first_, count_;
  std::vector<A> decay_;        // [count, N]: A
  std::vector<A> skip_, bias_;  // [count]
};

template <class A>
void forward_block(const SelectiveScanForward& args, std::int64_t index) {
  const ChannelBlock<A> block(args.in, index);
  const auto channels = static_cast<std::size_t>(block.count_);
  const auto states = static_cast<std::size_t>(block.state_);
  std::vector<A> h(channels * states, A{0}), u(channels), raw(channels), dt(channels), y(channels), z(channels);
  std::vector<A> b(states), c(states);
  for (std::int64_t t = 0; t < block.tokens_; ++t) {
    if (args.checkpoints && t > 0 && t % kSelectiveScanTile == 0) {
      store_row(args.checkpoints, block.checkpoint_at(t / kSelectiveScanTile - 1), block.count_ * block.state_,
                h.data());
    }
    load_row(args.in.u, block.at(t), block.count_, u.data());
    block.load_step(t, raw.data(), dt.data());
    block.load_b(t, b.data());
    block.load_c(t, c.data());
    for (std::size_t i = 0; i < channels; ++i) {
      A* const state = h.data() + i * states;
      const A* const decay = block.decay_.data() + i * states;
      A sum{0};
      for (std::size_t n = 0; n < states; ++n) {
        state[n] = std::exp(dt[i] * decay[n]) * state[n] + dt[i] * u[i] * b[n];
        sum += c[n] * state[n];
      }
      y[i] = sum + block.skip_[i] * u[i];
    }
    if (args.in.z) {
      load_row(args.in.z, block.gate_at(t), block.count_, z.data());
      for (std::size_t i = 0; i < channels; ++i) y[i] *= z[i] * sigmoid(z[i]);
    }
    store_row(args.y, block.at(t), block.count_, y.data());
  }
  if (args.final_state) {
    store_row(args.final_state, (block.batch_ * block.width_ + block.first_) * block.state_,
              block.count_ * block.state_, h.data());
  }
}

/// Walks the tiles from the last to the first; the states of a tile are recomputed from its checkpoint.
template <class A>
void backward_block(const SelectiveScanBackward& args, std::int64_t index) {
  const ChannelBlock<A> block(args.in, index);
  const auto channels = static_cast<std::size_t>(block.count_);
  const auto states = static_cast<std::size_t>(block.state_);
  const std::size_t pairs = channels * states;
  std::vector<A> history(static_cast<std::size_t>(kSelectiveScanTile) * pairs);  // the state before each step
  std::vector<A> h(pairs), g(pairs, A{0}), da(pairs, A{0});  // g: gradient of the state, decayed to the step before
  std::vector<A> u(channels), raw(channels), dt(channels), z(channels), dy(channels), du(channels), draw(channels);
  std::vector<A> dz(channels), dskip(channels, A{0}), dbias(channels, A{0});
  std::vector<A> b(states), c(states), dbc(2 * states);

  for (std::int64_t tile = (block.tokens_ - 1) / kSelectiveScanTile; tile >= 0; --tile) {
    const std::int64_t start = tile * kSelectiveScanTile;
    const std::int64_t end = std::min(block.tokens_, start + kSelectiveScanTile);
    if (tile == 0) {
      std::fill(h.begin(), h.end(), A{0});
    } else {
      load_row(args.checkpoints, block.checkpoint_at(tile - 1), block.count_ * block.state_, h.data());
    }
    for (std::int64_t t = start; t < end; ++t) {
      std::copy(h.begin(), h.end(), history.begin() + (t - start) * static_cast<std::int64_t>(pairs));
      if (t + 1 == end) break;
      load_row(args.in.u, block.at(t), block.count_, u.data());
      block.load_step(t, raw.data(), dt.data());
      block.load_b(t, b.data());
      for (std::size_t i = 0; i < channels; ++i) {
        for (std::size_t n = 0; n < states; ++n) {
          A& state = h[i * states + n];
          state = std::exp(dt[i] * block.decay_[i * states + n]) * state + dt[i] * u[i] * b[n];
        }
      }
    }

    for (std::int64_t t = end - 1; t >= start; --t) {
      const A* const before = history.data() + static_cast<std::size_t>(t - start) * pairs;
      load_row(args.in.u, block.at(t), block.count_, u.data());
      load_row(args.dy, block.at(t), block.count_, dy.data());
      if (args.in.z) load_row(args.in.z, block.gate_at(t), block.count_, z.data());
      block.load_step(t, raw.data(), dt.data());
      block.load_b(t, b.data());
      block.load_c(t, c.data());
      std::fill(dbc.begin(), dbc.end(), A{0});
      for (std::size_t i = 0; i < channels; ++i) {
        const A dout = dy[i];
        const A gate = args.in.z ? sigmoid(z[i]) : A{1};
        if (args.in.z) dy[i] *= z[i] * gate;
        A y = block.skip_[i] * u[i];
        A gb{0}, age{0};  // sums over states of g B and of A g e
        for (std::size_t n = 0; n < states; ++n) {
          const std::size_t k = i * states + n;
          const A decay = std::exp(dt[i] * block.decay_[k]);
          const A kept = decay * before[k];  // e: what is left of the state before
          const A state = kept + dt[i] * u[i] * b[n];
          const A gradient = dy[i] * c[n] + g[k];
          y += c[n] * state;
          dbc[n] += gradient * dt[i] * u[i];
          dbc[states + n] += dy[i] * state;
          gb += gradient * b[n];
          age += block.decay_[k] * gradient * kept;
          da[k] += dt[i] * gradient * kept;
          g[k] = decay * gradient;
        }
        du[i] = block.skip_[i] * dy[i] + dt[i] * gb;
        draw[i] = u[i] * gb + age;
        if (args.in.softplus && raw[i] <= A{20}) draw[i] *= sigmoid(raw[i]);
        if (args.in.z) dz[i] = dout * y * gate * (A{1} + z[i] * (A{1} - gate));
        dskip[i] += dy[i] * u[i];
        dbias[i] += draw[i];
      }
      store_gradient(args.du, block.at(t), block.count_, du.data());
      store_gradient(args.ddelta, block.at(t), block.count_, draw.data());
      if (args.dz) store_gradient(args.dz, block.gate_at(t), block.count_, dz.data());
      store_row(args.partial_bc, (block.row(t) * block.blocks_ + block.channel_block_) * 2 * block.state_,
                2 * block.state_, dbc.data());
    }
  }
  for (std::size_t k = 0; k < pairs; ++k) da[k] *= block.decay_[k];  // dA/da_log = A
  store_row(args.partial_a, (block.batch_ * block.width_ + block.first_) * block.state_, block.count_ * block.state_,
            da.data());
  store_row(args.partial_channels, block.batch_ * 2 * block.width_ + block.first_, block.count_, dskip.data());
  store_row(args.partial_channels, (block.batch_ * 2 + 1) * block.width_ + block.first_, block.count_, dbias.data());
}

/// Adds `count` rows of `columns` elements that start `stride` apart, in order, and hands the sum to `target`.
template <class A>
void sum_rows(const View& from, std::int64_t offset, std::int64_t count, std::int64_t stride, std::int64_t columns,
              const GradTarget& target, std::int64_t to) {
  if (!target) return;
  std::vector<A> sum(static_cast<std::size_t>(columns), A{0});
  for (std::int64_t k = 0; k < count; ++k) {
    const A* const row = from.as<A>() + offset + k * stride;
    for (std::int64_t i = 0; i < columns; ++i) sum[static_cast<std::size_t>(i)] += row[i];
  }
  store_gradient(target, to, columns, sum.data());
}

void forward_cpu(Stream& stream, const SelectiveScanForward& args) {
  with_accumulate(args.y.dtype, [&](auto accumulate) {
    using A = decltype(accumulate);
    parallel_blocks(stream, ChannelBlock<A>::number(args.in),
                    [&](std::int64_t index) { forward_block<A>(args, index); });
  });
}

void backward_cpu(Stream& stream, const SelectiveScanBackward& args) {
  const std::int64_t batch = args.in.u.shape[0], tokens = args.in.u.shape[1], width = args.in.u.shape[2];
  const std::int64_t state = args.in.a_log.shape[1];
  const std::int64_t blocks = args.partial_bc.shape[2];
  const std::int64_t row = args.in.bc.shape[2];
  with_accumulate(args.in.u.dtype, [&](auto accumulate) {
    using A = decltype(accumulate);
    parallel_blocks(stream, ChannelBlock<A>::number(args.in),
                    [&](std::int64_t index) { backward_block<A>(args, index); });
    parallel_for(stream, batch * tokens, 64, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t from = i * blocks * 2 * state;
        sum_rows<A>(args.partial_bc, from, blocks, 2 * state, state, args.db, i * row + args.in.b_offset);
        sum_rows<A>(args.partial_bc, from + state, blocks, 2 * state, state, args.dc, i * row + args.in.c_offset);
      }
    });
    sum_rows<A>(args.partial_a, 0, batch, width * state, width * state, args.da_log, 0);
    sum_rows<A>(args.partial_channels, 0, batch, 2 * width, width, args.dskip, 0);
    sum_rows<A>(args.partial_channels, width, batch, 2 * width, width, args.dbias, 0);
  });
}

const Register forward{selective_scan_forward, Backend::Cpu, forward_cpu};
const Register backward{selective_scan_backward, Backend::Cpu, backward_cpu};

}  // namespace
}  // namespace graft
