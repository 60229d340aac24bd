#include "ops/value_summary.h"

#include <algorithm>
#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"

namespace graft {
namespace {

void summarize(Stream& stream, const ValueSummaryArgs& args) {
  const std::int64_t elements = args.values.shape.elements();
  const std::int64_t blocks = summary_blocks(elements);
  const std::int64_t elements_a_block = ceil_div(elements, blocks);
  with_floating(args.values.dtype, [&](auto element) {
    using T = decltype(element);
    const T* const values = args.values.as<T>();
    parallel_blocks(stream, blocks, [&](std::int64_t block) {
      ValueSummary part;
      const std::int64_t last = std::min(elements, (block + 1) * elements_a_block);
      for (std::int64_t i = block * elements_a_block; i < last; ++i) {
        part.count(static_cast<double>(static_cast<Accumulate<T>>(values[i])), i);
      }
      args.partial[block] = part;
    });
  });
}

void write_poison(Stream&, const PoisonArgs& args) {
  if (args.state->step < args.first_step || args.state->step > args.last_step) return;
  store_row(args.target, args.element, 1, &args.value);
}

const Register summary_registered{value_summary_kernel, Backend::Cpu, summarize};
const Register poison_registered{poison, Backend::Cpu, write_poison};

}  // namespace
}  // namespace graft
