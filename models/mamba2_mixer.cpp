#include "models/mamba2_mixer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/require.h"
#include "models/mamba_mixer.h"
#include "models/mixer_state.h"
#include "models/ssm_init.h"
#include "ops/causal_conv1d.h"
#include "ops/decode_conv1d.h"
#include "ops/decode_scan.h"
#include "ops/gated_rms_norm.h"

namespace graft {
namespace {

constexpr std::int64_t kCountedChunk = 256;  // of the published implementation, for counting

struct Settled {
  std::int64_t inner, head_dim, groups;
  bool norm_by_group;

  [[nodiscard]] std::int64_t norm_group() const { return norm_by_group ? inner / groups : inner; }
};

/// The configuration's values, or the keys' defaults where it was not read from a file.
Settled settled(const ModelConfig& config) {
  const Settings& settings = config.settings;
  return {2 * config.width, settings.has("model.head_dim") ? settings.integer("model.head_dim") : 64,
          settings.has("model.groups") ? settings.integer("model.groups") : 1,
          !settings.has("model.gated_norm") || settings.text("model.gated_norm") == "group"};
}

/// "a divisor of <what>; nearest: 32, 64": the next ones below and above `got`.
std::string divisor_wanted(std::int64_t got, std::int64_t whole, const std::string& what) {
  std::int64_t below = std::min(got, whole), above = got;
  while (whole % below != 0) --below;
  while (above < whole && whole % above != 0) ++above;
  const std::string nearest = above > whole ? fmt::format("{}", below) : fmt::format("{}, {}", below, above);
  return fmt::format("got {}, expected a divisor of {}; nearest: {}", got, what, nearest);
}

void check_keys(const ModelConfig& config, SettingMistakes& mistakes) {
  const Settled keys = settled(config);
  if (config.state > kSsdMaxState) {
    mistakes.add({"model.state"}, fmt::format("got {}, expected at most {}, what the scan of Mamba-2 takes",
                                              config.state, kSsdMaxState));
  }
  if (keys.inner % keys.head_dim != 0) {
    mistakes.add(
        {"model.head_dim", "model.width"},
        divisor_wanted(keys.head_dim, keys.inner, fmt::format("the inner width {} (2 model.width)", keys.inner)));
    return;
  }
  const std::int64_t heads = keys.inner / keys.head_dim;
  if (heads % keys.groups != 0) {
    mistakes.add(
        {"model.groups", "model.head_dim", "model.width"},
        divisor_wanted(keys.groups, heads, fmt::format("the {} heads (2 model.width / model.head_dim)", heads)));
    return;
  }
  if (keys.norm_group() > kGatedRmsNormMaxGroup) {
    mistakes.add({"model.gated_norm", "model.groups", "model.width"},
                 fmt::format("the gated norm is over {} channels, expected at most {}", keys.norm_group(),
                             kGatedRmsNormMaxGroup));
  }
}

const RegisterMixer registered{{"M2", "mamba2", "Mamba-2: heads of state space with a short convolution, a gated norm",
                                [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                   const BlockPosition& position) -> std::unique_ptr<Mixer> {
                                  return std::make_unique<Mamba2Mixer>(store, scope, config, position);
                                },
                                check_keys}};

// They have no effect on models without Mamba-2 blocks.
const RegisterSettings registered_keys{{
    .table = "model",
    .owner = "",
    .doc = "details of Mamba-2 blocks",
    .keys =
        {
            SettingKey::integer("model.head_dim", "channels of a head of Mamba-2 blocks; divides 2 model.width")
                .with_default(64)
                .at_least(1)
                .elsewhere_called({"headdim"}),
            SettingKey::integer("model.groups",
                                "groups of heads that share B and C in Mamba-2 blocks; divides their "
                                "number, 2 model.width / model.head_dim")
                .with_default(1)
                .at_least(1)
                .elsewhere_called({"ngroups", "n_groups"}),
            SettingKey::text("model.gated_norm",
                             "over what the mean square of a Mamba-2 block's gated norm is taken: the channels of each "
                             "group, as in the original code, or all channels, as in Hugging Face's")
                .with_default("group")
                .one_of({"group", "all"}),
        },
}};

}  // namespace

Mamba2Mixer::Mamba2Mixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                         const BlockPosition& position)
    : width_(config.width), inner_(2 * config.width), state_(config.state) {
  const Settled keys = settled(config);
  require(inner_ % keys.head_dim == 0, "mamba2: model.head_dim = {} does not divide the inner width {}", keys.head_dim,
          inner_);
  head_dim_ = keys.head_dim;
  heads_ = inner_ / head_dim_;
  require(heads_ % keys.groups == 0, "mamba2: model.groups = {} does not divide the {} heads", keys.groups, heads_);
  groups_ = keys.groups;
  norm_group_ = keys.norm_group();

  const ParameterOptions no_decay{.decay = false};
  const std::int64_t convolved = inner_ + 2 * groups_ * state_;
  in_ = Linear(store, scope + ".in", width_, inner_ + convolved + heads_, without_bias(init::uniform_fan_in(width_)),
               {.bias = false, .pad_out = true});
  conv_weight_ = store.add(scope, "conv.weight", {convolved, kConvWidth}, init::uniform_fan_in(kConvWidth));
  conv_bias_ = store.add(scope, "conv.bias", {convolved}, init::uniform_fan_in(kConvWidth), no_decay);
  dt_bias_ = store.add(scope, "dt.bias", {heads_}, step_size_bias_init(), no_decay);
  a_log_ = store.add(scope, "a_log", {heads_}, [](const Draw& draw, std::int64_t index) {
    return std::log(1 + 15 * static_cast<double>(draw.uniform(0, static_cast<std::uint32_t>(index))));
  });
  skip_ = store.add(scope, "skip", {heads_}, init::constant(1));
  norm_weight_ = store.add(scope, "norm.weight", {inner_}, init::constant(1), no_decay);
  out_ = Linear(store, scope + ".out", inner_, width_, ssm_output_init(inner_, position), {.bias = false});
}

SsdInputs Mamba2Mixer::scan_inputs(const Context& ctx, const Tensor& packed, const Tensor& xbc) const {
  SsdInputs inputs;
  inputs.xbc = xbc;
  inputs.b_offset = inner_;
  inputs.c_offset = inner_ + groups_ * state_;
  inputs.dt = packed;
  inputs.dt_offset = inner_ + convolved();
  inputs.a_log = a_log_.master(ctx);
  inputs.heads = heads_;
  inputs.head_dim = head_dim_;
  inputs.groups = groups_;
  inputs.state = state_;
  inputs.dt_bias = dt_bias_.master(ctx);
  inputs.skip = skip_.master(ctx);
  return inputs;
}

Tensor Mamba2Mixer::output(const Context& ctx, const Tensor& packed, const Tensor& y) const {
  return out_(ctx, gated_rms_norm(ctx, y, packed, 0, norm_weight_.master(ctx), false, norm_group_));
}

Tensor Mamba2Mixer::operator()(const Context& ctx, const Tensor& x) const {
  const Tensor packed = in_(ctx, x);  // [B, T, inner | inner | G N | G N | heads]: z, x, B, C, dt
  const Tensor xbc =
      causal_conv1d(ctx, packed, inner_, convolved(), conv_weight_.master(ctx), conv_bias_.master(ctx), true);
  return output(ctx, packed, ssd(ctx, scan_inputs(ctx, packed, xbc)).y);
}

MixerState Mamba2Mixer::make_state(const Context& ctx, std::int64_t batch, std::int64_t) const {
  return {{empty_state(ctx, {batch, kConvWidth - 1, convolved()}, ctx.compute_dtype(), "convolution state"),
           empty_state(ctx, {batch, heads_, head_dim_, state_}, ctx.stream_dtype(), "scan state")}};
}

Tensor Mamba2Mixer::extend(const Context& ctx, const Tensor& x, const MixerState& state, const Tensor&) const {
  require_parts(state, 2, "mamba2");
  const Tensor packed = in_(ctx, x);
  const Tensor xbc = extend_causal_conv1d(ctx, packed, inner_, convolved(), conv_weight_.master(ctx),
                                          conv_bias_.master(ctx), true, state.parts[0]);
  return output(ctx, packed, extend_ssd(ctx, scan_inputs(ctx, packed, xbc), state.parts[1]));
}

double Mamba2Mixer::linear_flops(std::int64_t tokens) const {
  const auto t = static_cast<double>(tokens);
  const auto d = static_cast<double>(width_);
  const auto inner = static_cast<double>(inner_);
  const auto channels = static_cast<double>(convolved());
  const double products = 2 * t * (d * (inner + channels + static_cast<double>(heads_)) + inner * d);
  return products + 2 * static_cast<double>(kConvWidth) * t * channels;
}

double Mamba2Mixer::forward_flops(std::int64_t tokens) const {
  const auto inner = static_cast<double>(inner_);
  const auto n = static_cast<double>(state_);
  // of a state: a h, (dt x) B, their sum, C h and its sum; of a channel: dt x, skip x and its sum, the gate; of a head:
  // the decay
  const double step = (5 * n + 4) * inner + 2 * static_cast<double>(heads_);
  return linear_flops(tokens) + step * static_cast<double>(tokens);
}

double Mamba2Mixer::forward_flops_causal(std::int64_t tokens) const {
  const auto inner = static_cast<double>(inner_);
  const auto shared = static_cast<double>(groups_ * state_);
  const auto chunk = static_cast<double>(std::min(tokens, kCountedChunk));
  const double pairs = chunk * (shared + inner);
  const double states = 4 * static_cast<double>(state_) * inner;
  return linear_flops(tokens) + (pairs + states) * static_cast<double>(tokens);
}

}  // namespace graft
