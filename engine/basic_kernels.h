#pragma once

#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct FillArgs {
  View y;
  double value;
};
struct AddArgs {
  View y;
  ConstView x;
};
struct CastArgs {
  View y;
  ConstView x;
};

struct ZeroColumnsArgs {
  View y;  // [..., columns]
  std::int64_t first;
  std::int64_t count;
};

// What the engine itself needs of kernels. Shapes may differ as long as the number of elements does not.

/// y = value, rounded (integers: truncated) to y's dtype. Any dtype.
inline constinit Kernel<FillArgs> fill_value{"fill_value"};
/// y += x. float32, bfloat16 and float64 in any combination; the sum is rounded once to y's dtype.
inline constinit Kernel<AddArgs> add_to{"add_to"};
/// y = x, rounded to y's dtype. float32, bfloat16 and float64 in any combination, or twice the same dtype.
inline constinit Kernel<CastArgs> copy_cast{"copy_cast"};

/// y[..., first .. first + count) = 0. Any floating dtype.
inline constinit Kernel<ZeroColumnsArgs> zero_columns{"zero_columns"};

}  // namespace graft
