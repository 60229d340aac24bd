#pragma once

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/s4d.h"

namespace graft {

struct S4dExtension {
  ConstView u;      // [B, n, H]
  ConstView table;  // [M, kS4dTableRows, H], from s4d_modes
  ConstView skip;   // [H]
  ConstView gate;   // [B, n, row] or null
  View state;       // [B, H, M, 2]
  View y;           // [B, n, H]
  S4dLayout layout;
};
inline constinit Kernel<S4dExtension> s4d_extension{"s4d_extension"};

/// s4d() of n further tokens by its recurrence: it starts from x = state instead of 0 and leaves the state after the
/// last of them. A state of zeros stands before the first token of a sequence.
///   u           [B, n, H]     the compute dtype
///   parameters  as for s4d()
///   gate        columns of a packed [B, n, row] in the compute dtype, or none
///   state       [B, H, M, 2]  the stream dtype, real and imaginary part, read and written
///   returns     [B, n, H]     the compute dtype; states and sums are in the stream dtype
/// Throws ArgumentError if a shape or dtype does not fit, or where a tape is recording.
/// Source: as s4d(); krafton-ai/mambaformer-icl, mamba_ssm/modules/s4d.py, step().
[[nodiscard]] Tensor extend_s4d(const Context& ctx, const Tensor& u, const S4dParameters& parameters,
                                const S4dGate& gate, const Tensor& state);

}  // namespace graft
