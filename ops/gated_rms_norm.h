#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct GatedRmsNormForward {
  ConstView x;       // [rows, D]
  ConstView z;       // [rows, row], its columns [z_offset, z_offset + D)
  ConstView weight;  // [D]
  View y;            // [rows, D]
  View rstd;         // [rows, D / group_size] or null
  std::int64_t z_offset = 0;
  std::int64_t group_size = 0;  // divides D
  bool norm_before_gate = false;
  double eps = 1e-5;
};

struct GatedRmsNormBackward {
  ConstView dy;        // [rows, D]
  ConstView x;         // [rows, D]
  ConstView z;         // [rows, row]
  ConstView weight;    // [D]
  ConstView rstd;      // [rows, D / group_size]
  View partial;        // [gated_rms_norm_row_blocks(rows), D] scratch, or null if dweight is absent
  GradTarget dx;       // [rows, D]
  GradTarget dz;       // [rows, row], of which the kernel writes columns [z_offset, z_offset + D)
  GradTarget dweight;  // [D]
  std::int64_t z_offset = 0;
  std::int64_t group_size = 0;
  bool norm_before_gate = false;
};

inline constinit Kernel<GatedRmsNormForward> gated_rms_norm_forward{"gated_rms_norm_forward"};
inline constinit Kernel<GatedRmsNormBackward> gated_rms_norm_backward{"gated_rms_norm_backward"};

/// Largest group of channels: the CUDA kernels keep one in registers.
inline constexpr std::int64_t kGatedRmsNormMaxGroup = 8192;

/// Into how many blocks of consecutive rows the sums for the weight are split: a function of the shape alone.
[[nodiscard]] constexpr std::int64_t gated_rms_norm_row_blocks(std::int64_t rows) {
  return std::clamp<std::int64_t>((rows + 7) / 8, 1, 512);
}

/// RMS norm with a gate z, over groups of `group_size` neighbouring channels of the last axis:
///   norm_before_gate = false:  u = x silu(z),  y = u * rstd * weight,            rstd = 1 / sqrt(mean(u^2) + eps)
///   norm_before_gate = true:                   y = x * rstd * weight * silu(z),  rstd = 1 / sqrt(mean(x^2) + eps)
///   x        [..., D]    the compute dtype
///   z        [..., row]  the compute dtype; the gate is its columns [z_offset, z_offset + D)
///   weight   [D]         the stream dtype
///   returns  [..., D]    the compute dtype; arithmetic and rstd are in the stream dtype
/// `group_size` divides D and is at most 8192; 0 means D, one group. Saves x, z, weight and rstd. The gradient of
/// weight is a sum over fixed blocks of rows. Throws ArgumentError if shapes or dtypes do not fit, for columns beyond
/// the row, and if groups do not divide D. Source: Dao & Gu 2024, section 7 (the norm behind the scan of Mamba-2);
/// state-spaces/mamba, mamba_ssm/ops/triton/layernorm_gated.py.
Tensor gated_rms_norm(const Context& ctx, const Tensor& x, const Tensor& z, std::int64_t z_offset, const Tensor& weight,
                      bool norm_before_gate = false, std::int64_t group_size = 0, double eps = 1e-5);

}  // namespace graft
