#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct RmsNormForward {
  ConstView x;       // [rows, D]
  ConstView branch;  // [rows, D] or null: added to x first
  ConstView weight;  // [D]
  View sum;          // [rows, D] or null: x + branch
  View y;            // [rows, D]
  View rstd;         // [rows] or null
  double eps = 1e-5;
};

struct RmsNormBackward {
  ConstView dsum;      // [rows, D] or null: gradient that arrives at the sum from elsewhere
  ConstView dy;        // [rows, D] or null: then only dsum is handed on
  ConstView x;         // [rows, D] what was normalised
  ConstView weight;    // [D]
  ConstView rstd;      // [rows]
  View partial;        // [rms_norm_row_blocks(rows), D] scratch, or null if dweight is absent
  GradTarget dx;       // [rows, D]; may be the memory of dsum
  GradTarget dbranch;  // [rows, D] the same gradient in another dtype, or absent
  GradTarget dweight;  // [D]
};

inline constinit Kernel<RmsNormForward> rms_norm_forward{"rms_norm_forward"};
inline constinit Kernel<RmsNormBackward> rms_norm_backward{"rms_norm_backward"};

/// Widest row that rms_norm takes: the CUDA kernels keep a row in registers.
inline constexpr std::int64_t kRmsNormMaxWidth = 8192;

/// Into how many blocks of consecutive rows the sums for the weight are split: a function of the shape alone, so that
/// results do not depend on the machine.
[[nodiscard]] constexpr std::int64_t rms_norm_row_blocks(std::int64_t rows) {
  return std::clamp<std::int64_t>((rows + 15) / 16, 1, 256);
}

/// y = x * rstd * weight over the last axis, rstd = 1 / sqrt(mean(x^2) + eps).
///   x        [..., D]  the stream dtype, or the compute dtype; D at most 8192
///   weight   [D]       the stream dtype
///   returns  [..., D]  the compute dtype; arithmetic and rstd are in the stream dtype
/// Saves x, weight and rstd, not y. The gradient of weight is a sum over fixed blocks of rows.
/// Throws ArgumentError if weight is not [D], if a dtype does not fit the precision, or if D is too wide.
/// Source: Zhang & Sennrich 2019, equation 4.
Tensor rms_norm(const Context& ctx, const Tensor& x, const Tensor& weight, double eps = 1e-5);

struct AddRmsNorm {
  Tensor residual;  // residual + branch, the stream dtype; empty if it was not asked for
  Tensor normed;    // its RMS norm, the compute dtype
};

/// r = residual + branch, y = rms_norm(r): the step from one block of a pre-norm network to the next, in one pass over
/// memory forward and one backward.
///   residual  [..., D]  the stream dtype
///   branch    [..., D]  the stream dtype, or the compute dtype
///   weight    [D]       the stream dtype
/// `keep_residual` = false is for the last norm of a network: r is not returned, and in inference not written.
/// Saves r, weight and rstd. Backward gives d = dr + (RMS norm's gradient of dy) to residual, and to branch in its own
/// dtype; where both dtypes are the same they share one tensor. Either of dr and dy may be absent.
/// Throws ArgumentError as rms_norm does, and if residual and branch differ in shape.
AddRmsNorm add_rms_norm(const Context& ctx, const Tensor& residual, const Tensor& branch, const Tensor& weight,
                        bool keep_residual = true, double eps = 1e-5);

}  // namespace graft
