#include <array>
#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/dropout.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

constexpr std::int64_t kGroupGrain = 256;

/// Forward and backward are the same map.
void apply(Stream& stream, const DropoutArgs& args) {
  if (!args.y) return;
  const DropoutMask& mask = args.mask;
  const std::int64_t groups = ceil_div(mask.draws, 4);
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    const auto scale = static_cast<A>(mask.scale);
    parallel_for(stream, mask.examples * groups, kGroupGrain, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t example = i / groups;
        const std::int64_t draw = i % groups * 4;
        const Words4 words = mask.words(*args.state, example, i % groups);
        const A factors[4] = {words.x < mask.threshold ? A{0} : scale, words.y < mask.threshold ? A{0} : scale,
                              words.z < mask.threshold ? A{0} : scale, words.w < mask.threshold ? A{0} : scale};
        const std::int64_t count = std::min<std::int64_t>(4, mask.draws - draw);
        for (std::int64_t repeat = 0; repeat < mask.repeats; ++repeat) {
          const std::int64_t at = (example * mask.repeats + repeat) * mask.draws + draw;
          std::array<A, 4> values{};
          load_row(args.x, at, count, values.data());
          for (std::size_t k = 0; k < 4; ++k) values[k] *= factors[k];
          store_gradient(args.y, at, count, values.data());
        }
      }
    });
  });
}

const Register registered_forward{dropout_forward, Backend::Cpu, apply};
const Register registered_backward{dropout_backward, Backend::Cpu, apply};

}  // namespace
}  // namespace graft
