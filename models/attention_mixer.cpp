#include "models/attention_mixer.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/require.h"
#include "models/block_init.h"
#include "ops/attention.h"

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
  }
}

const RegisterMixer registered{{"A", "attention", "multi-head causal self-attention",
                                [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                   const BlockPosition& position) -> std::unique_ptr<Mixer> {
                                  return std::make_unique<AttentionMixer>(store, scope, config, position);
                                },
                                check_heads}};

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
