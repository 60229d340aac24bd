// Mamba and its hybrids with attention, as the in-context-learning study builds them; Mamba also as the retrieval study
// does.

#include <fmt/format.h>

#include "models/language_model.h"
#include "models/model_config.h"

namespace graft {
namespace {

/// All of them start attention weights uniformly and have no positions unless they say so; the output projections are
/// scaled by 1/sqrt(2 layers) also where there is one block more.
void common(ModelConfig& config) {
  config.positions = Positions::None;
  config.init = BlockInit::Default;
  config.depth = 2 * config.layers;
}

const RegisterSettings mamba_settings{{
    .table = "model",
    .owner = "mamba",
    .doc =
        "Mamba blocks, no positions; pattern \"M*(2 layers)\", and in tasks on token ids, where a layer is one block, "
        "\"M*layers\" with RMS norms",
    .keys = {SettingKey::integer("model.layers", "layers; on vectors two blocks each, on token ids one")
                 .decided_by("the task: 12 on vectors, 24 on token ids")
                 .between(1, 1024)},
}};
const RegisterPreset mamba{{"mamba", [](ModelConfig& config) {
                              if (config.tokens) {
                                language_model(config);
                                if (!config.settings.has("model.layers")) config.layers = 24;
                                config.pattern = fmt::format("M*{}", config.layers);
                                return;
                              }
                              common(config);
                              config.pattern = fmt::format("M*{}", 2 * config.layers);
                            }}};

const RegisterSettings standard_hybrid_settings{{
    .table = "model",
    .owner = "standard_hybrid",
    .doc = "attention and Mamba blocks in turn, learned positions starting as N(0, 1); pattern \"(AM)*layers\"",
}};
const RegisterPreset standard_hybrid{{"standard_hybrid", [](ModelConfig& config) {
                                        common(config);
                                        config.pattern = fmt::format("(AM)*{}", config.layers);
                                        config.positions = Positions::Learned;
                                        config.position_std = 1;
                                      }}};

const RegisterSettings mambaformer_settings{{
    .table = "model",
    .owner = "mambaformer",
    .doc = "a Mamba block, then attention and Mamba blocks in turn, no positions; pattern \"M(AM)*layers\"",
}};
const RegisterPreset mambaformer{{"mambaformer", [](ModelConfig& config) {
                                    common(config);
                                    config.pattern = fmt::format("M(AM)*{}", config.layers);
                                  }}};

const RegisterSettings initial_mamba_settings{{
    .table = "model",
    .owner = "transformer_initial_mamba",
    .doc = "the transformer with a Mamba block in front instead of positions; pattern \"M(AF)*layers\"",
}};
const RegisterPreset initial_mamba{{"transformer_initial_mamba", [](ModelConfig& config) {
                                      common(config);
                                      config.pattern = fmt::format("M(AF)*{}", config.layers);
                                      config.init = BlockInit::Gpt2;
                                    }}};

const RegisterSettings middle_hybrid_settings{{
    .table = "model",
    .owner = "mamba_middle_hybrid",
    .doc = "Mamba with one attention block in the middle; pattern \"M*(layers - 1) A M*layers\"",
}};
const RegisterPreset middle_hybrid{
    {"mamba_middle_hybrid", [](ModelConfig& config) {
       common(config);
       config.pattern = config.layers > 1 ? fmt::format("M*{} A M*{}", config.layers - 1, config.layers) : "A M";
     }}};

}  // namespace
}  // namespace graft
