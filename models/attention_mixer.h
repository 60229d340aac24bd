#pragma once

#include <cstdint>
#include <string>

#include "models/linear.h"
#include "models/mixer.h"
#include "ops/attention.h"

namespace graft {

/// Multi-head causal self-attention as in GPT-2: one projection to q | k | v, softmax(q k^T / sqrt(head dim)) v,
/// heads side by side, an output projection. Biases everywhere. With model.rotary > 0 the first columns of every query
/// and key are turned with the position, as in GPT-NeoX.
/// Parameters: qkv.weight [3D, D], qkv.bias, out.weight [D, D], out.bias.
class AttentionMixer final : public Mixer {
 public:
  AttentionMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                 const BlockPosition& position);
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const override;
  [[nodiscard]] MixerState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const override;
  [[nodiscard]] Tensor extend(const Context& ctx, const Tensor& x, const MixerState& state,
                              const Tensor& length) const override;
  [[nodiscard]] double forward_flops(std::int64_t tokens) const override;
  [[nodiscard]] double forward_flops_causal(std::int64_t tokens) const override;

 private:
  [[nodiscard]] AttentionLayout layout() const {
    return AttentionLayout::blocks(static_cast<int>(heads_), static_cast<int>(width_ / heads_));
  }
  std::int64_t width_;
  std::int64_t heads_;
  std::int64_t rotary_dims_;  // of each head
  double rotary_base_;
  Linear qkv_;
  Linear out_;
};

}  // namespace graft
