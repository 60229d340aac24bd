#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

/// Most states a head can have.
inline constexpr std::int64_t kSsdMaxState = 256;

/// Steps of a chunk. Within a chunk all pairs of steps are taken at once, as in attention; between chunks a state
/// is handed on.
inline constexpr std::int64_t kSsdChunk = 128;

[[nodiscard]] constexpr std::int64_t ssd_chunks(std::int64_t tokens) { return ceil_div(tokens, kSsdChunk); }

/// Heads whose contributions to the gradients of B and C are added up before they are written; a divisor of the heads
/// of a group, and a function of the shape alone, so that results do not depend on the machine.
[[nodiscard]] constexpr std::int64_t ssd_head_block(std::int64_t heads, std::int64_t groups) {
  const std::int64_t together = heads / groups;
  for (std::int64_t count = std::min<std::int64_t>(together, 8); count > 1; --count) {
    if (together % count == 0) return count;
  }
  return 1;
}

/// What forward and backward read. B the batch, T steps, H heads of P channels, G groups, N states a channel.
struct SsdSource {
  ConstView xbc;    // [B, T, row]: x in columns x_offset ... of H P, B in b_offset ... of G N, C in c_offset ... of G N
  ConstView dt;     // [B, T, dt_row]: columns dt_offset ... of H
  ConstView a_log;  // [H]
  ConstView dt_bias;  // [H] or null
  ConstView skip;     // [H], [H, P] or null
  ConstView z;        // [B, T, z_row] or null: columns z_offset ... of H P
  ConstView initial;  // [B, H, P, N] or null: zero
  std::int64_t x_offset = 0, b_offset = 0, c_offset = 0, dt_offset = 0, z_offset = 0;
  std::int64_t heads = 1, head_dim = 1, groups = 1, state = 1;
  double dt_min = 0;
  double dt_max = std::numeric_limits<double>::infinity();
};

struct SsdForward {
  SsdSource in;
  View y;            // [B, T, H P]
  View states;       // [B, ssd_chunks(T), H, P, N]: the state before each chunk; null with one chunk
  View final_state;  // [B, H, P, N] or null
};

struct SsdBackward {
  SsdSource in;
  ConstView dy;           // [B, T, H P]; null: only the final state has a gradient
  ConstView dfinal;       // [B, H, P, N] or null
  ConstView states;       // as forward left them; null with one chunk
  View dstates;           // [B, ssd_chunks(T), H, P, N] scratch: gradient of the state after each chunk; null with one
  View partial_bc;        // [B, T, H / ssd_head_block(H, G), 2, N] scratch
  View partial_heads;     // [B, ssd_chunks(T), 2, H] scratch: of A, of dt_bias
  View partial_skip;      // [B, ssd_chunks(T), H] or [B, ssd_chunks(T), H P], as skip: scratch; null if dskip is absent
  GradTarget dx, db, dc;  // [B, T, row]: columns of x, of B, of C
  GradTarget ddt;         // [B, T, dt_row]: H columns from dt_offset
  GradTarget da_log;      // [H]
  GradTarget ddt_bias;    // [H]
  GradTarget dskip;       // as skip
  GradTarget dz;          // [B, T, z_row]: H P columns from z_offset
  GradTarget dinitial;    // [B, H, P, N]
};

inline constinit Kernel<SsdForward> ssd_forward{"ssd_forward"};
inline constinit Kernel<SsdBackward> ssd_backward{"ssd_backward"};

struct SsdInputs {
  Tensor xbc;                       // [B, T, row], packed: x, B and C
  std::int64_t x_offset = 0;        // first column of x in xbc, of H P
  std::int64_t b_offset = 0;        // first column of B in xbc, of G N
  std::int64_t c_offset = 0;        // first column of C in xbc, of G N
  Tensor dt;                        // [B, T, dt_row], packed: step sizes before bias and softplus
  std::int64_t dt_offset = 0;       // first column of dt, of H
  Tensor a_log;                     // [H]: A = -exp(a_log)
  std::int64_t heads = 1;           // H
  std::int64_t head_dim = 1;        // P
  std::int64_t groups = 1;          // G, divides H: heads of a group share B and C
  std::int64_t state = 1;           // N
  Tensor dt_bias = Tensor();        // [H] or empty
  Tensor skip = Tensor();           // [H], [H, P] or empty
  Tensor z = Tensor();              // [B, T, z_row], packed, or empty: no gate
  std::int64_t z_offset = 0;        // first column of the gate in z, of H P
  Tensor initial_state = Tensor();  // [B, H, P, N] or empty: zero
  bool want_final_state = false;    // whether the state after the last step is returned
  double dt_min = 0;                // step sizes are clamped to [dt_min, dt_max] after softplus
  double dt_max = std::numeric_limits<double>::infinity();
};

struct Ssd {
  Tensor y;            // [B, T, H P]
  Tensor final_state;  // [B, H, P, N], or empty if it was not asked for
};

/// The state-space dual of Mamba-2: for every sequence and head, with x_t [P], B_t and C_t [N] of the head's group and
/// a state S [P, N],
///   dt_t  = clamp(softplus(dt_t + dt_bias), dt_min, dt_max)     softplus(v) = log(1 + exp v), v for v > 20
///   S_t   = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,   A = -exp(a_log)
///   y_t   = S_t C_t + skip x_t,   out_t = y_t silu(z_t)
///   xbc, dt, z          [B, T, row]   the compute dtype; x, B, C, dt and z are columns of these packed tensors
///   a_log, dt_bias      [H]           the stream dtype
///   skip                [H] or [H, P] the stream dtype
///   initial_state       [B, H, P, N]  the stream dtype; N at most 256
///   returns             y [B, T, H P] the compute dtype; final_state [B, H, P, N] the stream dtype
/// Computed in chunks of 128 steps: inside one, y_i = sum_{j <= i} (C_i . B_j) exp(c_i - c_j) dt_j x_j with c the
/// inclusive sums of dt A; states pass between chunks in the stream dtype. In bf16 the products within a chunk have
/// bfloat16 operands and float32 sums.
/// Saves its inputs and, with several chunks, the states between them. Sums over heads, steps and sequences in the
/// gradients have a fixed order. Gradients reach all tensors, the initial state included, from y and from the final
/// state.
/// Throws ArgumentError if shapes do not fit together, if columns lie outside a packed tensor or overlap, if groups do
/// not divide heads, if dt_min > dt_max, or if a dtype does not fit the precision.
/// Source: Dao & Gu 2024, sections 5-6 (algorithm 1 and its dual form); state-spaces/mamba,
/// mamba_ssm/ops/triton/ssd_combined.py.
Ssd ssd(const Context& ctx, const SsdInputs& inputs);

}  // namespace graft
