#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/tape.h"
#include "engine/tensor.h"

namespace graft {

// Argument checks and views of optional arguments that several ops share. `op` starts every message.

/// Throws ArgumentError unless the tensor is there and has this shape and dtype.
void check_tensor(const Context& ctx, const char* op, const char* name, const Tensor& tensor, const Shape& shape,
                  DType dtype);
/// Throws ArgumentError unless the tensor is [batch, tokens, row] in the compute dtype and holds the columns
/// [offset, offset + count), which messages call `what`.
void check_columns(const Context& ctx, const char* op, const char* name, const Tensor& tensor, std::int64_t batch,
                   std::int64_t tokens, std::int64_t offset, std::int64_t count, const char* what);

/// Null views for tensors that are not there.
[[nodiscard]] inline ConstView view_or_null(const Tensor& tensor) { return tensor ? tensor.view() : ConstView{}; }
[[nodiscard]] inline View mutable_view_or_null(const Tensor& tensor) { return tensor ? tensor.mutable_view() : View{}; }
[[nodiscard]] inline GradTarget target_or_null(Grads& grads, const Tensor& tensor) {
  return tensor ? grads.into(tensor) : GradTarget{};
}

}  // namespace graft
