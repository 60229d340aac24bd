#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/exponential_formula.h"
#include "ops/rows_cpu.h"
#include "ops/selective_scan.h"
#include "ops/softplus_formula.h"

namespace graft {
namespace {

/// One sequence and one block of channels: the rows it reads, step by step. Arrays over channels have `count`
/// elements, those over states `state`, and those over both are [state, count] here, [count, state] in tensors: loops
/// then run over channels, which do not wait for each other.
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
    load_states(in.a_log, first_ * state_, decay_.data());
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

  /// [count, state] of a view, turned around.
  void load_states(const ConstView& view, std::int64_t offset, A* states) const {
    std::vector<A> stored(elements(count_ * state_));
    load_row(view, offset, count_ * state_, stored.data());
    for (std::int64_t c = 0; c < count_; ++c) {
      for (std::int64_t n = 0; n < state_; ++n) states[n * count_ + c] = stored[elements(c * state_ + n)];
    }
  }
  void store_states(const View& view, std::int64_t offset, const A* states) const {
    std::vector<A> stored(elements(count_ * state_));
    for (std::int64_t c = 0; c < count_; ++c) {
      for (std::int64_t n = 0; n < state_; ++n) stored[elements(c * state_ + n)] = states[n * count_ + c];
    }
    store_row(view, offset, count_ * state_, stored.data());
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

  /// One step: states = factors states + dt u B with factors = exp(dt A). States of before and factors are kept where
  /// asked for, and y gets sum over states of C times the new ones.
  struct Step {
    const A *dt, *dtu, *b;  // [count], [count], [state]
    const A* c;             // [state], or null: no y
    A* states;              // [state, count]
    A* before;              // [state, count], or null
    A* factors;             // likewise
    A* y;                   // [count], added to
  };
  template <bool kOutput, bool kHistory>
  void advance(const Step& step) const {
    const A* __restrict__ const dt = step.dt;
    const A* __restrict__ const dtu = step.dtu;
    A* __restrict__ const y = step.y;
    for (std::int64_t n = 0; n < state_; ++n) {
      const A* __restrict__ const decay = decay_.data() + n * count_;
      A* __restrict__ const state = step.states + n * count_;
      A* __restrict__ const before = kHistory ? step.before + n * count_ : nullptr;
      A* __restrict__ const factors = kHistory ? step.factors + n * count_ : nullptr;
      const A b = step.b[n], c = kOutput ? step.c[n] : A{0};
      for (std::int64_t i = 0; i < count_; ++i) {
        const A factor = exponential(dt[i] * decay[i]);
        if constexpr (kHistory) {
          before[i] = state[i];
          factors[i] = factor;
        }
        const A next = factor * state[i] + dtu[i] * b;
        state[i] = next;
        if constexpr (kOutput) y[i] += c * next;
      }
    }
  }

  const SelectiveScanSource& in_;
  std::int64_t tokens_, width_, state_, block_, blocks_, batch_, channel_block_, first_, count_;
  std::vector<A> decay_;        // [state, count]: A
  std::vector<A> skip_, bias_;  // [count]
};

template <class A>
void forward_block(const SelectiveScanForward& args, std::int64_t index) {
  const ChannelBlock<A> block(args.in, index);
  const auto channels = static_cast<std::size_t>(block.count_);
  const auto states = static_cast<std::size_t>(block.state_);
  std::vector<A> h(states * channels, A{0});
  std::vector<A> u(channels), raw(channels), dt(channels), dtu(channels), y(channels), z(channels);
  std::vector<A> b(states), c(states);
  for (std::int64_t t = 0; t < block.tokens_; ++t) {
    if (args.checkpoints && t > 0 && t % kSelectiveScanTile == 0) {
      block.store_states(args.checkpoints, block.checkpoint_at(t / kSelectiveScanTile - 1), h.data());
    }
    load_row(args.in.u, block.at(t), block.count_, u.data());
    block.load_step(t, raw.data(), dt.data());
    block.load_b(t, b.data());
    block.load_c(t, c.data());
    for (std::size_t i = 0; i < channels; ++i) dtu[i] = dt[i] * u[i];
    std::fill(y.begin(), y.end(), A{0});
    block.template advance<true, false>(
        {.dt = dt.data(), .dtu = dtu.data(), .b = b.data(), .c = c.data(), .states = h.data(), .y = y.data()});
    for (std::size_t i = 0; i < channels; ++i) y[i] += block.skip_[i] * u[i];
    if (args.in.z) {
      load_row(args.in.z, block.gate_at(t), block.count_, z.data());
      for (std::size_t i = 0; i < channels; ++i) y[i] *= z[i] * sigmoid(z[i]);
    }
    store_row(args.y, block.at(t), block.count_, y.data());
  }
  if (args.final_state) {
    block.store_states(args.final_state, (block.batch_ * block.width_ + block.first_) * block.state_, h.data());
  }
}

/// What one state of every channel of a block has to do with the gradients at one step.
template <class A>
struct StateStep {
  std::int64_t channels;
  A b, c;
  const A *dt, *dtu, *dy;            // [channels]; dy with the gate
  const A *decay, *factor, *before;  // [channels] of this state: A, exp(dt A), the state before the step
  A *y, *gb, *age;                   // [channels], added to: the output, sums over states of g B and of A g e
  A *da, *g;                         // [channels] of this state: sum over steps; gradient, decayed to the step before
  A *for_b, *for_c;                  // [channels]: summands of the gradients of B and C
};

template <class A>
void backward_state(const StateStep<A>& step) {
  // Locals, so that the compiler sees that no pointer changes in the loop.
  const A b = step.b, c = step.c;
  const A* __restrict__ const dt = step.dt;
  const A* __restrict__ const dtu = step.dtu;
  const A* __restrict__ const dy = step.dy;
  const A* __restrict__ const decay = step.decay;
  const A* __restrict__ const factor = step.factor;
  const A* __restrict__ const before = step.before;
  A* __restrict__ const y = step.y;
  A* __restrict__ const gb = step.gb;
  A* __restrict__ const age = step.age;
  A* __restrict__ const da = step.da;
  A* __restrict__ const g = step.g;
  A* __restrict__ const for_b = step.for_b;
  A* __restrict__ const for_c = step.for_c;
  for (std::int64_t i = 0; i < step.channels; ++i) {
    const A kept = factor[i] * before[i];  // e: what is left of the state before
    const A state = kept + dtu[i] * b;
    const A gradient = dy[i] * c + g[i];
    y[i] += c * state;
    for_b[i] = gradient * dtu[i];
    for_c[i] = dy[i] * state;
    gb[i] += gradient * b;
    age[i] += decay[i] * gradient * kept;
    da[i] += dt[i] * gradient * kept;
    g[i] = factor[i] * gradient;
  }
}

/// Walks the tiles from the last to the first; the states of a tile are recomputed from its checkpoint.
template <class A>
void backward_block(const SelectiveScanBackward& args, std::int64_t index) {
  const ChannelBlock<A> block(args.in, index);
  const auto channels = static_cast<std::size_t>(block.count_);
  const auto states = static_cast<std::size_t>(block.state_);
  const std::size_t pairs = channels * states;
  const std::size_t tile_pairs = static_cast<std::size_t>(std::min(kSelectiveScanTile, block.tokens_)) * pairs;
  std::vector<A> history(tile_pairs), factors(tile_pairs);   // of each step: the state before it, exp(dt A)
  std::vector<A> h(pairs), g(pairs, A{0}), da(pairs, A{0});  // g: gradient of the state, decayed to the step before
  std::vector<A> u(channels), raw(channels), dt(channels), dtu(channels), z(channels), dy(channels), du(channels);
  std::vector<A> y(channels), gb(channels), age(channels), for_b(channels), for_c(channels);
  std::vector<A> draw(channels), dz(channels), dskip(channels, A{0}), dbias(channels, A{0});
  std::vector<A> b(states), c(states), dbc(2 * states);

  for (std::int64_t tile = (block.tokens_ - 1) / kSelectiveScanTile; tile >= 0; --tile) {
    const std::int64_t start = tile * kSelectiveScanTile;
    const std::int64_t end = std::min(block.tokens_, start + kSelectiveScanTile);
    if (tile == 0) {
      std::fill(h.begin(), h.end(), A{0});
    } else {
      block.load_states(args.checkpoints, block.checkpoint_at(tile - 1), h.data());
    }
    for (std::int64_t t = start; t < end; ++t) {
      const std::size_t here = static_cast<std::size_t>(t - start) * pairs;
      load_row(args.in.u, block.at(t), block.count_, u.data());
      block.load_step(t, raw.data(), dt.data());
      block.load_b(t, b.data());
      for (std::size_t i = 0; i < channels; ++i) dtu[i] = dt[i] * u[i];
      block.template advance<false, true>({.dt = dt.data(),
                                           .dtu = dtu.data(),
                                           .b = b.data(),
                                           .states = h.data(),
                                           .before = history.data() + here,
                                           .factors = factors.data() + here});
    }

    for (std::int64_t t = end - 1; t >= start; --t) {
      const std::size_t here = static_cast<std::size_t>(t - start) * pairs;
      load_row(args.in.u, block.at(t), block.count_, u.data());
      load_row(args.dy, block.at(t), block.count_, dy.data());
      if (args.in.z) load_row(args.in.z, block.gate_at(t), block.count_, z.data());
      block.load_step(t, raw.data(), dt.data());
      block.load_b(t, b.data());
      block.load_c(t, c.data());
      for (std::size_t i = 0; i < channels; ++i) {
        // Until the gradient of z has been taken, dz is dy without the gate.
        dz[i] = dy[i];
        if (args.in.z) dy[i] *= z[i] * sigmoid(z[i]);
        dtu[i] = dt[i] * u[i];
        y[i] = block.skip_[i] * u[i];
        gb[i] = age[i] = A{0};
      }
      for (std::size_t n = 0; n < states; ++n) {
        const std::size_t k = n * channels;
        backward_state<A>({.channels = block.count_,
                           .b = b[n],
                           .c = c[n],
                           .dt = dt.data(),
                           .dtu = dtu.data(),
                           .dy = dy.data(),
                           .decay = block.decay_.data() + k,
                           .factor = factors.data() + here + k,
                           .before = history.data() + here + k,
                           .y = y.data(),
                           .gb = gb.data(),
                           .age = age.data(),
                           .da = da.data() + k,
                           .g = g.data() + k,
                           .for_b = for_b.data(),
                           .for_c = for_c.data()});
        dbc[n] = interleaved_sum<A>(block.count_, [&](std::int64_t i) { return for_b[static_cast<std::size_t>(i)]; });
        dbc[states + n] =
            interleaved_sum<A>(block.count_, [&](std::int64_t i) { return for_c[static_cast<std::size_t>(i)]; });
      }
      for (std::size_t i = 0; i < channels; ++i) {
        du[i] = block.skip_[i] * dy[i] + dt[i] * gb[i];
        draw[i] = u[i] * gb[i] + age[i];
        if (args.in.softplus) draw[i] *= softplus_slope(raw[i]);
        if (args.in.z) dz[i] *= y[i] * silu_slope(z[i]);
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
  block.store_states(args.partial_a, (block.batch_ * block.width_ + block.first_) * block.state_, da.data());
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
