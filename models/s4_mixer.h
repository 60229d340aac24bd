#pragma once

#include <cstdint>
#include <string>

#include "models/linear.h"
#include "models/mixer.h"
#include "ops/s4d.h"

namespace graft {

/// The parameters of a diagonal state-space layer with `channels` channels and real state size `state` (half as
/// many complex modes): c, log_dt, log_a_real, a_imag, skip.
/// Starts as S4D-Lin: c ~ N(0, 1/2) in both parts, dt = exp(U(ln 1e-3, ln 0.1)), A = -1/2 + i pi m, skip ~ N(0, 1).
/// Source: Gu, Gupta, Goel & Re 2022, section 4; krafton-ai/mambaformer-icl, s4d.py.
struct S4dLayer {
  S4dLayer() = default;
  S4dLayer(ParameterStore& store, const std::string& scope, std::int64_t channels, std::int64_t state);
  [[nodiscard]] S4dParameters parameters(const Context& ctx) const;
  /// Forward operations of one sequence by the recurrence: per mode 14, per channel 2 for the skip.
  [[nodiscard]] double forward_flops(std::int64_t tokens) const;

  std::int64_t channels = 0, modes = 0;
  Param c, log_dt, log_a_real, a_imag, skip;
};

/// The S4D layer: GLU(W gelu(K * u + skip u) + b), gelu in its erf form.
/// Parameters: s4d.*, out.weight [2D, D], out.bias.
class S4Mixer final : public Mixer {
 public:
  S4Mixer(ParameterStore& store, const std::string& scope, const ModelConfig& config);
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const override;
  [[nodiscard]] MixerState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const override;
  [[nodiscard]] Tensor extend(const Context& ctx, const Tensor& x, const MixerState& state,
                              const Tensor& length) const override;
  [[nodiscard]] double forward_flops(std::int64_t tokens) const override;

 private:
  std::int64_t width_;
  S4dLayer layer_;
  Linear out_;
};

/// A Mamba block with S4D in the place of the selective scan: u = silu(conv(a)), out = W_out (dropout(S4D(u)) g), (a,
/// g) = W_in s. The gate g has no activation unless model.s4_mamba_gate says silu; the dropout mask is shared over
/// time. Parameters: in.weight [4D, D], conv.weight [2D, 4], conv.bias, s4d.*, out.weight [D, 2D]. Source:
/// krafton-ai/mambaformer-icl.
class S4MambaMixer final : public Mixer {
 public:
  S4MambaMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
               const BlockPosition& position);
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const override;
  [[nodiscard]] MixerState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const override;
  [[nodiscard]] Tensor extend(const Context& ctx, const Tensor& x, const MixerState& state,
                              const Tensor& length) const override;
  [[nodiscard]] double forward_flops(std::int64_t tokens) const override;

 private:
  static constexpr std::int64_t kConvWidth = 4;
  std::int64_t width_;
  std::int64_t inner_;
  std::int64_t index_;  // of the block: its dropout draws are its own
  double dropout_;
  S4dGateActivation gate_;
  Linear in_;
  Param conv_weight_;
  Param conv_bias_;
  S4dLayer layer_;
  Linear out_;
};

}  // namespace graft
