#include <algorithm>
#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/clip.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

/// The first gradient of the blocks whose sums are not finite that is not finite itself.
template <class A>
std::int64_t find_bad(const ClipArgs& args, std::int64_t blocks, std::int64_t elements_a_block) {
  const std::int64_t elements = args.gradients.shape.elements();
  const A* const gradients = args.gradients.as<A>();
  const auto* const partial = args.partial.as<double>();
  for (std::int64_t block = 0; block < blocks; ++block) {
    if (squares_are_finite(partial[block], args.gradients.dtype)) continue;
    const std::int64_t last = std::min(elements, (block + 1) * elements_a_block);
    for (std::int64_t i = block * elements_a_block; i < last; ++i) {
      const auto g = static_cast<double>(gradients[i]);
      if (!squares_are_finite(g * g, args.gradients.dtype)) return i;
    }
  }
  return kNormBad;
}

void run(Stream& stream, const ClipArgs& args) {
  const std::int64_t elements = args.gradients.shape.elements();
  const std::int64_t blocks = clip_blocks(elements);
  const std::int64_t elements_a_block = ceil_div(elements, blocks);
  auto* const partial = args.partial.as<double>();
  with_accumulate(args.gradients.dtype, [&](auto a) {
    const auto* const gradients = args.gradients.as<decltype(a)>();
    parallel_blocks(stream, blocks, [&](std::int64_t block) {
      const std::int64_t first = std::min(elements, block * elements_a_block);
      const std::int64_t last = std::min(elements, first + elements_a_block);
      partial[block] = interleaved_sum<double>(last - first, [&](std::int64_t i) {
        const auto g = static_cast<double>(gradients[first + i]);
        return g * g;
      });
    });
  });
  double squares = 0;
  for (std::int64_t block = 0; block < blocks; ++block) squares += partial[block];
  std::int64_t first_bad = loss_is_finite(args.loss) ? kNothingBad : kLossBad;
  if (!squares_are_finite(squares, args.gradients.dtype)) {
    with_accumulate(args.gradients.dtype,
                    [&](auto a) { first_bad = find_bad<decltype(a)>(args, blocks, elements_a_block); });
  }
  apply_norm(*args.state, squares, args.max_norm, first_bad);
}

const Register registered{clip_norm, Backend::Cpu, run};

}  // namespace
}  // namespace graft
