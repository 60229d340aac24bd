#pragma once

#include <cstdint>
#include <string>

#include "models/linear.h"
#include "models/mixer.h"
#include "ops/selective_scan.h"

namespace graft {

/// The Mamba-1 mixer: a gated branch with a short causal convolution and an input-dependent diagonal state space.
///   (a, g) = W_in s,  u = silu(conv(a)),  (p, B, C) = W_x u,  delta = softplus(W_dt p + b_dt),
///   y = scan(u, delta, A = -exp(a_log), B, C) + skip u,  out = W_out (y silu(g))
/// Inner width 2D, convolution width 4, rank of p ceil(D / 16).
/// Parameters: in.weight [4D, D], conv.weight [2D, 4], conv.bias, x.weight [R + 2N, 2D], dt.weight [2D, R], dt.bias,
/// a_log [2D, N], skip [2D], out.weight [D, 2D].
/// Source: Gu & Dao 2023, section 3.4; initialisation as in state-spaces/mamba, mamba_simple.py, with the output
/// projection divided by sqrt(blocks).
class MambaMixer final : public Mixer {
 public:
  MambaMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config, const BlockPosition& position);
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const override;
  [[nodiscard]] MixerState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const override;
  [[nodiscard]] Tensor extend(const Context& ctx, const Tensor& x, const MixerState& state,
                              const Tensor& length) const override;
  [[nodiscard]] double forward_flops(std::int64_t tokens) const override;
  /// The retrieval study's convention: 4 operations more a channel for skip and gate.
  [[nodiscard]] double forward_flops_causal(std::int64_t tokens) const override;

 private:
  static constexpr std::int64_t kConvWidth = 4;
  /// What the scan reads: u is the convolved half of `packed`, which holds the gate too.
  [[nodiscard]] SelectiveScanInputs scan_inputs(const Context& ctx, const Tensor& packed, const Tensor& u) const;
  std::int64_t width_;
  std::int64_t inner_;
  std::int64_t state_;
  std::int64_t rank_;
  Linear in_;
  Param conv_weight_;
  Param conv_bias_;
  Linear x_;
  Linear dt_;
  Param dt_bias_;
  Param a_log_;
  Param skip_;
  Linear out_;
};

/// The start of a step-size bias: the inverse softplus of max(1e-4, exp(U(ln 1e-3, ln 0.1))).
[[nodiscard]] Initializer step_size_bias_init();

}  // namespace graft
