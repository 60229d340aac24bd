#include "models/attention_mixer.h"

#include "engine/require.h"
#include "models/block_init.h"
#include "ops/attention.h"

namespace graft {
namespace {

const RegisterMixer registered{{"A", "attention", "multi-head causal self-attention",
                                [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                   const BlockPosition& position) -> std::unique_ptr<Mixer> {
                                  return std::make_unique<AttentionMixer>(store, scope, config, position);
                                }}};

}  // namespace

AttentionMixer::AttentionMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                               const BlockPosition& position)
    : width_(config.width), heads_(config.heads) {
  require(heads_ > 0 && width_ % heads_ == 0, "attention: model.heads = {} does not divide model.width = {}", heads_,
          width_);
  qkv_ = Linear(store, scope + ".qkv", width_, 3 * width_, block_linear_init(config, position, width_, false));
  out_ = Linear(store, scope + ".out", width_, width_, block_linear_init(config, position, width_, true));
}

Tensor AttentionMixer::operator()(const Context& ctx, const Tensor& x) const {
  return out_(ctx,
              causal_attention(ctx, qkv_(ctx, x),
                               AttentionLayout::blocks(static_cast<int>(heads_), static_cast<int>(width_ / heads_))));
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
