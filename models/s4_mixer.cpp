#include "models/s4_mixer.h"

#include <cmath>
#include <numbers>

#include "engine/require.h"
#include "models/mixer_state.h"
#include "models/ssm_init.h"
#include "ops/activation.h"
#include "ops/causal_conv1d.h"
#include "ops/decode_conv1d.h"
#include "ops/decode_s4d.h"
#include "ops/dropout.h"
#include "ops/glu.h"

namespace graft {
namespace {

/// Modes come in conjugate pairs, so that half as many are stored.
void check_state(const ModelConfig& config, SettingMistakes& mistakes) {
  constexpr std::int64_t kMost = 2 * kS4dMaxModes;
  if (config.state % 2 == 0 && config.state <= kMost) return;
  mistakes.add({"model.state"},
               fmt::format("got {}, expected an even number in [2, {}]: an S4D layer's modes come in conjugate pairs",
                           config.state, kMost));
}

const RegisterMixer s4{
    {"S", "s4", "S4D: a diagonal state-space convolution, GELU and a gated linear map",
     [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
        const BlockPosition&) -> std::unique_ptr<Mixer> { return std::make_unique<S4Mixer>(store, scope, config); },
     check_state}};
const RegisterMixer s4_mamba{{"Sm", "s4_mamba", "a Mamba block with S4D in the place of the selective scan",
                              [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                 const BlockPosition& position) -> std::unique_ptr<Mixer> {
                                return std::make_unique<S4MambaMixer>(store, scope, config, position);
                              },
                              check_state}};

// They have no effect on models without S4-Mamba blocks.
const RegisterSettings s4_mamba_keys{{
    .table = "model",
    .owner = "",
    .doc = "details of S4-Mamba blocks",
    .keys =
        {
            SettingKey::number("model.s4_mamba_dropout", "dropout of S4-Mamba blocks, its mask shared over time")
                .with_default(0.1)
                .at_least(0)
                .below(1),
            SettingKey::text("model.s4_mamba_gate", "activation of the gate of S4-Mamba blocks")
                .with_default("linear")
                .one_of({"linear", "silu"}),
        },
}};

const RegisterSettings s4_settings{{
    .table = "model",
    .owner = "s4",
    .doc = "S4D layers, two a layer, no positions; pattern \"S*(2 layers)\"",
}};
const RegisterPreset s4_preset{{"s4", [](ModelConfig& config) {
                                  config.pattern = fmt::format("S*{}", 2 * config.layers);
                                  config.positions = Positions::None;
                                }}};

const RegisterSettings s4_mamba_settings{{
    .table = "model",
    .owner = "s4_mamba",
    .doc = "Mamba blocks with S4D instead of the selective scan, two a layer, no positions; pattern \"Sm*(2 layers)\"",
}};
const RegisterPreset s4_mamba_preset{{"s4_mamba", [](ModelConfig& config) {
                                        config.pattern = fmt::format("Sm*{}", 2 * config.layers);
                                        config.positions = Positions::None;
                                      }}};

}  // namespace

S4dLayer::S4dLayer(ParameterStore& store, const std::string& scope, std::int64_t layer_channels, std::int64_t state)
    : channels(layer_channels), modes(state / 2) {
  require(state >= 2 && state % 2 == 0, "s4: model.state = {}, expected an even number: modes come in conjugate pairs",
          state);
  const ParameterOptions no_decay{.decay = false};
  c = store.add(scope, "c", {channels, modes, 2}, init::normal(std::sqrt(0.5)), no_decay);
  log_dt = store.add(scope, "log_dt", {channels}, log_step_size, no_decay);
  log_a_real = store.add(scope, "log_a_real", {channels, modes}, init::constant(std::log(0.5)), no_decay);
  a_imag = store.add(
      scope, "a_imag", {channels, modes},
      [m = modes](const Draw&, std::int64_t index) { return std::numbers::pi * static_cast<double>(index % m); },
      no_decay);
  skip = store.add(scope, "skip", {channels}, init::normal(1), no_decay);
}

S4dParameters S4dLayer::parameters(const Context& ctx) const {
  return {c.master(ctx), log_dt.master(ctx), log_a_real.master(ctx), a_imag.master(ctx), skip.master(ctx)};
}

double S4dLayer::forward_flops(std::int64_t tokens) const {
  return static_cast<double>(14 * modes + 2) * static_cast<double>(tokens) * static_cast<double>(channels);
}

S4Mixer::S4Mixer(ParameterStore& store, const std::string& scope, const ModelConfig& config)
    : width_(config.width),
      layer_(store, scope + ".s4d", config.width, config.state),
      out_(store, scope + ".out", config.width, 2 * config.width, default_linear_init(config.width)) {}

Tensor S4Mixer::operator()(const Context& ctx, const Tensor& x) const {
  return glu(ctx, out_(ctx, activation(ctx, s4d(ctx, x, layer_.parameters(ctx)), Activation::GeluErf)));
}

MixerState S4Mixer::make_state(const Context& ctx, std::int64_t batch, std::int64_t) const {
  return {{empty_state(ctx, {batch, layer_.channels, layer_.modes, 2}, ctx.stream_dtype(), "s4d state")}};
}

Tensor S4Mixer::extend(const Context& ctx, const Tensor& x, const MixerState& state, const Tensor&) const {
  require_parts(state, 1, "s4");
  const Tensor y = extend_s4d(ctx, x, layer_.parameters(ctx), {}, state.parts[0]);
  return glu(ctx, out_(ctx, activation(ctx, y, Activation::GeluErf)));
}

double S4Mixer::forward_flops(std::int64_t tokens) const {
  const auto d = static_cast<double>(width_);
  return layer_.forward_flops(tokens) + 4 * static_cast<double>(tokens) * d * d;
}

S4MambaMixer::S4MambaMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                           const BlockPosition& position)
    : width_(config.width),
      inner_(2 * config.width),
      index_(position.index),
      dropout_(config.settings.has("model.s4_mamba_dropout") ? config.settings.number("model.s4_mamba_dropout") : 0.1),
      gate_(config.settings.has("model.s4_mamba_gate") && config.settings.text("model.s4_mamba_gate") == "silu"
                ? S4dGateActivation::Silu
                : S4dGateActivation::None) {
  in_ = Linear(store, scope + ".in", width_, 2 * inner_, without_bias(init::uniform_fan_in(width_)), {.bias = false});
  conv_weight_ = store.add(scope, "conv.weight", {inner_, kConvWidth}, init::uniform_fan_in(kConvWidth));
  conv_bias_ = store.add(scope, "conv.bias", {inner_}, init::uniform_fan_in(kConvWidth), {.decay = false});
  layer_ = S4dLayer(store, scope + ".s4d", inner_, config.state);
  out_ = Linear(store, scope + ".out", inner_, width_, ssm_output_init(inner_, position), {.bias = false});
}

Tensor S4MambaMixer::operator()(const Context& ctx, const Tensor& x) const {
  const Tensor packed = in_(ctx, x);  // [B, T, 2 inner]: the convolved half, the gate
  const Tensor u = causal_conv1d(ctx, packed, 0, inner_, conv_weight_.master(ctx), conv_bias_.master(ctx), true);
  // The mask multiplies before or after the gate alike.
  const Tensor gated = s4d(ctx, u, layer_.parameters(ctx), {packed, inner_, gate_});
  return out_(ctx, dropout(ctx, gated, dropout_, static_cast<std::uint32_t>(index_), true));
}

MixerState S4MambaMixer::make_state(const Context& ctx, std::int64_t batch, std::int64_t) const {
  return {{empty_state(ctx, {batch, kConvWidth - 1, inner_}, ctx.compute_dtype(), "convolution state"),
           empty_state(ctx, {batch, layer_.channels, layer_.modes, 2}, ctx.stream_dtype(), "s4d state")}};
}

Tensor S4MambaMixer::extend(const Context& ctx, const Tensor& x, const MixerState& state, const Tensor&) const {
  require_parts(state, 2, "s4_mamba");
  const Tensor packed = in_(ctx, x);
  const Tensor u = extend_causal_conv1d(ctx, packed, 0, inner_, conv_weight_.master(ctx), conv_bias_.master(ctx), true,
                                        state.parts[0]);
  return out_(ctx, extend_s4d(ctx, u, layer_.parameters(ctx), {packed, inner_, gate_}, state.parts[1]));
}

double S4MambaMixer::forward_flops(std::int64_t tokens) const {
  const auto t = static_cast<double>(tokens);
  const auto d = static_cast<double>(width_);
  const auto inner = static_cast<double>(inner_);
  const double gate = t * inner;
  return 2 * t * (d * 2 * inner + inner * d) + 2 * static_cast<double>(kConvWidth) * t * inner +
         layer_.forward_flops(tokens) + gate;
}

}  // namespace graft
