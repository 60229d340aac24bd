#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "tasks/token_sampler.h"

namespace graft {

/// CPU kernel of a law's sampler.
template <class Law>
void sample_tokens_cpu(Stream& stream, const SampleTokens<Law>& args) {
  const StepState& state = *args.state;
  const std::int64_t count = args.positions.shape.columns();
  parallel_for(stream, args.selection.batch, 8, [&](std::int64_t first, std::int64_t last) {
    std::vector<typename Law::Scratch> scratch(static_cast<std::size_t>(args.law.scratch(args.selection.domain)));
    for (std::int64_t i = first; i < last; ++i) {
      const TokenRow row = row_of(args, i);
      static_cast<void>(args.law.draw(Threads{}, draw_of(args.selection, state, i), scratch.data(), row));
      for (std::int64_t j = 0; j < count; ++j) {
        if (args.targets.dtype == DType::F64) {
          args.targets.template as<double>()[i * count + j] = row.labels[j];
        } else {
          args.targets.template as<float>()[i * count + j] = static_cast<float>(row.labels[j]);
        }
      }
    }
  });
}

}  // namespace graft
