#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/decode_conv1d.h"
#include "ops/rows_cpu.h"
#include "ops/silu_formula.h"

namespace graft {
namespace {

/// One sequence. The state and the tokens stand behind each other in one array, from which every output is taken.
template <class A>
void extend_sequence(const CausalConv1dExtension& args, const std::vector<A>& taps, const std::vector<A>& bias,
                     std::int64_t sequence) {
  const std::int64_t channels = args.weight.shape[0];
  const std::int64_t width = args.weight.shape[1];
  const std::int64_t reach = width - 1;
  const std::int64_t tokens = args.x.shape[1];
  const std::int64_t row = args.x.shape[2];
  std::vector<A> inputs(static_cast<std::size_t>((reach + tokens) * channels)), v(bias.size());
  load_row(args.state, sequence * reach * channels, reach * channels, inputs.data());
  for (std::int64_t t = 0; t < tokens; ++t) {
    load_row(args.x, (sequence * tokens + t) * row + args.offset, channels, inputs.data() + (reach + t) * channels);
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::copy(bias.begin(), bias.end(), v.begin());
    for (std::int64_t j = 0; j < width; ++j) {
      const A* const x = inputs.data() + (t + j) * channels;
      for (std::int64_t c = 0; c < channels; ++c) {
        v[static_cast<std::size_t>(c)] += taps[static_cast<std::size_t>(c * width + j)] * x[c];
      }
    }
    if (args.silu) {
      for (A& value : v) value = silu(value);
    }
    store_row(args.y, (sequence * tokens + t) * channels, channels, v.data());
  }
  store_row(args.state, sequence * reach * channels, reach * channels, inputs.data() + tokens * channels);
}

void extend(Stream& stream, const CausalConv1dExtension& args) {
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    std::vector<A> taps(static_cast<std::size_t>(args.weight.shape.elements()));
    load_row(args.weight, 0, args.weight.shape.elements(), taps.data());
    std::vector<A> bias(static_cast<std::size_t>(args.weight.shape[0]), A{0});
    if (args.bias) load_row(args.bias, 0, args.weight.shape[0], bias.data());
    parallel_blocks(stream, args.x.shape[0],
                    [&](std::int64_t sequence) { extend_sequence<A>(args, taps, bias, sequence); });
  });
}

const Register registered{causal_conv1d_extension, Backend::Cpu, extend};

}  // namespace
}  // namespace graft
