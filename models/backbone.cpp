#include "models/backbone.h"

#include <utility>

#include "engine/require.h"
#include "models/pattern.h"

namespace graft {

Backbone::Backbone(ParameterStore& store, const ModelConfig& config) {
  const std::vector<std::string> symbols = expand_pattern(config.pattern);
  const auto count = static_cast<std::int64_t>(symbols.size());
  const std::int64_t depth = config.depth > 0 ? config.depth : count;
  for (std::int64_t i = 0; i < count; ++i) {
    const MixerEntry& entry = find_mixer(symbols[static_cast<std::size_t>(i)]);
    const std::string scope = fmt::format("blocks.{}", i);
    LayerNorm norm(store, scope + ".norm", config.width);
    blocks_.push_back({norm, entry.make(store, fmt::format("{}.{}", scope, entry.name), config, {i, depth})});
  }
  final_norm_ = LayerNorm(store, "final_norm", config.width);
}

Tensor Backbone::operator()(const Context& ctx, const Tensor& x) const {
  Tensor residual = x;
  Tensor branch;
  for (const Block& block : blocks_) {
    Tensor normed;
    if (branch) {
      AddLayerNorm next = block.norm.add(ctx, residual, branch);
      residual = std::move(next.residual);
      normed = std::move(next.normed);
    } else {
      normed = block.norm(ctx, residual);
    }
    branch = (*block.mixer)(ctx, normed);
  }
  return final_norm_.add(ctx, residual, branch, false).normed;
}

double Backbone::forward_flops(std::int64_t tokens, bool causal) const {
  double total = 0;
  for (const Block& block : blocks_) {
    total += causal ? block.mixer->forward_flops_causal(tokens) : block.mixer->forward_flops(tokens);
  }
  return total;
}

}  // namespace graft
