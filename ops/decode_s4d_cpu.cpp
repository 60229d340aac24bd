#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/decode_s4d.h"
#include "ops/rows_cpu.h"
#include "ops/silu_formula.h"

namespace graft {
namespace {

constexpr std::int64_t kChannels = 16;  // of one piece of work

/// The rows of the modes' table that the recurrence reads, as one array over modes for each channel.
template <class A>
struct Modes {
  Modes(const S4dExtension& args, std::int64_t first, std::int64_t count)
      : modes(args.layout.modes), values(static_cast<std::size_t>(4 * modes * count)) {
    constexpr S4dTableRow kRows[] = {kS4dDecayRe, kS4dDecayIm, kS4dOutputRe, kS4dOutputIm};
    std::vector<A> row(static_cast<std::size_t>(count));
    for (std::int64_t m = 0; m < modes; ++m) {
      for (std::int64_t k = 0; k < 4; ++k) {
        load_row(args.table, (m * kS4dTableRows + kRows[k]) * args.layout.channels + first, count, row.data());
        for (std::int64_t i = 0; i < count; ++i) {
          values[static_cast<std::size_t>((i * 4 + k) * modes + m)] = row[static_cast<std::size_t>(i)];
        }
      }
    }
  }
  /// Array `which` of a channel: decay's real and imaginary part, the output's.
  [[nodiscard]] const A* of(std::int64_t channel, std::int64_t which) const {
    return values.data() + (channel * 4 + which) * modes;
  }

  std::int64_t modes;
  std::vector<A> values;
};

/// Channels [first, first + count) of one sequence.
template <class A>
void extend_channels(const S4dExtension& args, std::int64_t sequence, std::int64_t first, std::int64_t count) {
  const S4dLayout& layout = args.layout;
  const std::int64_t modes = layout.modes;
  const Modes<A> table(args, first, count);
  const auto vector = [](std::int64_t n) { return std::vector<A>(static_cast<std::size_t>(n), A{0}); };
  std::vector<A> state = vector(count * modes * 2), skip = vector(count);
  std::vector<A> u = vector(count), gate = vector(count), y = vector(count);
  const std::int64_t at = (sequence * layout.channels + first) * modes * 2;
  load_row(args.state, at, count * modes * 2, state.data());
  load_row(args.skip, first, count, skip.data());
  for (std::int64_t t = 0; t < layout.tokens; ++t) {
    load_row(args.u, layout.first(sequence, first) + t * layout.channels, count, u.data());
    if (args.gate) {
      load_row(args.gate, layout.gate_first(sequence, first) + t * layout.gate_row, count, gate.data());
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const A *const decay_re = table.of(i, 0), *const decay_im = table.of(i, 1);
      const A *const output_re = table.of(i, 2), *const output_im = table.of(i, 3);
      A* const x = state.data() + i * modes * 2;
      const A input = u[static_cast<std::size_t>(i)];
      A sum{0};
      for (std::int64_t m = 0; m < modes; ++m) {
        const A re = decay_re[m] * x[2 * m] - decay_im[m] * x[2 * m + 1] + input;
        const A im = decay_re[m] * x[2 * m + 1] + decay_im[m] * x[2 * m];
        x[2 * m] = re;
        x[2 * m + 1] = im;
        sum += output_re[m] * re - output_im[m] * im;
      }
      A v = A{2} * sum + skip[static_cast<std::size_t>(i)] * input;
      if (args.gate) {
        const A value = gate[static_cast<std::size_t>(i)];
        v *= layout.activation == S4dGateActivation::Silu ? silu(value) : value;
      }
      y[static_cast<std::size_t>(i)] = v;
    }
    store_row(args.y, layout.first(sequence, first) + t * layout.channels, count, y.data());
  }
  store_row(args.state, at, count * modes * 2, state.data());
}

void extend(Stream& stream, const S4dExtension& args) {
  const S4dLayout& layout = args.layout;
  const std::int64_t blocks = ceil_div(layout.channels, kChannels);
  with_accumulate(args.y.dtype, [&](auto a) {
    parallel_blocks(stream, layout.batch * blocks, [&](std::int64_t index) {
      const std::int64_t first = index % blocks * kChannels;
      extend_channels<decltype(a)>(args, index / blocks, first, std::min(kChannels, layout.channels - first));
    });
  });
}

const Register registered{s4d_extension, Backend::Cpu, extend};

}  // namespace
}  // namespace graft
