#pragma once

#include <cstdint>
#include <string>

#include "models/linear.h"
#include "models/mixer.h"
#include "ops/ssd.h"

namespace graft {

/// The Mamba-2 mixer: a short causal convolution, a state space with one decay a head, and a gated norm.
///   (z, a, b, c, p) = W_in s,  (x, B, C) = silu(conv(a, b, c)),  dt = softplus(p + b_dt),
///   y = ssd(x, dt, A = -exp(a_log), B, C) + skip x,  out = W_out (norm.weight RMSNorm(y silu(z)))
/// Inner width 2D in H heads of model.head_dim channels; model.groups groups G of heads share B and C of model.state
/// states N; convolution width 4. The mean square of the norm is over the channels of a group (model.gated_norm =
/// "group") or over all of them ("all"); with one group these are the same.
/// Parameters: in.weight [4D + 2GN + H, D], its rows in the order z, x, B, C, dt; conv.weight [2D + 2GN, 4], conv.bias,
/// dt.bias [H], a_log [H], skip [H], norm.weight [2D], out.weight [D, 2D].
/// Throws ArgumentError if head_dim does not divide 2D or groups do not divide H.
/// Source: Dao & Gu 2024, section 7; initialisation as in state-spaces/mamba, mamba_ssm/modules/mamba2.py (A uniform on
/// [1, 16)), with the output projection divided by sqrt(blocks).
class Mamba2Mixer final : public Mixer {
 public:
  Mamba2Mixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
              const BlockPosition& position);
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const override;
  [[nodiscard]] MixerState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const override;
  [[nodiscard]] Tensor extend(const Context& ctx, const Tensor& x, const MixerState& state,
                              const Tensor& length) const override;
  /// The scan by its recurrence, as the in-context-learning study is counted: what T steps one after the other cost.
  [[nodiscard]] double forward_flops(std::int64_t tokens) const override;
  /// The scan by chunks of at most 256 steps with the causal half of their pairs, as the retrieval study is counted.
  [[nodiscard]] double forward_flops_causal(std::int64_t tokens) const override;

 private:
  static constexpr std::int64_t kConvWidth = 4;
  /// x, B and C together: what is convolved.
  [[nodiscard]] std::int64_t convolved() const { return inner_ + 2 * groups_ * state_; }
  /// What the scan reads; `packed` holds the step sizes, xbc is its convolved part.
  [[nodiscard]] SsdInputs scan_inputs(const Context& ctx, const Tensor& packed, const Tensor& xbc) const;
  /// The gated norm of the scan's result y and the output projection; `packed` holds the gate.
  [[nodiscard]] Tensor output(const Context& ctx, const Tensor& packed, const Tensor& y) const;
  /// Projections and convolution.
  [[nodiscard]] double linear_flops(std::int64_t tokens) const;
  std::int64_t width_;
  std::int64_t inner_;
  std::int64_t head_dim_;
  std::int64_t heads_;
  std::int64_t groups_;
  std::int64_t state_;
  std::int64_t norm_group_;  // channels that share a mean square
  Linear in_;
  Param conv_weight_;
  Param conv_bias_;
  Param dt_bias_;
  Param a_log_;
  Param skip_;
  Param norm_weight_;
  Linear out_;
};

}  // namespace graft
