#pragma once

#include <string_view>

#include "engine/context.h"
#include "engine/stream.h"

namespace graft {

/// A part of a mixer's state before the first token: zeros in run memory.
[[nodiscard]] inline Tensor empty_state(const Context& ctx, const Shape& shape, DType dtype, std::string_view name) {
  Tensor state = ctx.empty_run(shape, dtype, name);
  ctx.stream->zero(state.mutable_view().data, state.bytes());
  return state;
}

}  // namespace graft
