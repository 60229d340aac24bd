#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct ColumnsForward {
  ConstView x;  // [rows, C]
  View y;       // [rows, stored]
  std::int64_t offset;
  std::int64_t count;  // columns beyond it are zero in y
};
struct ColumnsBackward {
  ConstView dy;   // [rows, stored]
  GradTarget dx;  // [rows, C]; only its columns offset .. offset + count are written
  std::int64_t offset;
  std::int64_t count;
};

inline constinit Kernel<ColumnsForward> columns_forward{"columns_forward"};
inline constinit Kernel<ColumnsBackward> columns_backward{"columns_backward"};

/// Columns [offset, offset + count) of a packed projection, for a product that needs them as a matrix of their own.
///   x        [..., C]  any floating dtype
///   returns  [..., count rounded up to a multiple of 8], x's dtype; the columns added are zero
/// Throws ArgumentError for columns beyond the last.
Tensor columns(const Context& ctx, const Tensor& x, std::int64_t offset, std::int64_t count);

}  // namespace graft
