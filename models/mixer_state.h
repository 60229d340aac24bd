#pragma once

#include <cstddef>
#include <string_view>

#include "engine/context.h"
#include "engine/require.h"
#include "engine/stream.h"
#include "models/mixer.h"

namespace graft {

/// A part of a mixer's state before the first token: zeros in run memory.
[[nodiscard]] inline Tensor empty_state(const Context& ctx, const Shape& shape, DType dtype, std::string_view name) {
  Tensor state = ctx.empty_run(shape, dtype, name);
  ctx.stream->zero(state.mutable_view().data, state.bytes());
  return state;
}

/// Throws ArgumentError unless a state has as many parts as the mixer that is to extend it makes.
inline void require_parts(const MixerState& state, std::size_t parts, std::string_view mixer) {
  require(state.parts.size() == parts, "{}: a state of {} parts, expected {}, as make_state() makes it", mixer,
          state.parts.size(), parts);
}

}  // namespace graft
