#pragma once

#include "engine/context.h"
#include "engine/tensor.h"

namespace graft {

/// a + b, elementwise: for losses of several parts.
///   a, b     [...]  one shape; the stream dtype
///   returns  [...]  the stream dtype
/// Saves nothing: the gradient of both is that of the sum. Throws ArgumentError if shapes or dtypes differ.
[[nodiscard]] Tensor add(const Context& ctx, const Tensor& a, const Tensor& b);

}  // namespace graft
