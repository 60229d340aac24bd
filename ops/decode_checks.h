#pragma once

#include "engine/context.h"
#include "engine/tensor.h"
#include "ops/checks.h"

namespace graft {

// Argument checks of the ops that read a sequence piece by piece. `op` starts every message.

/// Extending leaves nothing for a backward pass. Throws ArgumentError if a tape is recording.
void check_inference(const Context& ctx, const char* op);
/// A number of tokens on the device: [1] int32.
void check_token_count(const char* op, const char* name, const Tensor& count);

}  // namespace graft
