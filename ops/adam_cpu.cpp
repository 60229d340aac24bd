#include <cmath>
#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/adam.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kGrain = 16384;

template <class A>
void update(Stream& stream, const AdamArgs& args) {
  const StepState& state = *args.state;
  const AdamOptions& options = args.options;
  const auto clip = static_cast<A>(state.clip_scale);
  const auto beta1 = static_cast<A>(options.beta1), rest1 = static_cast<A>(1 - options.beta1);
  const auto beta2 = static_cast<A>(options.beta2), rest2 = static_cast<A>(1 - options.beta2);
  const auto rate = static_cast<A>(state.learning_rate / state.bias_correction1);
  const auto root_scale = static_cast<A>(1 / std::sqrt(state.bias_correction2));
  const auto eps = static_cast<A>(options.eps);
  const auto decay = static_cast<A>(state.learning_rate * options.weight_decay);
  const auto* const gradients = args.gradients.as<A>();
  const auto* const flags = args.decay_flags.as<std::uint8_t>();
  auto* const weights = args.weights.as<A>();
  auto* const first_moments = args.first_moments.as<A>();
  auto* const second_moments = args.second_moments.as<A>();
  parallel_for(stream, args.weights.shape.elements(), kGrain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const A g = clip * gradients[i];
      const A m = beta1 * first_moments[i] + rest1 * g;
      const A v = beta2 * second_moments[i] + rest2 * g * g;
      first_moments[i] = m;
      second_moments[i] = v;
      A p = weights[i];
      if (flags != nullptr && flags[i / ParameterStore::kAlignment] != 0) p -= decay * p;
      weights[i] = p - rate * m / (std::sqrt(v) * root_scale + eps);
    }
    if (args.compute_copy) store_row(args.compute_copy, first, last - first, weights + first);
  });
}

void run(Stream& stream, const AdamArgs& args) {
  if (args.state->skip != 0) return;
  with_accumulate(args.weights.dtype, [&](auto a) { update<decltype(a)>(stream, args); });
}

const Register registered{adam_update, Backend::Cpu, run};

}  // namespace
}  // namespace graft
