#include "ops/causal_conv1d.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"
#include "ops/silu_formula.h"

namespace graft {
namespace {

/// Weight turned around to [width, channels], so that loops over channels are contiguous; and the bias or zeros.
template <class A>
struct Taps {
  Taps(const ConstView& weight, const ConstView& bias)
      : channels(weight.shape[0]),
        width(weight.shape[1]),
        values(static_cast<std::size_t>(channels * width)),
        offsets(static_cast<std::size_t>(channels), A{0}) {
    std::vector<A> stored(values.size());
    load_row(weight, 0, channels * width, stored.data());
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t j = 0; j < width; ++j) {
        values[static_cast<std::size_t>(j * channels + c)] = stored[static_cast<std::size_t>(c * width + j)];
      }
    }
    if (bias) load_row(bias, 0, channels, offsets.data());
  }
  [[nodiscard]] const A* tap(std::int64_t j) const { return values.data() + j * channels; }

  std::int64_t channels, width;
  std::vector<A> values, offsets;
};

/// Tokens [first, last) of the convolved columns; zeros before the first token of the sequence.
template <class A>
std::vector<A> load_tokens(const ConstView& x, std::int64_t offset, std::int64_t channels, std::int64_t sequence,
                           std::int64_t first, std::int64_t last) {
  std::vector<A> tokens(static_cast<std::size_t>((last - first) * channels), A{0});
  for (std::int64_t t = std::max<std::int64_t>(first, 0); t < last; ++t) {
    load_row(x, (sequence * x.shape[1] + t) * x.shape[2] + offset, channels, tokens.data() + (t - first) * channels);
  }
  return tokens;
}

/// v = bias + sum_j weight_j x_j, where x points to the earliest of `width` consecutive tokens.
template <class A>
void convolve(const Taps<A>& taps, const A* x, A* v) {
  std::copy(taps.offsets.begin(), taps.offsets.end(), v);
  for (std::int64_t j = 0; j < taps.width; ++j) {
    const A* const weight = taps.tap(j);
    for (std::int64_t c = 0; c < taps.channels; ++c) v[c] += weight[c] * x[j * taps.channels + c];
  }
}

template <class A>
void forward_pieces(Stream& stream, const CausalConv1dForward& args) {
  const Taps<A> taps(args.weight, args.bias);
  const std::int64_t channels = taps.channels;
  const CausalConvSplit split = causal_conv1d_split(args.x.shape[0], args.x.shape[1], channels);
  parallel_blocks(stream, split.pieces, [&](std::int64_t index) {
    const auto [sequence, first, last] = split.piece(index);
    const std::vector<A> x = load_tokens<A>(args.x, args.offset, channels, sequence, first - (taps.width - 1), last);
    std::vector<A> y(static_cast<std::size_t>(channels));
    for (std::int64_t t = first; t < last; ++t) {
      convolve(taps, x.data() + (t - first) * channels, y.data());
      if (args.silu) {
        for (A& value : y) value = silu(value);
      }
      store_row(args.y, (sequence * split.tokens + t) * channels, channels, y.data());
    }
  });
}

template <class A>
void backward_parts(Stream& stream, const CausalConv1dBackward& args) {
  const Taps<A> taps(args.weight, args.bias);
  const std::int64_t channels = taps.channels;
  const std::int64_t reach = taps.width - 1;  // an output sees so many earlier tokens
  const std::int64_t row = args.x.shape[2];
  const CausalConvSplit split = causal_conv1d_split(args.x.shape[0], args.x.shape[1], channels);
  const std::int64_t pieces_a_part = ceil_div(split.pieces, split.parts);
  const std::int64_t columns = (taps.width + 1) * channels;

  parallel_blocks(stream, split.parts, [&](std::int64_t part) {
    std::vector<A> sums(static_cast<std::size_t>(columns), A{0});  // of dweight turned around, then of dbias
    std::vector<A> v(static_cast<std::size_t>(channels));
    const std::int64_t stop = std::min(split.pieces, (part + 1) * pieces_a_part);
    for (std::int64_t index = part * pieces_a_part; index < stop; ++index) {
      const auto [sequence, first, last] = split.piece(index);
      const std::int64_t end = std::min(split.tokens, last + reach);
      const std::vector<A> x = load_tokens<A>(args.x, args.offset, channels, sequence, first - reach, end);
      std::vector<A> dv = load_tokens<A>(args.dy, 0, channels, sequence, first, end);
      for (std::int64_t t = first; t < end; ++t) {
        const A* const seen = x.data() + (t - first) * channels;
        A* const d = dv.data() + (t - first) * channels;
        if (args.silu) {
          convolve(taps, seen, v.data());
          for (std::int64_t c = 0; c < channels; ++c) d[c] *= silu_slope(v[static_cast<std::size_t>(c)]);
        }
        if (t >= last || !args.partial) continue;  // the next piece counts it
        for (std::int64_t j = 0; j < taps.width; ++j) {
          A* const sum = sums.data() + j * channels;
          for (std::int64_t c = 0; c < channels; ++c) sum[c] += d[c] * seen[j * channels + c];
        }
        A* const sum = sums.data() + taps.width * channels;
        for (std::int64_t c = 0; c < channels; ++c) sum[c] += d[c];
      }
      if (!args.dx) continue;
      for (std::int64_t t = first; t < last; ++t) {
        std::fill(v.begin(), v.end(), A{0});
        for (std::int64_t j = 0; j < taps.width; ++j) {
          const std::int64_t output = t + reach - j;
          if (output >= end) continue;
          const A* const weight = taps.tap(j);
          const A* const d = dv.data() + (output - first) * channels;
          for (std::int64_t c = 0; c < channels; ++c) v[static_cast<std::size_t>(c)] += weight[c] * d[c];
        }
        store_gradient(args.dx, (sequence * split.tokens + t) * row + args.offset, channels, v.data());
      }
    }
    if (args.partial) std::copy(sums.begin(), sums.end(), args.partial.as<A>() + part * columns);
  });

  if (!args.partial) return;
  std::vector<A> sums(static_cast<std::size_t>(columns), A{0});
  for (std::int64_t part = 0; part < split.parts; ++part) {
    const A* const mine = args.partial.as<A>() + part * columns;
    for (std::int64_t i = 0; i < columns; ++i) sums[static_cast<std::size_t>(i)] += mine[i];
  }
  std::vector<A> dweight(static_cast<std::size_t>(channels * taps.width));
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t j = 0; j < taps.width; ++j) {
      dweight[static_cast<std::size_t>(c * taps.width + j)] = sums[static_cast<std::size_t>(j * channels + c)];
    }
  }
  store_gradient(args.dweight, 0, channels * taps.width, dweight.data());
  store_gradient(args.dbias, 0, channels, sums.data() + taps.width * channels);
}

void forward(Stream& stream, const CausalConv1dForward& args) {
  with_accumulate(args.x.dtype, [&](auto a) { forward_pieces<decltype(a)>(stream, args); });
}

void backward(Stream& stream, const CausalConv1dBackward& args) {
  with_accumulate(args.x.dtype, [&](auto a) { backward_parts<decltype(a)>(stream, args); });
}

const Register registered_forward{causal_conv1d_forward, Backend::Cpu, forward};
const Register registered_backward{causal_conv1d_backward, Backend::Cpu, backward};

}  // namespace
}  // namespace graft
