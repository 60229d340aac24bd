#include "models/model_config.h"

#include <map>
#include <utility>

#include "engine/require.h"

namespace graft {
namespace {

std::map<std::string, PresetEntry, std::less<>>& presets() {
  static std::map<std::string, PresetEntry, std::less<>> entries;
  return entries;
}

// Details that every preset fixes and a hand-written pattern may choose.
const RegisterSettings keys{{
    .table = "model",
    .owner = "",
    .doc = "details of blocks, residual stream, embedding and position table",
    .keys =
        {
            SettingKey::text(
                "model.init",
                "start of attention and MLP weights: gpt2 is N(0, 0.02^2), scaled down with "
                "depth into the residual stream; normal is the same without scaling; default is uniform on "
                "+-1/sqrt(fan_in)")
                .decided_by("the preset (gpt2 for a pattern)")
                .one_of({"gpt2", "default", "normal"}),
            SettingKey::text("model.norm", "the norm in front of every mixer and at the end")
                .decided_by("the preset (layer for a pattern)")
                .one_of({"layer", "rms"})
                .elsewhere_called({"norm_type", "normalization", "rms_norm"}),
            SettingKey::text("model.residual",
                             "how branches join the residual stream x: clean is x + f(norm(x)); released is what the "
                             "published code of the retrieval study computes: 2 x + f, and a final norm of the last "
                             "two x")
                .decided_by("the preset (clean for a pattern)")
                .one_of({"clean", "released"}),
            SettingKey::number("model.rotary", "share of each head's columns that rotary embedding turns; 0: none")
                .decided_by("the preset (0 for a pattern)")
                .between(0, 1)
                .elsewhere_called({"rotary_pct", "partial_rotary_factor", "rope"}),
            SettingKey::number("model.rotary_base", "base of the rotary frequencies")
                .with_default(10000.0)
                .above(1)
                .elsewhere_called({"rope_theta", "rotary_emb_base"}),
            SettingKey::text("model.gelu", "GELU of MLP blocks: its tanh form, or exact by the error function")
                .decided_by("the preset (tanh for a pattern)")
                .one_of({"tanh", "erf"}),
            SettingKey::integer("model.mlp_width", "hidden width of an MLP; 0: model.mlp_ratio times model.width")
                .with_default(0)
                .between(0, 1 << 20)
                .elsewhere_called({"intermediate_size", "d_ff", "ffn_dim"}),
            SettingKey::boolean("model.tied", "tasks on token ids: whether the read-out is the embedding's own matrix")
                .decided_by("the preset (true for a pattern)")
                .elsewhere_called({"tie_word_embeddings", "tie_embeddings"}),
            SettingKey::integer("model.vocabulary_multiple",
                                "tasks on token ids: the vocabulary is rounded up to a multiple; the added ids are "
                                "never targets, but take part in the softmax")
                .decided_by("the preset (1 for a pattern)")
                .between(1, 1024)
                .elsewhere_called({"pad_vocab_size_multiple", "pad_vocab"}),
            SettingKey::integer("model.position_rows", "rows of the position table; 0: tokens of the longest prompt")
                .with_default(0)
                .between(0, 1 << 20)
                .in("tokens"),
            SettingKey::number("model.position_std", "standard deviation of the position table at the start")
                .decided_by("the preset (0.02 for a pattern)")
                .between(0, 100),
        },
}};

}  // namespace

RegisterPreset::RegisterPreset(PresetEntry entry) {
  std::string name = entry.name;
  presets().emplace(std::move(name), std::move(entry));
}

bool is_registered_preset(std::string_view name) { return presets().find(name) != presets().end(); }

ModelConfig model_config(const Settings& settings) {
  ModelConfig config;
  config.width = settings.integer("model.width");
  if (settings.has("model.layers")) config.layers = settings.integer("model.layers");
  config.heads = settings.integer("model.heads");
  config.state = settings.integer("model.state");
  config.mlp_ratio = settings.integer("model.mlp_ratio");
  config.position_rows = settings.integer("model.position_rows");
  config.mlp_width = settings.integer("model.mlp_width");
  config.rotary_base = settings.number("model.rotary_base");
  config.tokens = settings.has("task.name") && has_tag("task", settings.text("task.name"), "tokens");
  for (const auto& [path, entry] : settings.entries()) {
    if (path.starts_with("model.")) config.settings.set(path, entry.value, entry.origin);
  }
  if (settings.has("model.preset")) {
    config.preset = settings.text("model.preset");
    const auto found = presets().find(config.preset);
    require(found != presets().end(), "model.preset: \"{}\" is not a registered preset", config.preset);
    found->second.apply(config);
  } else {
    config.pattern = settings.text("model.pattern");
  }
  if (settings.has("model.positions")) {
    config.positions = settings.boolean("model.positions") ? Positions::Learned : Positions::None;
  }
  const auto text = [&](const char* key, auto apply) {
    if (settings.has(key)) apply(settings.text(key));
  };
  text("model.init", [&](const std::string& value) {
    config.init = value == "gpt2" ? BlockInit::Gpt2 : value == "normal" ? BlockInit::Normal : BlockInit::Default;
  });
  text("model.norm",
       [&](const std::string& value) { config.norm = value == "rms" ? NormKind::RmsNorm : NormKind::LayerNorm; });
  text("model.residual",
       [&](const std::string& value) { config.residual = value == "released" ? Residual::Released : Residual::Clean; });
  text("model.gelu", [&](const std::string& value) { config.gelu_erf = value == "erf"; });
  if (settings.has("model.rotary")) config.rotary = settings.number("model.rotary");
  if (settings.has("model.tied")) config.tied = settings.boolean("model.tied");
  if (settings.has("model.vocabulary_multiple")) {
    config.vocabulary_multiple = settings.integer("model.vocabulary_multiple");
  }
  if (settings.has("model.position_std")) config.position_std = settings.number("model.position_std");
  return config;
}

}  // namespace graft
