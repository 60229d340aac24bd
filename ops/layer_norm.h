#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct LayerNormForward {
  ConstView x;       // [rows, D]
  ConstView branch;  // [rows, D] or null: added to x first
  ConstView gain;    // [D]
  ConstView bias;    // [D]
  View sum;          // [rows, D] or null: x + branch
  View y;            // [rows, D]
  View mean, rstd;   // [rows] or null
  double eps = 1e-5;
};

struct LayerNormBackward {
  ConstView dsum;           // [rows, D] or null: gradient that arrives at the sum from elsewhere
  ConstView dy;             // [rows, D] or null: then only dsum is handed on
  ConstView x;              // [rows, D] what was normalised
  ConstView gain;           // [D]
  ConstView mean, rstd;     // [rows]
  View partial;             // [layer_norm_row_blocks(rows), 2, D] scratch, or null if dgain and dbias are absent
  GradTarget dx;            // [rows, D]; may be the memory of dsum
  GradTarget dbranch;       // [rows, D] the same gradient in another dtype, or absent
  GradTarget dgain, dbias;  // [D]
};

inline constinit Kernel<LayerNormForward> layer_norm_forward{"layer_norm_forward"};
inline constinit Kernel<LayerNormBackward> layer_norm_backward{"layer_norm_backward"};

/// Widest row that layer_norm takes: the CUDA kernels keep a row in registers.
inline constexpr std::int64_t kLayerNormMaxWidth = 8192;

/// Into how many blocks of consecutive rows the sums for gain and bias are split: a function of the shape alone, so
/// that results do not depend on the machine.
[[nodiscard]] constexpr std::int64_t layer_norm_row_blocks(std::int64_t rows) {
  return std::clamp<std::int64_t>((rows + 15) / 16, 1, 256);
}

/// y = (x - mean) * rstd * gain + bias over the last axis, rstd = 1 / sqrt(mean((x - mean)^2) + eps).
///   x           [..., D]  the stream dtype, or the compute dtype; D at most 8192
///   gain, bias  [D]       the stream dtype
///   returns     [..., D]  the compute dtype; arithmetic, mean and rstd are in the stream dtype
/// Saves x, gain, mean and rstd, not y. Gradients of gain and bias are sums over fixed blocks of rows.
/// Throws ArgumentError if gain or bias is not [D], if a dtype does not fit the precision, or if D is too wide.
/// Source: Ba, Kiros & Hinton 2016, equations 3-4 (biased variance, as in torch.nn.LayerNorm).
Tensor layer_norm(const Context& ctx, const Tensor& x, const Tensor& gain, const Tensor& bias, double eps = 1e-5);

struct AddLayerNorm {
  Tensor residual;  // residual + branch, the stream dtype; empty if it was not asked for
  Tensor normed;    // its layer norm, the compute dtype
};

/// r = residual + branch, y = layer_norm(r): the step from one block of a pre-norm network to the next, in one pass
/// over memory forward and one backward.
///   residual    [..., D]  the stream dtype
///   branch      [..., D]  the stream dtype, or the compute dtype
///   gain, bias  [D]       the stream dtype
/// `keep_residual` = false is for the last norm of a network: r is not returned, and in inference not written.
/// Saves r, gain, mean and rstd. Backward gives d = dr + (layer norm's gradient of dy) to residual, and to branch in
/// its own dtype; where both dtypes are the same they share one tensor. Either of dr and dy may be absent.
/// Throws ArgumentError as layer_norm does, and if residual and branch differ in shape.
AddLayerNorm add_layer_norm(const Context& ctx, const Tensor& residual, const Tensor& branch, const Tensor& gain,
                            const Tensor& bias, bool keep_residual = true, double eps = 1e-5);

}  // namespace graft
