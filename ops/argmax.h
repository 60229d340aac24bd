#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct Argmax {
  ConstView x;               // [rows, stored columns]
  View y;                    // [rows] int32, float32 or float64
  std::int64_t columns = 0;  // that are looked at
};

inline constinit Kernel<Argmax> argmax_kernel{"argmax"};

/// y = the index of the largest of the first `columns` columns, the lowest one where several are equal. A row that
/// holds a NaN gives the index of its first NaN. (-0 and +0 are equal.)
///   x        [..., stored]  float32, bfloat16 or float64; the first `columns` columns count (0: all of them)
///   dtype    of the result: int32 for indices that feed an embedding, or the stream dtype for those that are scored
///            as numbers
///   returns  [...]
/// Not differentiable. Throws ArgumentError if `columns` exceeds the stored ones, for another dtype, and for a float32
/// result that could not hold every index (more than 2^24 columns).
Tensor argmax(const Context& ctx, const Tensor& x, std::int64_t columns, DType dtype);

}  // namespace graft
