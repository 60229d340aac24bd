#pragma once

#include "engine/context.h"
#include "engine/tensor.h"

namespace graft {

/// x in another floating dtype; x itself where it has that dtype already. The gradient is cast back.
Tensor cast(const Context& ctx, const Tensor& x, DType dtype);

}  // namespace graft
