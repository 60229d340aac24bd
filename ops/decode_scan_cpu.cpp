#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/decode_scan.h"
#include "ops/rows_cpu.h"
#include "ops/silu_formula.h"
#include "ops/softplus_formula.h"

namespace graft {
namespace {

constexpr std::int64_t kChannels = 64;  // of one piece of work

/// Channels [first, first + count) of one sequence.
template <class A>
void extend_channels(const ScanExtension& args, std::int64_t sequence, std::int64_t first, std::int64_t count) {
  const std::int64_t tokens = args.y.shape[1];
  const std::int64_t channels = args.channels();
  const std::int64_t states = args.states();
  const std::int64_t first_head = first / args.head_dim;
  const std::int64_t heads = (first + count - 1) / args.head_dim - first_head + 1;
  const std::int64_t first_group = first / args.group;
  const std::int64_t columns = ((first + count - 1) / args.group - first_group + 1) * states;
  const bool decay_a_state = args.decay_a_state();
  const auto vector = [](std::int64_t n) { return std::vector<A>(static_cast<std::size_t>(n), A{0}); };

  std::vector<A> h = vector(count * states), rates = vector(decay_a_state ? count * states : heads);
  std::vector<A> bias = vector(heads), dt = vector(heads), b = vector(columns), c = vector(columns);
  std::vector<A> x = vector(count), z = vector(count), y = vector(count);
  load_row(args.state, (sequence * channels + first) * states, count * states, h.data());
  load_row(args.a_log, decay_a_state ? first * states : first_head, decay_a_state ? count * states : heads,
           rates.data());
  for (A& rate : rates) rate = -std::exp(rate);
  if (args.bias) load_row(args.bias, first_head, heads, bias.data());

  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t row = sequence * tokens + t;
    load_row(args.x, row * args.x.shape[2] + args.x_offset + first, count, x.data());
    load_row(args.dt, row * args.dt.shape[2] + args.dt_offset + first_head, heads, dt.data());
    load_row(args.bc, row * args.bc.shape[2] + args.b_offset + first_group * states, columns, b.data());
    load_row(args.bc, row * args.bc.shape[2] + args.c_offset + first_group * states, columns, c.data());
    if (args.z) load_row(args.z, row * args.z.shape[2] + args.z_offset + first, count, z.data());
    for (std::int64_t i = 0; i < heads; ++i) {
      A& step = dt[static_cast<std::size_t>(i)];
      step += bias[static_cast<std::size_t>(i)];
      if (args.softplus) step = softplus(step);
      step = clamped(step, static_cast<A>(args.dt_min), static_cast<A>(args.dt_max));
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t channel = first + i;
      const std::int64_t head = channel / args.head_dim - first_head;
      const A step = dt[static_cast<std::size_t>(head)];
      const A input = step * x[static_cast<std::size_t>(i)];
      const A* const b_row = b.data() + (channel / args.group - first_group) * states;
      const A* const c_row = c.data() + (channel / args.group - first_group) * states;
      A* const state = h.data() + i * states;
      A sum{0};
      if (decay_a_state) {
        const A* const rate = rates.data() + i * states;
        for (std::int64_t n = 0; n < states; ++n) {
          state[n] = std::exp(step * rate[n]) * state[n] + input * b_row[n];
          sum += c_row[n] * state[n];
        }
      } else {
        const A decay = std::exp(step * rates[static_cast<std::size_t>(head)]);
        for (std::int64_t n = 0; n < states; ++n) state[n] = decay * state[n] + input * b_row[n];
        sum = interleaved_sum<A>(states, [&](std::int64_t n) { return c_row[n] * state[n]; });
      }
      if (args.skip) sum += load_element<A>(args.skip, channel / args.skip_share) * x[static_cast<std::size_t>(i)];
      if (args.z) sum *= silu(z[static_cast<std::size_t>(i)]);
      y[static_cast<std::size_t>(i)] = sum;
    }
    store_row(args.y, row * channels + first, count, y.data());
  }
  store_row(args.state, (sequence * channels + first) * states, count * states, h.data());
}

void extend(Stream& stream, const ScanExtension& args) {
  const std::int64_t blocks = ceil_div(args.channels(), kChannels);
  with_accumulate(args.y.dtype, [&](auto a) {
    parallel_blocks(stream, args.y.shape[0] * blocks, [&](std::int64_t index) {
      const std::int64_t first = index % blocks * kChannels;
      extend_channels<decltype(a)>(args, index / blocks, first, std::min(kChannels, args.channels() - first));
    });
  });
}

const Register registered{scan_extension, Backend::Cpu, extend};

}  // namespace
}  // namespace graft
