#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"
#include "ops/silu_formula.h"
#include "ops/softplus_formula.h"
#include "ops/ssd.h"

// The recurrence, step by step: with at most 256 states it costs no more arithmetic than the pairs of a chunk, and it
// shares no formula with the CUDA kernels it checks. The channels of a head are independent of each other, so each is
// walked through a whole chunk on its own: its states at all steps of the chunk lie in the nearest cache.

namespace graft {
namespace {

std::size_t elements(std::int64_t n) { return static_cast<std::size_t>(n); }

/// One sequence's steps of one chunk, as numbers of type A. Arrays over steps have `count` rows.
template <class A>
class Chunk {
 public:
  Chunk(const SsdSource& in, std::int64_t batch)
      : in_(in),
        tokens_(in.xbc.shape[1]),
        batch_(batch),
        steps_(std::min(kSsdChunk, tokens_)),
        b(elements(steps_ * in.state)),
        c(b.size()),
        raw(elements(steps_)),
        dt(elements(steps_)),
        decay(elements(steps_)),
        x(elements(steps_ * in.head_dim)),
        z(in.z ? x.size() : 0),
        skip(elements(in.head_dim), A{0}) {}

  void select(std::int64_t chunk) {
    first = chunk * kSsdChunk;
    count = std::min(kSsdChunk, tokens_ - first);
  }

  /// B and C of a group.
  void load_group(std::int64_t group) {
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t at = row(t) * in_.xbc.shape[2] + group * in_.state;
      load_row(in_.xbc, at + in_.b_offset, in_.state, b.data() + t * in_.state);
      load_row(in_.xbc, at + in_.c_offset, in_.state, c.data() + t * in_.state);
    }
  }

  /// x, z, step sizes and what comes of them.
  void load_head(std::int64_t head) {
    a = -std::exp(load_element<A>(in_.a_log, head));
    const A bias = in_.dt_bias ? load_element<A>(in_.dt_bias, head) : A{0};
    const auto least = static_cast<A>(in_.dt_min), most = static_cast<A>(in_.dt_max);
    for (std::int64_t t = 0; t < count; ++t) {
      const std::size_t i = elements(t);
      raw[i] = load_element<A>(in_.dt, row(t) * in_.dt.shape[2] + in_.dt_offset + head) + bias;
      dt[i] = clamped(softplus(raw[i]), least, most);
      decay[i] = std::exp(dt[i] * a);
      load_row(in_.xbc, x_at(t, head), in_.head_dim, x.data() + t * in_.head_dim);
      if (in_.z) load_row(in_.z, z_at(t, head), in_.head_dim, z.data() + t * in_.head_dim);
    }
    if (!in_.skip) return;
    if (in_.skip.shape.rank() == 2) {
      load_row(in_.skip, head * in_.head_dim, in_.head_dim, skip.data());
    } else {
      std::fill(skip.begin(), skip.end(), load_element<A>(in_.skip, head));
    }
  }

  /// d dt / d raw: zero where the step size was clamped.
  [[nodiscard]] A step_slope(std::int64_t t) const {
    const A raw_step = raw[elements(t)], step = softplus(raw_step);
    if (step < static_cast<A>(in_.dt_min) || step > static_cast<A>(in_.dt_max)) return A{0};
    return softplus_slope(raw_step);
  }

  [[nodiscard]] std::int64_t row(std::int64_t t) const { return batch_ * tokens_ + first + t; }
  [[nodiscard]] std::int64_t x_at(std::int64_t t, std::int64_t head) const {
    return row(t) * in_.xbc.shape[2] + in_.x_offset + head * in_.head_dim;
  }
  [[nodiscard]] std::int64_t z_at(std::int64_t t, std::int64_t head) const {
    return row(t) * in_.z.shape[2] + in_.z_offset + head * in_.head_dim;
  }
  /// Where a head's channels start in a [B, T, H P] tensor.
  [[nodiscard]] std::int64_t y_at(std::int64_t t, std::int64_t head) const {
    return (row(t) * in_.heads + head) * in_.head_dim;
  }
  /// Where a head's states start in a [B, H, P, N] tensor, and in the tensor of states before chunks.
  [[nodiscard]] std::int64_t state_at(std::int64_t head) const {
    return (batch_ * in_.heads + head) * in_.head_dim * in_.state;
  }
  [[nodiscard]] std::int64_t chunk_state_at(std::int64_t head) const {
    return ((batch_ * ssd_chunks(tokens_) + first / kSsdChunk) * in_.heads + head) * in_.head_dim * in_.state;
  }

 private:
  const SsdSource& in_;
  std::int64_t tokens_, batch_, steps_;

 public:
  std::int64_t first = 0, count = 0;  // steps of the chunk
  std::vector<A> b, c;                // [count, N]
  A a{0};                             // A of the head
  std::vector<A> raw, dt, decay;      // [count]: before softplus, step size, exp(dt A)
  std::vector<A> x, z;                // [count, P]
  std::vector<A> skip;                // [P]
};

/// out = decay * before + input * b, all of N states.
template <class A>
void advance(A* out, const A* before, A decay, A input, const A* b, std::int64_t state) {
  for (std::int64_t n = 0; n < state; ++n) out[n] = decay * before[n] + input * b[n];
}

template <class A>
A dot(const A* u, const A* v, std::int64_t n) {
  return interleaved_sum<A>(n, [=](std::int64_t i) { return u[i] * v[i]; });
}

template <class A>
void forward_head(const SsdForward& args, std::int64_t batch, std::int64_t head) {
  const SsdSource& in = args.in;
  const std::int64_t size = in.head_dim, state = in.state;
  Chunk<A> chunk(in, batch);
  std::vector<A> states(elements(size * state), A{0});  // [P, N]
  std::vector<A> y(chunk.x.size());                     // [count, P]
  if (in.initial) load_row(in.initial, chunk.state_at(head), size * state, states.data());
  for (std::int64_t k = 0; k < ssd_chunks(in.xbc.shape[1]); ++k) {
    chunk.select(k);
    chunk.load_group(head / (in.heads / in.groups));
    chunk.load_head(head);
    if (args.states) store_row(args.states, chunk.chunk_state_at(head), size * state, states.data());
    for (std::int64_t p = 0; p < size; ++p) {
      A* const h = states.data() + p * state;
      for (std::int64_t t = 0; t < chunk.count; ++t) {
        const A x = chunk.x[elements(t * size + p)];
        advance(h, h, chunk.decay[elements(t)], chunk.dt[elements(t)] * x, chunk.b.data() + t * state, state);
        y[elements(t * size + p)] = dot(h, chunk.c.data() + t * state, state) + chunk.skip[elements(p)] * x;
      }
    }
    if (in.z) {
      for (std::size_t i = 0; i < elements(chunk.count * size); ++i) y[i] *= silu(chunk.z[i]);
    }
    for (std::int64_t t = 0; t < chunk.count; ++t) {
      store_row(args.y, chunk.y_at(t, head), size, y.data() + t * size);
    }
  }
  if (args.final_state) store_row(args.final_state, chunk.state_at(head), size * state, states.data());
}

/// The heads of one head block in one sequence, chunks from the last to the first.
template <class A>
class BackwardBlock {
 public:
  BackwardBlock(const SsdBackward& args, std::int64_t index)
      : args_(args),
        in_(args.in),
        heads_(ssd_head_block(in_.heads, in_.groups)),
        blocks_(in_.heads / heads_),
        batch_(index / blocks_),
        block_(index % blocks_),
        chunk_(in_, batch_),
        states_(elements(in_.head_dim * in_.state), A{0}),
        dstates_(elements(heads_ * in_.head_dim * in_.state), A{0}),
        history_(chunk_.b.size() + elements(in_.state)),
        g_(elements(in_.state)),
        dbc_(2 * chunk_.b.size()),
        dy_(chunk_.x.size(), A{0}),
        dx_(chunk_.x.size()),
        dz_(chunk_.z.size()),
        input_(chunk_.dt.size()),
        aged_(chunk_.dt.size()),
        draw_(elements(heads_) * chunk_.dt.size()),
        dskip_(elements(in_.head_dim)) {}

  void run() {
    const std::int64_t first_head = block_ * heads_, chunks = ssd_chunks(in_.xbc.shape[1]);
    const std::int64_t size = in_.head_dim * in_.state;
    if (args_.dfinal) load_row(args_.dfinal, chunk_.state_at(first_head), heads_ * size, dstates_.data());
    for (std::int64_t k = chunks - 1; k >= 0; --k) {
      chunk_.select(k);
      chunk_.load_group(first_head / (in_.heads / in_.groups));
      std::fill(dbc_.begin(), dbc_.end(), A{0});
      for (std::int64_t i = 0; i < heads_; ++i) run_head(k, first_head + i, dstates_.data() + i * size, i);
      for (std::int64_t t = 0; t < chunk_.count; ++t) {
        store_row(args_.partial_bc, (chunk_.row(t) * blocks_ + block_) * 2 * in_.state, 2 * in_.state,
                  dbc_.data() + t * 2 * in_.state);
        store_gradient(args_.ddt, chunk_.row(t) * in_.dt.shape[2] + in_.dt_offset + first_head, heads_,
                       draw_.data() + t * heads_);
      }
    }
    store_gradient(args_.dinitial, chunk_.state_at(first_head), heads_ * size, dstates_.data());
  }

 private:
  /// `dstates` [P, N]: the gradient of the states after the chunk, and on return of those before it.
  void run_head(std::int64_t k, std::int64_t head, A* dstates, std::int64_t column) {
    const std::int64_t size = in_.head_dim;
    chunk_.load_head(head);
    if (args_.states) {
      load_row(args_.states, chunk_.chunk_state_at(head), size * in_.state, states_.data());
    } else if (in_.initial) {
      load_row(in_.initial, chunk_.state_at(head), size * in_.state, states_.data());
    }
    if (args_.dy) {
      for (std::int64_t t = 0; t < chunk_.count; ++t) {
        load_row(args_.dy, chunk_.y_at(t, head), size, dy_.data() + t * size);
      }
    }
    std::fill(input_.begin(), input_.end(), A{0});
    std::fill(aged_.begin(), aged_.end(), A{0});
    for (std::int64_t p = 0; p < size; ++p) run_channel(p, dstates + p * in_.state);

    A da{0}, dbias{0};
    for (std::int64_t t = 0; t < chunk_.count; ++t) {
      const std::size_t i = elements(t);
      const A dlog_decay = chunk_.decay[i] * aged_[i];  // of dt A
      const A draw = (input_[i] + chunk_.a * dlog_decay) * chunk_.step_slope(t);
      da += chunk_.dt[i] * dlog_decay;
      dbias += draw;
      draw_[elements(t * heads_ + column)] = draw;
      store_gradient(args_.dx, chunk_.x_at(t, head), size, dx_.data() + t * size);
      if (args_.dz) store_gradient(args_.dz, chunk_.z_at(t, head), size, dz_.data() + t * size);
    }
    const std::int64_t part = batch_ * ssd_chunks(in_.xbc.shape[1]) + k;
    store_row(args_.partial_heads, 2 * part * in_.heads + head, 1, &da);
    store_row(args_.partial_heads, (2 * part + 1) * in_.heads + head, 1, &dbias);
    if (args_.partial_skip) store_row(args_.partial_skip, (part * in_.heads + head) * size, size, dskip_.data());
  }

  /// One channel through the chunk: forward again, keeping the states, then back.
  void run_channel(std::int64_t p, A* dstate) {
    const std::int64_t size = in_.head_dim, state = in_.state;
    const A skip = chunk_.skip[elements(p)];
    std::copy_n(states_.data() + p * state, state, history_.data());
    for (std::int64_t t = 0; t < chunk_.count; ++t) {
      const A* const before = history_.data() + t * state;
      const std::size_t i = elements(t * size + p);
      advance(history_.data() + (t + 1) * state, before, chunk_.decay[elements(t)],
              chunk_.dt[elements(t)] * chunk_.x[i], chunk_.b.data() + t * state, state);
      if (!in_.z) continue;
      const A y = dot(before + state, chunk_.c.data() + t * state, state) + skip * chunk_.x[i];
      const A gate = sigmoid(chunk_.z[i]);
      dz_[i] = dy_[i] * y * silu_slope(chunk_.z[i], gate);
      dy_[i] *= chunk_.z[i] * gate;
    }
    A dskip{0};
    for (std::int64_t t = chunk_.count - 1; t >= 0; --t) {
      const std::size_t i = elements(t * size + p);
      const A* const before = history_.data() + t * state;
      const A* const after = before + state;
      const A* const b = chunk_.b.data() + t * state;
      const A* const c = chunk_.c.data() + t * state;
      A* const db = dbc_.data() + t * 2 * state;
      A* const dc = db + state;
      const A dy = dy_[i], x = chunk_.x[i], dt = chunk_.dt[elements(t)], decay = chunk_.decay[elements(t)];
      A* const g = g_.data();
      for (std::int64_t n = 0; n < state; ++n) {
        g[n] = dy * c[n] + dstate[n];
        dstate[n] = decay * g[n];
        db[n] += dt * x * g[n];
        dc[n] += dy * after[n];
      }
      const A taken = dot(g, b, state);
      dx_[i] = dt * taken + skip * dy;
      input_[elements(t)] += x * taken;
      aged_[elements(t)] += dot(g, before, state);
      dskip += dy * x;
    }
    dskip_[elements(p)] = dskip;
  }

  const SsdBackward& args_;
  const SsdSource& in_;
  std::int64_t heads_, blocks_, batch_, block_;
  Chunk<A> chunk_;
  std::vector<A> states_;        // [P, N]: before the chunk
  std::vector<A> dstates_;       // [heads, P, N]
  std::vector<A> history_;       // [count + 1, N]: a channel's states before each step
  std::vector<A> g_;             // [N]: gradient of the state after a step
  std::vector<A> dbc_;           // [count, 2, N]
  std::vector<A> dy_, dx_, dz_;  // [count, P]
  std::vector<A> input_, aged_;  // [count]: gradients of dt through dt x B^T, and of the decay
  std::vector<A> draw_;          // [count, heads]
  std::vector<A> dskip_;         // [P]
};

/// Adds `count` rows of `columns` elements that start `stride` apart, in order.
template <class A>
std::vector<A> sum_rows(const View& from, std::int64_t offset, std::int64_t count, std::int64_t stride,
                        std::int64_t columns) {
  std::vector<A> sum(elements(columns), A{0});
  for (std::int64_t k = 0; k < count; ++k) {
    const A* const row = from.as<A>() + offset + k * stride;
    for (std::int64_t i = 0; i < columns; ++i) sum[elements(i)] += row[i];
  }
  return sum;
}

/// dB and dC of every group: the sums over its head blocks.
template <class A>
void sum_head_blocks(Stream& stream, const SsdBackward& args) {
  const SsdSource& in = args.in;
  const std::int64_t row = in.xbc.shape[2];
  const std::int64_t blocks = args.partial_bc.shape[2], together = blocks / in.groups;
  parallel_for(stream, in.xbc.shape[0] * in.xbc.shape[1], 64, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      for (std::int64_t group = 0; group < in.groups; ++group) {
        const std::int64_t from = (i * blocks + group * together) * 2 * in.state;
        const std::vector<A> sum = sum_rows<A>(args.partial_bc, from, together, 2 * in.state, 2 * in.state);
        const std::int64_t to = i * row + group * in.state;
        store_gradient(args.db, to + in.b_offset, in.state, sum.data());
        store_gradient(args.dc, to + in.c_offset, in.state, sum.data() + in.state);
      }
    }
  });
}

/// What sequences and chunks leave for the parameters of heads.
template <class A>
void sum_parts(const SsdBackward& args) {
  const SsdSource& in = args.in;
  const std::int64_t parts = in.xbc.shape[0] * ssd_chunks(in.xbc.shape[1]);
  std::vector<A> da_log = sum_rows<A>(args.partial_heads, 0, parts, 2 * in.heads, in.heads);
  for (std::int64_t head = 0; head < in.heads; ++head) {
    da_log[elements(head)] *= -std::exp(load_element<A>(in.a_log, head));  // dA/da_log = A
  }
  store_gradient(args.da_log, 0, in.heads, da_log.data());
  const std::vector<A> dbias = sum_rows<A>(args.partial_heads, in.heads, parts, 2 * in.heads, in.heads);
  store_gradient(args.ddt_bias, 0, in.heads, dbias.data());
  if (!args.dskip) return;
  const std::int64_t inner = in.heads * in.head_dim;
  std::vector<A> dskip = sum_rows<A>(args.partial_skip, 0, parts, inner, inner);
  if (in.skip.shape.rank() == 1) {
    for (std::int64_t head = 0; head < in.heads; ++head) {
      const A* const channels = dskip.data() + head * in.head_dim;
      dskip[elements(head)] = interleaved_sum<A>(in.head_dim, [=](std::int64_t p) { return channels[p]; });
    }
  }
  store_gradient(args.dskip, 0, in.skip.shape.elements(), dskip.data());
}

void forward_cpu(Stream& stream, const SsdForward& args) {
  with_accumulate(args.y.dtype, [&](auto accumulate) {
    using A = decltype(accumulate);
    parallel_blocks(stream, args.in.xbc.shape[0] * args.in.heads,
                    [&](std::int64_t index) { forward_head<A>(args, index / args.in.heads, index % args.in.heads); });
  });
}

void backward_cpu(Stream& stream, const SsdBackward& args) {
  with_accumulate(args.in.xbc.dtype, [&](auto accumulate) {
    using A = decltype(accumulate);
    parallel_blocks(stream, args.in.xbc.shape[0] * args.partial_bc.shape[2],
                    [&](std::int64_t index) { BackwardBlock<A>(args, index).run(); });
    sum_head_blocks<A>(stream, args);
    sum_parts<A>(args);
  });
}

const Register forward{ssd_forward, Backend::Cpu, forward_cpu};
const Register backward{ssd_backward, Backend::Cpu, backward_cpu};

}  // namespace
}  // namespace graft
