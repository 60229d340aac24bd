#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

/// Most states a channel can have.
inline constexpr std::int64_t kSelectiveScanMaxState = 256;

/// Steps between two states that forward keeps for backward: the states before steps 16, 32, ... are saved.
inline constexpr std::int64_t kSelectiveScanTile = 16;

/// How many states of each channel forward saves for a sequence of `tokens` steps.
[[nodiscard]] constexpr std::int64_t selective_scan_checkpoints(std::int64_t tokens) {
  return (tokens - 1) / kSelectiveScanTile;
}

/// Channels whose contributions to the gradients of B and C are added up before they are written: a function of the
/// shape alone, so that results do not depend on the machine. Smaller where there are few channels in all.
[[nodiscard]] constexpr std::int64_t selective_scan_channel_block(std::int64_t batch, std::int64_t width,
                                                                  std::int64_t state) {
  if (state <= 4) return 128;
  if (state <= 16) return batch * ((width + 127) / 128) < 256 ? 64 : 128;
  if (state <= 32) return 64;
  if (state <= 64) return 32;
  return 8;
}

/// What forward and backward read. B the batch, T steps, D channels, N states a channel.
struct SelectiveScanSource {
  ConstView u;           // [B, T, D]
  ConstView delta;       // [B, T, D]
  ConstView a_log;       // [D, N]
  ConstView bc;          // [B, T, row]: B in columns b_offset ..., C in columns c_offset ...
  ConstView skip;        // [D] or null
  ConstView z;           // [B, T, zrow] or null
  ConstView delta_bias;  // [D] or null
  std::int64_t b_offset = 0, c_offset = 0, z_offset = 0;
  bool softplus = true;
};

struct SelectiveScanForward {
  SelectiveScanSource in;
  View y;            // [B, T, D]
  View checkpoints;  // [B, selective_scan_checkpoints(T), D, N] or null
  View final_state;  // [B, D, N] or null
};

struct SelectiveScanBackward {
  SelectiveScanSource in;
  ConstView dy;             // [B, T, D]
  ConstView checkpoints;    // [B, selective_scan_checkpoints(T), D, N]; null if T <= 16
  View partial_bc;          // [B, T, channel blocks, 2, N] scratch
  View partial_a;           // [B, D, N] scratch
  View partial_channels;    // [B, 2, D] scratch: of skip, of delta_bias
  GradTarget du, ddelta;    // [B, T, D]
  GradTarget da_log;        // [D, N]
  GradTarget db, dc;        // [B, T, row]: N columns from b_offset and from c_offset
  GradTarget dz;            // [B, T, zrow]: D columns from z_offset
  GradTarget dskip, dbias;  // [D]
};

inline constinit Kernel<SelectiveScanForward> selective_scan_forward{"selective_scan_forward"};
inline constinit Kernel<SelectiveScanBackward> selective_scan_backward{"selective_scan_backward"};

struct SelectiveScanInputs {
  Tensor u;                       // [B, T, D]
  Tensor delta;                   // [B, T, D], before bias and softplus
  Tensor a_log;                   // [D, N]: A = -exp(a_log)
  Tensor bc;                      // [B, T, row], packed
  std::int64_t b_offset = 0;      // first column of B in bc, of N
  std::int64_t c_offset = 0;      // first column of C in bc, of N
  Tensor skip = Tensor();         // [D] or empty
  Tensor z = Tensor();            // [B, T, zrow], packed, or empty: no gate
  std::int64_t z_offset = 0;      // first column of the gate in z, of D
  Tensor delta_bias = Tensor();   // [D] or empty
  bool softplus = true;           // else the step size is delta + delta_bias itself
  Tensor final_state = Tensor();  // [B, D, N] or empty: the state after the last step is written here
};

/// The selective scan of Mamba with its gate: for every sequence, channel c and state n, from h = 0,
///   dt_t     = softplus(delta_t[c] + delta_bias[c])          softplus(v) = log(1 + exp v), v for v > 20
///   h_t[n]   = exp(dt_t A[c, n]) h_{t-1}[n] + dt_t B_t[n] u_t[c],   A = -exp(a_log)
///   y_t[c]   = sum_n C_t[n] h_t[n] + skip[c] u_t[c]
///   out_t[c] = y_t[c] silu(z_t[c])
///   u, delta                 [B, T, D]     the compute dtype
///   bc, z                    [B, T, row]   the compute dtype; B, C and z are columns of these packed tensors
///   a_log                    [D, N]        the stream dtype; N at most 256
///   skip, delta_bias         [D]           the stream dtype
///   final_state              [B, D, N]     the stream dtype; an output without gradient, for continuing step by step
///   returns                  [B, T, D]     the compute dtype; all arithmetic is in the stream dtype
/// Saves its inputs and the state before every 16th step, from which backward recomputes the others.
/// Sums over channels, steps and sequences in the gradients have a fixed order.
/// Throws ArgumentError if shapes do not fit together, if columns lie outside a packed tensor, if those of B and C
/// overlap, or if a dtype does not fit the precision.
/// Source: Gu & Dao 2023, algorithm 2 and section 3.3.2 (A discretised exactly, B by Euler's rule);
/// state-spaces/mamba, ops/selective_scan_interface.py, selective_scan_ref.
Tensor selective_scan(const Context& ctx, const SelectiveScanInputs& inputs);

}  // namespace graft
