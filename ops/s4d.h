#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

/// What is trained in a diagonal state-space layer; all in the stream dtype.
struct S4dParameters {
  Tensor c;           // [H, M, 2] real and imaginary part
  Tensor log_dt;      // [H]
  Tensor log_a_real;  // [H, M]
  Tensor a_imag;      // [H, M]
  Tensor skip;        // [H]; s4d_kernel() does not read it
};

enum class S4dGateActivation : std::uint8_t { None, Silu };

/// A gate on the output: columns [offset, offset + H) of a packed projection. Empty `packed`: no gate.
struct S4dGate {
  Tensor packed;  // [B, T, row] the compute dtype
  std::int64_t offset = 0;
  S4dGateActivation activation = S4dGateActivation::None;
};

inline constexpr std::int64_t kS4dMaxModes = 64;

/// Into how many pieces of consecutive tokens a sequence is cut, so that few sequences of few channels still fill a
/// GPU: a function of the shape alone.
[[nodiscard]] constexpr std::int64_t s4d_chunks(std::int64_t batch, std::int64_t tokens, std::int64_t channels) {
  const std::int64_t wanted = std::clamp<std::int64_t>(16384 / (batch * channels), 1, 32);
  const std::int64_t possible = std::max<std::int64_t>(tokens / 64, 1);
  const std::int64_t chunk = ceil_div(tokens, std::min(wanted, possible));
  return ceil_div(tokens, chunk);
}

/// Sequences (or chunks of them) whose parameter gradients are added before they leave the multiprocessor.
inline constexpr std::int64_t kS4dRowParts = 4;

/// What the kernels know of the shape.
struct S4dLayout {
  std::int64_t batch = 1;
  std::int64_t tokens = 1;
  std::int64_t channels = 1;
  int modes = 1;
  int chunks = 1;
  bool impulse = false;  // u is 1 at token 0 and 0 after it; y and dy are [H, T] instead of [B, T, H]
  S4dGateActivation activation = S4dGateActivation::None;
  std::int64_t gate_row = 0;
  std::int64_t gate_offset = 0;

  [[nodiscard]] GRAFT_HD std::int64_t chunk_tokens() const { return ceil_div(tokens, chunks); }
  [[nodiscard]] GRAFT_HD std::int64_t token_stride() const { return impulse ? 1 : channels; }
  [[nodiscard]] GRAFT_HD std::int64_t channel_stride() const { return impulse ? tokens : 1; }
  /// Index of token 0 of a channel in u, y and their gradients.
  [[nodiscard]] GRAFT_HD std::int64_t first(std::int64_t prompt, std::int64_t channel) const {
    return prompt * tokens * channels + channel * channel_stride();
  }
  /// The same in the gate.
  [[nodiscard]] GRAFT_HD std::int64_t gate_first(std::int64_t prompt, std::int64_t channel) const {
    return prompt * tokens * gate_row + gate_offset + channel;
  }
  /// Values of a channel in a row of the partial sums: for each mode two complex sums, then the skip's.
  [[nodiscard]] GRAFT_HD int columns() const { return 4 * modes + 1; }
  /// Rows of the partial sums.
  [[nodiscard]] GRAFT_HD std::int64_t rows() const { return ceil_div(batch * chunks, kS4dRowParts); }
};

/// Where a mode's numbers stand in the table [M, kS4dTableRows, H] that s4d_modes writes.
enum S4dTableRow : std::uint8_t {
  kS4dDecayRe,
  kS4dDecayIm,
  kS4dOutputRe,
  kS4dOutputIm,
  kS4dChunkDecayRe,
  kS4dChunkDecayIm,
  kS4dChunkSlopeRe,
  kS4dChunkSlopeIm,
  kS4dTableRows,
};

struct S4dModes {
  ConstView c, log_dt, log_a_real, a_imag;
  View table;  // [M, kS4dTableRows, H]
  S4dLayout layout;
};
struct S4dForward {
  ConstView u;      // [B, T, H], or null with layout.impulse
  ConstView table;  // [M, kS4dTableRows, H]
  ConstView skip;   // [H] or null
  ConstView gate;   // [B, T, row] or null
  View states;      // [B * chunks, M, 2, H] scratch, or null with one chunk
  View y;           // [B, T, H]
  S4dLayout layout;
};
struct S4dBackward {
  ConstView dy, u, table, skip, gate;
  ConstView c, log_dt, log_a_real, a_imag;
  View states;   // [B * chunks, M, 4, H] scratch, or null with one chunk
  View partial;  // [rows, columns, H] scratch, or null if no parameter wants a gradient
  GradTarget du, dgate;
  GradTarget dc, dlog_dt, dlog_a_real, da_imag, dskip;
  S4dLayout layout;
};
inline constinit Kernel<S4dModes> s4d_modes{"s4d_modes"};
inline constinit Kernel<S4dForward> s4d_forward{"s4d_forward"};
inline constinit Kernel<S4dBackward> s4d_backward{"s4d_backward"};

/// A diagonal state-space layer (S4D), the convolution of every channel with a kernel of its own, causal:
///   y[t] = (sum_{l <= t} K[l] u[t - l] + skip u[t]) act(gate[t]),
///   K[l] = 2 Re sum_m Ct_m e^(l dt A_m),  Ct_m = C_m (e^(dt A_m) - 1) / A_m,
///   dt = exp(log_dt),  A = -exp(log_a_real) + i a_imag.
///   u           [B, T, H]   the compute dtype
///   parameters  c [H, M, 2], log_dt [H], log_a_real [H, M], a_imag [H, M], skip [H]  the stream dtype; M at most 64
///   gate        columns of a packed [B, T, row] in the compute dtype, with act = identity or silu; or none
///   returns     [B, T, H]   the compute dtype; states and sums are in the stream dtype
/// Computed as the recurrence x_t = e^(dt A) x_{t-1} + u_t, y_t = 2 Re sum_m Ct_m x_t: O(T) a channel, no FFT. e^(dt A)
/// and Ct are taken in double. Saves u, the gate and what is O(H M); no state is stored. Backward: du is the same
/// recurrence over dv = dy act(gate) from the last token to the first; gradients of parameters are sums of dv_t x_t and
/// dv_t z_t, z_t = dx_t / d(e^(dt A)) = e^(dt A) z_{t-1} + x_{t-1} being carried along with x; they are added over
/// fixed groups of sequences, then over the groups. dgate goes to its columns of the packed gradient.
/// Throws ArgumentError if a shape or dtype does not fit.
/// Source: Gu, Gupta, Goel & Re 2022 (S4D), sections 3-4; krafton-ai/mambaformer-icl, mamba_ssm/modules/s4d.py.
[[nodiscard]] Tensor s4d(const Context& ctx, const Tensor& u, const S4dParameters& parameters,
                         const S4dGate& gate = {});

/// The convolution kernel K [H, T] of s4d() itself, in the stream dtype, with gradients of all parameters but skip.
[[nodiscard]] Tensor s4d_kernel(const Context& ctx, const S4dParameters& parameters, std::int64_t tokens);

}  // namespace graft
