#pragma once

#include <cstdint>
#include <limits>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/selective_scan.h"
#include "ops/ssd.h"

namespace graft {

/// One recurrence for the scans of Mamba and of Mamba-2: C channels of N states. `head_dim` neighbouring channels share
/// a step size, `group` neighbouring channels share B and C. Mamba: 1 and C.
struct ScanExtension {
  ConstView x;      // [B, n, row]: C columns from x_offset
  ConstView dt;     // [B, n, row]: C / head_dim columns from dt_offset
  ConstView bc;     // [B, n, row]: C / group * N columns from b_offset, as many from c_offset
  ConstView a_log;  // [C, N] or [C / head_dim]
  ConstView bias;   // [C / head_dim] or null
  ConstView skip;   // [C / skip_share] or null
  ConstView z;      // [B, n, row] or null: C columns from z_offset
  View state;       // [B, C, N]
  View y;           // [B, n, C]
  std::int64_t x_offset = 0, dt_offset = 0, b_offset = 0, c_offset = 0, z_offset = 0;
  std::int64_t head_dim = 1, group = 1, skip_share = 1;
  bool softplus = true;
  double dt_min = 0;
  double dt_max = std::numeric_limits<double>::infinity();

  [[nodiscard]] GRAFT_HD std::int64_t channels() const { return y.shape[2]; }
  [[nodiscard]] GRAFT_HD std::int64_t states() const { return state.shape.columns(); }
  [[nodiscard]] GRAFT_HD bool decay_a_state() const { return a_log.shape.rank() == 2; }
};
inline constinit Kernel<ScanExtension> scan_extension{"scan_extension"};

/// selective_scan() of n further tokens: it starts from h = state instead of 0 and leaves the state after the last of
/// them. A state of zeros stands before the first token of a sequence.
///   inputs   as for selective_scan(), with n for T and without final_state
///   state    [B, D, N]  the stream dtype, read and written
///   returns  [B, n, D]  the compute dtype; all arithmetic is in the stream dtype
/// Throws ArgumentError if a shape or dtype does not fit, or where a tape is recording.
/// Source: as selective_scan(); state-spaces/mamba, mamba_ssm/modules/mamba_simple.py, step().
[[nodiscard]] Tensor extend_selective_scan(const Context& ctx, const SelectiveScanInputs& inputs, const Tensor& state);

/// ssd() of n further tokens, as the recurrence in its definition, step by step: it starts from S = state and leaves
/// the state after the last of them. A state of zeros stands before the first token of a sequence.
///   inputs   as for ssd(), with n for T and without initial_state and want_final_state
///   state    [B, H, P, N]  the stream dtype, read and written
///   returns  [B, n, H P]   the compute dtype; all arithmetic is in the stream dtype, in bf16 too
/// Throws ArgumentError if a shape or dtype does not fit, or where a tape is recording.
/// Source: as ssd(); state-spaces/mamba, mamba_ssm/modules/mamba2.py, step().
[[nodiscard]] Tensor extend_ssd(const Context& ctx, const SsdInputs& inputs, const Tensor& state);

}  // namespace graft
