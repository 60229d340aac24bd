#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"
#include "ops/s4d.h"
#include "ops/s4d_formula.h"
#include "ops/silu_formula.h"

namespace graft {
namespace {

// A piece of work is one sequence and kLanes neighbouring channels, so that inner loops run over channels and are
// vectorised. Sequences are not cut into chunks here: s4d_chunks() is for machines with more threads than channels.

constexpr int kLanes = 16;

template <class A>
using Lanes = std::array<A, kLanes>;

S4dModeParameters mode_parameters(const ConstView& c, const ConstView& log_dt, const ConstView& log_a_real,
                                  const ConstView& a_imag, std::int64_t channel, std::int64_t index) {
  return {{load_element<double>(c, 2 * index), load_element<double>(c, 2 * index + 1)},
          load_element<double>(log_dt, channel),
          load_element<double>(log_a_real, index),
          load_element<double>(a_imag, index)};
}

void modes(Stream&, const S4dModes& args) {
  const S4dLayout& layout = args.layout;
  for (std::int64_t channel = 0; channel < layout.channels; ++channel) {
    for (int m = 0; m < layout.modes; ++m) {
      const S4dModeParameters p =
          mode_parameters(args.c, args.log_dt, args.log_a_real, args.a_imag, channel, channel * layout.modes + m);
      const S4dMode mode = s4d_mode(p, layout.chunk_tokens());
      const double values[kS4dTableRows] = {mode.decay.re,       mode.decay.im,       mode.output.re,
                                            mode.output.im,      mode.chunk_decay.re, mode.chunk_decay.im,
                                            mode.chunk_slope.re, mode.chunk_slope.im};
      for (int row = 0; row < kS4dTableRows; ++row) {
        store_row(args.table, (m * kS4dTableRows + row) * layout.channels + channel, 1, &values[row]);
      }
    }
  }
}

/// Channels [first, first + count) of one sequence.
template <class A>
struct Piece {
  Piece(const S4dLayout& layout_, std::int64_t prompt_, std::int64_t first_)
      : layout(layout_),
        prompt(prompt_),
        first(first_),
        count(static_cast<int>(std::min<std::int64_t>(kLanes, layout_.channels - first_))) {}

  /// One token of u, y or a gradient of them; lanes beyond the last channel are left alone.
  void load(const ConstView& view, std::int64_t token, Lanes<A>& to) const {
    if (layout.impulse) {
      for (int i = 0; i < count; ++i) to[i] = load_element<A>(view, layout.first(prompt, first + i) + token);
    } else {
      load_row(view, layout.first(prompt, first) + token * layout.channels, count, to.data());
    }
  }
  void load_u(const ConstView& u, std::int64_t token, Lanes<A>& to) const {
    if (layout.impulse) {
      to.fill(token == 0 ? A{1} : A{0});
    } else {
      load(u, token, to);
    }
  }
  [[nodiscard]] std::int64_t gate_at(std::int64_t token) const {
    return layout.gate_first(prompt, first) + token * layout.gate_row;
  }
  /// The gate after its activation; ones without a gate.
  void load_gate(const ConstView& gate, std::int64_t token, Lanes<A>& to) const {
    if (!gate) {
      to.fill(A{1});
      return;
    }
    load_row(gate, gate_at(token), count, to.data());
    if (layout.activation == S4dGateActivation::Silu) {
      for (A& value : to) value = silu(value);
    }
  }
  void load_gate_slope(const ConstView& gate, std::int64_t token, Lanes<A>& to) const {
    load_row(gate, gate_at(token), count, to.data());
    for (A& value : to) value = layout.activation == S4dGateActivation::Silu ? silu_slope(value) : A{1};
  }

  const S4dLayout& layout;
  std::int64_t prompt;
  std::int64_t first;
  int count;
};

/// The modes' states of some channels.
template <class A>
class Scan {
 public:
  Scan(const S4dLayout& layout, const ConstView& table, const ConstView& skip, std::int64_t first, int count)
      : modes_(static_cast<std::size_t>(layout.modes)),
        decay_re_(modes_),
        decay_im_(modes_),
        output_re_(modes_),
        output_im_(modes_),
        re_(modes_),
        im_(modes_) {
    const auto row = [&](std::size_t mode, int which, Lanes<A>& to) {
      to.fill(A{0});
      load_row(table, (static_cast<std::int64_t>(mode) * kS4dTableRows + which) * layout.channels + first, count,
               to.data());
    };
    for (std::size_t m = 0; m < modes_; ++m) {
      row(m, kS4dDecayRe, decay_re_[m]);
      row(m, kS4dDecayIm, decay_im_[m]);
      row(m, kS4dOutputRe, output_re_[m]);
      row(m, kS4dOutputIm, output_im_[m]);
      re_[m].fill(A{0});
      im_[m].fill(A{0});
    }
    skip_.fill(A{0});
    if (skip) load_row(skip, first, count, skip_.data());
  }

  /// One token: takes u, leaves 2 Re sum (output x) + skip u.
  void step(const Lanes<A>& u, Lanes<A>& v) {
    for (int i = 0; i < kLanes; ++i) v[i] = A{0};
    for (std::size_t m = 0; m < modes_; ++m) {
      for (int i = 0; i < kLanes; ++i) {
        const A re = decay_re_[m][i] * re_[m][i] - decay_im_[m][i] * im_[m][i] + u[i];
        const A im = decay_re_[m][i] * im_[m][i] + decay_im_[m][i] * re_[m][i];
        re_[m][i] = re;
        im_[m][i] = im;
        v[i] += output_re_[m][i] * re - output_im_[m][i] * im;
      }
    }
    for (int i = 0; i < kLanes; ++i) v[i] = A{2} * v[i] + skip_[i] * u[i];
  }

 private:
  std::size_t modes_;
  std::vector<Lanes<A>> decay_re_, decay_im_, output_re_, output_im_, re_, im_;
  Lanes<A> skip_;
};

/// Calls body(Piece) for every sequence and group of channels.
template <class A, class Body>
void for_each_piece(Stream& stream, const S4dLayout& layout, Body&& body) {
  const std::int64_t groups = ceil_div(layout.channels, kLanes);
  parallel_for(stream, layout.batch * groups, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) body(Piece<A>(layout, i / groups, i % groups * kLanes));
  });
}

template <class A>
void forward_pieces(Stream& stream, const S4dForward& args) {
  for_each_piece<A>(stream, args.layout, [&](const Piece<A>& piece) {
    Scan<A> scan(args.layout, args.table, args.skip, piece.first, piece.count);
    Lanes<A> u{}, v{}, gate{};
    for (std::int64_t t = 0; t < args.layout.tokens; ++t) {
      piece.load_u(args.u, t, u);
      scan.step(u, v);
      piece.load_gate(args.gate, t, gate);
      for (int i = 0; i < kLanes; ++i) v[i] *= gate[i];
      for (int i = 0; i < piece.count; ++i) {
        store_row(args.y, args.layout.first(piece.prompt, piece.first + i) + t * args.layout.token_stride(), 1, &v[i]);
      }
    }
  });
}

template <class A>
void gradients_of_inputs(Stream& stream, const S4dBackward& args) {
  const S4dLayout& layout = args.layout;
  for_each_piece<A>(stream, layout, [&](const Piece<A>& piece) {
    Lanes<A> u{}, v{}, dy{}, gate{};
    if (args.du) {
      Scan<A> scan(layout, args.table, args.skip, piece.first, piece.count);
      for (std::int64_t t = layout.tokens - 1; t >= 0; --t) {
        piece.load(args.dy, t, dy);
        piece.load_gate(args.gate, t, gate);
        for (int i = 0; i < kLanes; ++i) dy[i] *= gate[i];
        scan.step(dy, v);
        store_gradient(args.du, layout.first(piece.prompt, piece.first) + t * layout.channels, piece.count, v.data());
      }
    }
    if (args.dgate) {
      Scan<A> scan(layout, args.table, args.skip, piece.first, piece.count);
      for (std::int64_t t = 0; t < layout.tokens; ++t) {
        piece.load_u(args.u, t, u);
        scan.step(u, v);
        piece.load(args.dy, t, dy);
        piece.load_gate_slope(args.gate, t, gate);
        for (int i = 0; i < kLanes; ++i) v[i] *= dy[i] * gate[i];
        store_gradient(args.dgate, piece.gate_at(t), piece.count, v.data());
      }
    }
  });
}

/// States x and their derivatives z by the decay of one mode, with the sums of dv x and dv z.
template <class A>
struct Sensitivity {
  Lanes<A> decay_re{}, decay_im{}, x_re{}, x_im{}, z_re{}, z_im{};
  std::array<Lanes<A>, 4> sums{};  // dv x, then dv z

  void restart() {
    for (Lanes<A>* state : {&x_re, &x_im, &z_re, &z_im}) state->fill(A{0});
  }
  void step(const Lanes<A>& u, const Lanes<A>& dv) {
    for (int i = 0; i < kLanes; ++i) {
      const A zr = decay_re[i] * z_re[i] - decay_im[i] * z_im[i] + x_re[i];
      const A zi = decay_re[i] * z_im[i] + decay_im[i] * z_re[i] + x_im[i];
      const A xr = decay_re[i] * x_re[i] - decay_im[i] * x_im[i] + u[i];
      const A xi = decay_re[i] * x_im[i] + decay_im[i] * x_re[i];
      z_re[i] = zr;
      z_im[i] = zi;
      x_re[i] = xr;
      x_im[i] = xi;
      sums[0][i] += dv[i] * xr;
      sums[1][i] += dv[i] * xi;
      sums[2][i] += dv[i] * zr;
      sums[3][i] += dv[i] * zi;
    }
  }
};

template <class A>
void gradients_of_parameters(Stream& stream, const S4dBackward& args) {
  const S4dLayout& layout = args.layout;
  const auto mode_count = static_cast<std::size_t>(layout.modes);
  const std::int64_t rows = std::min(layout.rows(), layout.batch);
  const std::int64_t groups = ceil_div(layout.channels, kLanes);
  parallel_for(stream, rows * groups, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t row = item / groups;
      const std::int64_t first = item % groups * kLanes;
      std::vector<Sensitivity<A>> modes_of_piece(mode_count);
      Lanes<A> dskip{};
      for (std::int64_t prompt = row; prompt < layout.batch; prompt += rows) {
        const Piece<A> piece(layout, prompt, first);
        for (std::size_t m = 0; m < mode_count; ++m) {
          const auto at = static_cast<std::int64_t>(m) * kS4dTableRows;
          load_row(args.table, (at + kS4dDecayRe) * layout.channels + first, piece.count,
                   modes_of_piece[m].decay_re.data());
          load_row(args.table, (at + kS4dDecayIm) * layout.channels + first, piece.count,
                   modes_of_piece[m].decay_im.data());
          modes_of_piece[m].restart();
        }
        Lanes<A> u{}, dv{}, gate{};
        for (std::int64_t t = 0; t < layout.tokens; ++t) {
          piece.load_u(args.u, t, u);
          piece.load(args.dy, t, dv);
          piece.load_gate(args.gate, t, gate);
          for (int i = 0; i < kLanes; ++i) {
            dv[i] *= gate[i];
            dskip[i] += dv[i] * u[i];
          }
          for (Sensitivity<A>& mode : modes_of_piece) mode.step(u, dv);
        }
      }
      const int count = static_cast<int>(std::min<std::int64_t>(kLanes, layout.channels - first));
      const auto keep = [&](std::int64_t column, const Lanes<A>& values) {
        store_row(args.partial, (row * layout.columns() + column) * layout.channels + first, count, values.data());
      };
      for (std::size_t m = 0; m < mode_count; ++m) {
        for (std::size_t k = 0; k < 4; ++k) keep(static_cast<std::int64_t>(4 * m + k), modes_of_piece[m].sums[k]);
      }
      keep(4 * layout.modes, dskip);
    }
  });

  parallel_for(stream, layout.channels, kLanes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t channel = begin; channel < end; ++channel) {
      const auto total = [&](std::int64_t column) {
        double sum = 0;
        for (std::int64_t row = 0; row < rows; ++row) {
          sum += load_element<double>(args.partial, (row * layout.columns() + column) * layout.channels + channel);
        }
        return sum;
      };
      double dlog_dt = 0;
      for (int m = 0; m < layout.modes; ++m) {
        const std::int64_t index = channel * layout.modes + m;
        const S4dModeGradient d =
            s4d_mode_gradient(mode_parameters(args.c, args.log_dt, args.log_a_real, args.a_imag, channel, index),
                              {total(4 * m), total(4 * m + 1)}, {total(4 * m + 2), total(4 * m + 3)});
        const double dc[2] = {d.c.re, d.c.im};
        store_gradient(args.dc, 2 * index, 2, dc);
        store_gradient(args.dlog_a_real, index, 1, &d.log_a_real);
        store_gradient(args.da_imag, index, 1, &d.a_imag);
        dlog_dt += d.log_dt;
      }
      store_gradient(args.dlog_dt, channel, 1, &dlog_dt);
      const double dskip = total(4 * layout.modes);
      store_gradient(args.dskip, channel, 1, &dskip);
    }
  });
}

void forward(Stream& stream, const S4dForward& args) {
  with_accumulate(args.y.dtype, [&](auto a) { forward_pieces<decltype(a)>(stream, args); });
}

void backward(Stream& stream, const S4dBackward& args) {
  with_accumulate(args.dy.dtype, [&](auto a) {
    using A = decltype(a);
    if (args.du || args.dgate) gradients_of_inputs<A>(stream, args);
    if (args.partial) gradients_of_parameters<A>(stream, args);
  });
}

const Register registered_modes{s4d_modes, Backend::Cpu, modes};
const Register registered_forward{s4d_forward, Backend::Cpu, forward};
const Register registered_backward{s4d_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
