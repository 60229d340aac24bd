#include "models/mamba_mixer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/mixer_state.h"
#include "models/ssm_init.h"
#include "ops/causal_conv1d.h"
#include "ops/columns.h"
#include "ops/decode_conv1d.h"
#include "ops/decode_scan.h"
#include "ops/selective_scan.h"

namespace graft {
namespace {

void check_state(const ModelConfig& config, SettingMistakes& mistakes) {
  if (config.state <= kSelectiveScanMaxState) return;
  mistakes.add({"model.state"}, fmt::format("got {}, expected at most {}, what a selective scan takes", config.state,
                                            kSelectiveScanMaxState));
}

const RegisterMixer registered{{"M", "mamba", "Mamba: gated selective state space with a short convolution",
                                [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                   const BlockPosition& position) -> std::unique_ptr<Mixer> {
                                  return std::make_unique<MambaMixer>(store, scope, config, position);
                                },
                                check_state}};

}  // namespace

Initializer step_size_bias_init() {
  return [](const Draw& draw, std::int64_t index) {
    const double step = std::max(1e-4, std::exp(log_step_size(draw, index)));
    return step + std::log(-std::expm1(-step));
  };
}

MambaMixer::MambaMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                       const BlockPosition& position)
    : width_(config.width), inner_(2 * config.width), state_(config.state), rank_(ceil_div(config.width, 16)) {
  const ParameterOptions no_decay{.decay = false};
  in_ = Linear(store, scope + ".in", width_, 2 * inner_, without_bias(init::uniform_fan_in(width_)), {.bias = false});
  conv_weight_ = store.add(scope, "conv.weight", {inner_, kConvWidth}, init::uniform_fan_in(kConvWidth));
  conv_bias_ = store.add(scope, "conv.bias", {inner_}, init::uniform_fan_in(kConvWidth), no_decay);
  x_ = Linear(store, scope + ".x", inner_, rank_ + 2 * state_, without_bias(init::uniform_fan_in(inner_)),
              {.bias = false, .pad_out = true});
  dt_ = Linear(store, scope + ".dt", rank_, inner_, without_bias(init::uniform_fan_in(rank_)),
               {.bias = false, .pad_in = true});
  dt_bias_ = store.add(scope, "dt.bias", {inner_}, step_size_bias_init(), no_decay);
  a_log_ = store.add(scope, "a_log", {inner_, state_}, [n = state_](const Draw&, std::int64_t index) {
    return std::log(static_cast<double>(index % n + 1));
  });
  skip_ = store.add(scope, "skip", {inner_}, init::constant(1));
  out_ = Linear(store, scope + ".out", inner_, width_, ssm_output_init(inner_, position), {.bias = false});
}

SelectiveScanInputs MambaMixer::scan_inputs(const Context& ctx, const Tensor& packed, const Tensor& u) const {
  const Tensor selection = x_(ctx, u);  // [B, T, rank | state | state]
  const Tensor delta = dt_(ctx, columns(ctx, selection, 0, rank_));
  SelectiveScanInputs inputs;
  inputs.u = u;
  inputs.delta = delta;
  inputs.a_log = a_log_.master(ctx);
  inputs.bc = selection;
  inputs.b_offset = rank_;
  inputs.c_offset = rank_ + state_;
  inputs.skip = skip_.master(ctx);
  inputs.z = packed;
  inputs.z_offset = inner_;
  inputs.delta_bias = dt_bias_.master(ctx);
  return inputs;
}

Tensor MambaMixer::operator()(const Context& ctx, const Tensor& x) const {
  const Tensor packed = in_(ctx, x);  // [B, T, 2 inner]: the convolved half, the gate
  const Tensor u = causal_conv1d(ctx, packed, 0, inner_, conv_weight_.master(ctx), conv_bias_.master(ctx), true);
  return out_(ctx, selective_scan(ctx, scan_inputs(ctx, packed, u)));
}

MixerState MambaMixer::make_state(const Context& ctx, std::int64_t batch, std::int64_t) const {
  return {{empty_state(ctx, {batch, kConvWidth - 1, inner_}, ctx.compute_dtype(), "convolution state"),
           empty_state(ctx, {batch, inner_, state_}, ctx.stream_dtype(), "scan state")}};
}

Tensor MambaMixer::extend(const Context& ctx, const Tensor& x, const MixerState& state, const Tensor&) const {
  require_parts(state, 2, "mamba");
  const Tensor packed = in_(ctx, x);
  const Tensor u = extend_causal_conv1d(ctx, packed, 0, inner_, conv_weight_.master(ctx), conv_bias_.master(ctx), true,
                                        state.parts[0]);
  return out_(ctx, extend_selective_scan(ctx, scan_inputs(ctx, packed, u), state.parts[1]));
}

double MambaMixer::forward_flops(std::int64_t tokens) const {
  const auto t = static_cast<double>(tokens);
  const auto d = static_cast<double>(width_);
  const auto inner = static_cast<double>(inner_);
  const auto n = static_cast<double>(state_);
  const auto r = static_cast<double>(rank_);
  const double products = 2 * t * (d * 2 * inner + inner * (r + 2 * n) + r * inner + inner * d);
  return products + 2 * static_cast<double>(kConvWidth) * t * inner + (7 * n + 4) * t * inner;
}

double MambaMixer::forward_flops_causal(std::int64_t tokens) const {
  return forward_flops(tokens) + 4 * static_cast<double>(tokens) * static_cast<double>(inner_);
}

}  // namespace graft
