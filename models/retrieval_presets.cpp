// GPT-NeoX, Mamba-2 and the hybrids of the retrieval study.

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "models/language_model.h"
#include "models/model_config.h"

namespace graft {
namespace {

/// Quarter rotary embedding, exact GELU, a read-out of its own, N(0, 0.02^2) everywhere.
/// Source: transformers, gpt_neox.
void gpt_neox(ModelConfig& config) {
  const bool parallel =
      !config.settings.has("model.parallel_residual") || config.settings.boolean("model.parallel_residual");
  config.pattern = fmt::format("{}*{}", parallel ? "[AF]" : "(AF)", config.layers);
  config.positions = Positions::None;
  config.init = BlockInit::Normal;
  config.rotary = 0.25;
  config.gelu_erf = true;
  config.tied = false;
}

SettingKey parallel_residual() {
  return SettingKey::boolean(
             "model.parallel_residual",
             "whether attention and MLP of a layer read the same stream, x + A(norm x) + F(norm' x), or "
             "one after the other")
      .with_default(true)
      .elsewhere_called({"use_parallel_residual"});
}

const RegisterSettings gpt_neox_settings{{
    .table = "model",
    .owner = "gpt_neox",
    .doc = "GPT-NeoX style: attention and MLP side by side, rotary embedding on a quarter of each head, untied "
           "embeddings; pattern \"[AF]*layers\"",
    .keys = {parallel_residual()},
}};
const RegisterPreset gpt_neox_preset{{"gpt_neox", gpt_neox}};

const RegisterSettings gpt_neox_nope_settings{{
    .table = "model",
    .owner = "gpt_neox_nope",
    .doc = "gpt_neox without any positional signal; pattern \"[AF]*layers\"",
    .keys = {parallel_residual()},
}};
const RegisterPreset gpt_neox_nope_preset{{"gpt_neox_nope", [](ModelConfig& config) {
                                             gpt_neox(config);
                                             config.rotary = 0;
                                           }}};

SettingKey layers(std::string doc) { return SettingKey::integer("model.layers", std::move(doc)).between(1, 1000); }

const RegisterSettings mamba2_settings{{
    .table = "model",
    .owner = "mamba2",
    .doc = "Mamba-2 blocks with RMS norms, no positions, tied embeddings; pattern \"M2*layers\"",
    .keys = {layers("blocks").with_default(24)},
}};
const RegisterPreset mamba2_preset{{"mamba2", [](ModelConfig& config) {
                                      language_model(config);
                                      config.pattern = fmt::format("M2*{}", config.layers);
                                    }}};

SettingKey ssm() {
  return SettingKey::text("model.ssm", "the state-space mixer of a hybrid")
      .with_default("mamba")
      .one_of({"mamba", "mamba2"});
}
std::string ssm_symbol(const ModelConfig& config) {
  return config.settings.has("model.ssm") && config.settings.text("model.ssm") == "mamba2" ? "M2" : "M";
}

void hybrid(ModelConfig& config) {
  language_model(config);
  config.rotary = 0.25;
  config.residual = Residual::Released;
}

std::int64_t interleaved_n(const Settings& settings) {
  return settings.has("model.n") ? settings.integer("model.n") : 1;
}

void check_interleaved(const Settings& settings, SettingMistakes& mistakes) {
  if (!settings.has("model.layers")) return;
  const std::int64_t given = settings.integer("model.layers");
  const std::int64_t period = interleaved_n(settings) + 1;
  if (given % period == 0) return;
  const std::int64_t below = given / period * period;
  const std::string near = below > 0 ? fmt::format("{}, {}", below, below + period) : fmt::format("{}", below + period);
  mistakes.add({"model.layers", "model.n"},
               fmt::format("{} is not a multiple of {}, the model.n = {} state-space blocks and one Transformer block "
                           "that repeat; nearest that are: {}",
                           given, period, period - 1, near));
}

const RegisterSettings interleaved_settings{{
    .table = "model",
    .owner = "hybrid_interleaved",
    .doc = "n state-space blocks, then a Transformer block with RMS norms and rotary embedding, repeated; pattern "
           "\"(M*n [AF])*(layers / (n + 1))\"",
    .keys = {ssm(),
             SettingKey::integer("model.n", "state-space blocks in front of each Transformer block")
                 .with_default(1)
                 .between(1, 4),
             layers("blocks of either kind").decided_by("model.n: 16, 18, 20 and 20 for n = 1 to 4")},
    .checks = {check_interleaved},
}};
const RegisterPreset interleaved_preset{{"hybrid_interleaved", [](ModelConfig& config) {
                                           hybrid(config);
                                           const std::int64_t n = interleaved_n(config.settings);
                                           if (!config.settings.has("model.layers")) {
                                             config.layers = n == 1 ? 16 : n == 2 ? 18 : 20;
                                           }
                                           config.pattern =
                                               fmt::format("({}*{} [AF])*{}", ssm_symbol(config), n,
                                                           std::max<std::int64_t>(config.layers / (n + 1), 1));
                                         }}};

const RegisterSettings two_stream_settings{{
    .table = "model",
    .owner = "hybrid_two_stream",
    .doc = "layers of a state-space mixer and a Transformer block side by side, one of them behind a scalar gate "
           "tanh(beta); pattern \"[M|AF]*layers\", reversed \"[AF|M]*layers\"",
    .keys = {ssm(),
             SettingKey::boolean("model.reversed",
                                 "whether the gate is on the state-space stream, not the Transformer's")
                 .with_default(false),
             layers("layers; each has both streams").with_default(8)},
}};
const RegisterPreset two_stream_preset{
    {"hybrid_two_stream", [](ModelConfig& config) {
       hybrid(config);
       const bool reversed = config.settings.has("model.reversed") && config.settings.boolean("model.reversed");
       config.pattern = reversed ? fmt::format("[AF|{}]*{}", ssm_symbol(config), config.layers)
                                 : fmt::format("[{}|AF]*{}", ssm_symbol(config), config.layers);
     }}};

}  // namespace
}  // namespace graft
