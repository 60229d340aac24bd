#pragma once

#include <cstdint>
#include <string>

#include "models/linear.h"
#include "models/mixer.h"

namespace graft {

/// Two linear layers with a GELU between them, tanh form or exact; hidden width W = mlp_width, or mlp_ratio times the
/// model's. Parameters: in.weight [W, D], in.bias, out.weight [D, W], out.bias.
class MlpMixer final : public Mixer {
 public:
  MlpMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config, const BlockPosition& position);
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const override;
  [[nodiscard]] double forward_flops(std::int64_t tokens) const override;

 private:
  std::int64_t width_;
  std::int64_t hidden_;
  Activation activation_;
  Linear in_;
  Linear out_;
};

}  // namespace graft
