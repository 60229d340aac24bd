#pragma once

#include <cstdint>
#include <string>

#include "models/linear.h"
#include "models/mixer.h"

namespace graft {

/// Multi-head causal self-attention as in GPT-2: one projection to q | k | v, softmax(q k^T / sqrt(head dim)) v,
/// heads side by side, an output projection. Biases everywhere.
/// Parameters: qkv.weight [3D, D], qkv.bias, out.weight [D, D], out.bias.
class AttentionMixer final : public Mixer {
 public:
  AttentionMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                 const BlockPosition& position);
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const override;
  [[nodiscard]] double forward_flops(std::int64_t tokens) const override;
  [[nodiscard]] double forward_flops_causal(std::int64_t tokens) const override;

 private:
  std::int64_t width_;
  std::int64_t heads_;
  Linear qkv_;
  Linear out_;
};

}  // namespace graft
