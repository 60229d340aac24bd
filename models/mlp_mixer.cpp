#include "models/mlp_mixer.h"

#include "models/block_init.h"
#include "ops/mlp.h"

namespace graft {
namespace {

const RegisterMixer registered{{"F",
                                "mlp",
                                "two linear layers with a GELU between them",
                                [](ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                   const BlockPosition& position) -> std::unique_ptr<Mixer> {
                                  return std::make_unique<MlpMixer>(store, scope, config, position);
                                },
                                {},
                                MixerKind::Transformer}};

}  // namespace

MlpMixer::MlpMixer(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                   const BlockPosition& position)
    : width_(config.width),
      hidden_(config.mlp_width > 0 ? config.mlp_width : config.mlp_ratio * config.width),
      activation_(config.gelu_erf ? Activation::GeluErf : Activation::GeluTanh) {
  in_ = Linear(store, scope + ".in", width_, hidden_, block_linear_init(config, position, width_, false),
               {.pad_out = true});
  out_ = Linear(store, scope + ".out", hidden_, width_, block_linear_init(config, position, hidden_, true),
                {.pad_in = true});
}

Tensor MlpMixer::operator()(const Context& ctx, const Tensor& x) const {
  return mlp(ctx, x, {in_.weight.tensor(ctx), in_.bias.tensor(ctx), out_.weight.tensor(ctx), out_.bias.tensor(ctx)},
             activation_);
}

double MlpMixer::forward_flops(std::int64_t tokens) const {
  return 4.0 * static_cast<double>(tokens) * static_cast<double>(width_) * static_cast<double>(hidden_);
}

}  // namespace graft
