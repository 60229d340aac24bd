#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/mixer.h"
#include "models/norm.h"

namespace graft {

/// Pre-norm residual blocks and a final norm: r = r + Mixer(LN(r)) for each symbol of the pattern, then LN(r). Each
/// residual add is fused with the norm that follows it.
class Backbone {
 public:
  Backbone(ParameterStore& store, const ModelConfig& config);

  /// x [B, T, D] stream dtype -> [B, T, D] compute dtype
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const;
  [[nodiscard]] double forward_flops(std::int64_t tokens, bool causal = false) const;
  [[nodiscard]] std::int64_t blocks() const { return static_cast<std::int64_t>(blocks_.size()); }

 private:
  struct Block {
    LayerNorm norm;
    std::unique_ptr<Mixer> mixer;
  };
  std::vector<Block> blocks_;
  LayerNorm final_norm_;
};

}  // namespace graft
