#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/tensor.h"

namespace graft {

// Argument checks of the ops that read a sequence piece by piece. `op` starts every message.

/// Extending leaves nothing for a backward pass. Throws ArgumentError if a tape is recording.
void check_inference(const Context& ctx, const char* op);
/// Throws ArgumentError unless the tensor is there and has this shape and dtype.
void check_tensor(const Context& ctx, const char* op, const char* name, const Tensor& tensor, const Shape& shape,
                  DType dtype);
/// Throws ArgumentError unless the tensor is [batch, tokens, row] in the compute dtype and holds the columns
/// [offset, offset + count), which messages call `what`.
void check_columns(const Context& ctx, const char* op, const char* name, const Tensor& tensor, std::int64_t batch,
                   std::int64_t tokens, std::int64_t offset, std::int64_t count, const char* what);
/// A number of tokens on the device: [1] int32.
void check_token_count(const char* op, const char* name, const Tensor& count);

[[nodiscard]] inline ConstView view_or_null(const Tensor& tensor) { return tensor ? tensor.view() : ConstView{}; }

}  // namespace graft
