#include "models/attention_mixer.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/require.h"
#include "models/block_init.h"
#include "models/mixer_state.h"
#include "ops/attention.h"
#include "ops/decode_attention.h"
#include "ops/rotary.h"

namespace graft {
namespace {

/// Numbers of heads near `heads` that divide the width into heads the op can take: "4, 8".
std::string heads_near(std::int64_t width, std::int64_t heads) {
  const auto fits = [&](std::int64_t count) { return width % count == 0 && width / count <= kMaxAttentionHeadDim; };
  std::string text;
  for (std::int64_t below = std::min(heads, width); below >= 1 && text.empty(); --below) {
    if (fits(below)) text = fmt::format("{}", below);
  }
  for (std::int64_t above = heads + 1; above <= width; ++above) {
    if (!fits(above)) continue;
    return text.empty() ? fmt::format("{}", above) : fmt::format("{}, {}", text, above);
  }
  return text;
}

/// Columns of a head that rotary embedding turns; rounded down, as in transformers.
std::int64_t rotary_dims_of(const ModelConfig& config) {
  const std::int64_t head_dim = config.width / config.heads;
  return static_cast<std::int64_t>(static_cast<double>(head_dim) * config.rotary);
}

void check_heads(const ModelConfig& config, SettingMistakes& mistakes) {
  const std::int64_t width = config.width;
  const std::int64_t heads = config.heads;
  if (width % heads != 0) {
    mistakes.add({"model.heads", "model.width"}, fmt::format("{} does not divide model.width = {}; nearest that do: {}",
                                                             heads, width, heads_near(width, heads)));
  } else if (width / heads > kMaxAttentionHeadDim) {
    mistakes.add({"model.heads", "model.width"},
                 fmt::format("{} makes heads {} wide with model.width = {}, expected at most {}; nearest that fit: {}",
                             heads, width / heads, width, kMaxAttentionHeadDim, heads_near(width, heads)));
  } else if (rotary_dims_of(config) % 2 != 0) {
    mistakes.add({"model.rotary", "model.heads"},
                 fmt::format("{} turns {} of the {} columns of a head, expected an even number", config.rotary,
                             rotary_dims_of(config), width / heads));
  }
}

const RegisterMixer registered{{"A", "attention", "multi-head causal self-attention",
                                [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                   const BlockPosition& position) -> std::unique_ptr<Mixer> {
                                  return std::make_unique<AttentionMixer>(store, scope, config, position);
                                },
                                check_heads, MixerKind::Transformer}};

}  // namespace

AttentionMixer::AttentionMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                               const BlockPosition& position)
    : width_(config.width), heads_(config.heads) {
  require(heads_ > 0 && width_ % heads_ == 0, "attention: model.heads = {} does not divide model.width = {}", heads_,
          width_);
  rotary_dims_ = rotary_dims_of(config);
  rotary_base_ = config.rotary_base;
  qkv_ = Linear(store, scope + ".qkv", width_, 3 * width_, block_linear_init(config, position, width_, false));
  out_ = Linear(store, scope + ".out", width_, width_, block_linear_init(config, position, width_, true));
}

Tensor AttentionMixer::operator()(const Context& ctx, const Tensor& x) const {
  const Tensor qkv = rotary(ctx, qkv_(ctx, x), layout(), rotary_dims_, rotary_base_);
  return out_(ctx, causal_attention(ctx, qkv, layout()));
}

MixerState AttentionMixer::make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const {
  const Shape cache{batch, heads_, capacity, width_ / heads_};
  return {
      {empty_state(ctx, cache, ctx.compute_dtype(), "keys"), empty_state(ctx, cache, ctx.compute_dtype(), "values")}};
}

Tensor AttentionMixer::extend(const Context& ctx, const Tensor& x, const MixerState& state,
                              const Tensor& length) const {
  require_parts(state, 2, "attention");
  const Tensor qkv = rotary(ctx, qkv_(ctx, x), layout(), rotary_dims_, rotary_base_, length);
  return out_(ctx, extend_attention(ctx, qkv, layout(), state.parts[0], state.parts[1], length));
}

double AttentionMixer::forward_flops(std::int64_t tokens) const {
  const auto t = static_cast<double>(tokens);
  const auto d = static_cast<double>(width_);
  return 8 * t * d * d + 4 * t * t * d;
}

double AttentionMixer::forward_flops_causal(std::int64_t tokens) const {
  const auto t = static_cast<double>(tokens);
  const auto d = static_cast<double>(width_);
  return 8 * t * d * d + 2 * t * (t + 1) * d;
}

}  // namespace graft
