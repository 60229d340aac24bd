// The GPT-2-style Transformer of the in-context-learning study, with and without positions.

#include <fmt/format.h>

#include "models/model_config.h"

namespace graft {
namespace {

void transformer(ModelConfig& config) {
  config.pattern = fmt::format("(AF)*{}", config.layers);
  config.init = BlockInit::Gpt2;
  config.positions = Positions::Learned;
  config.position_std = 0.02;
}

const RegisterSettings transformer_settings{{
    .table = "model",
    .owner = "transformer",
    .doc = "GPT-2 style: pre-norm attention and MLP blocks, learned positions; pattern \"(AF)*layers\"",
}};
const RegisterPreset transformer_preset{{"transformer", transformer}};

const RegisterSettings transformer_nope_settings{{
    .table = "model",
    .owner = "transformer_nope",
    .doc = "the transformer without positions; pattern \"(AF)*layers\"",
}};
const RegisterPreset transformer_nope_preset{{"transformer_nope", [](ModelConfig& config) {
                                                transformer(config);
                                                config.positions = Positions::None;
                                              }}};

}  // namespace
}  // namespace graft
