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
    .doc = "details of attention and MLP blocks and of the position table",
    .keys =
        {
            SettingKey::text("model.init",
                             "start of attention and MLP weights: gpt2 is N(0, 0.02^2), scaled down with "
                             "depth into the residual stream; default is uniform on +-1/sqrt(fan_in)")
                .decided_by("the preset (gpt2 for a pattern)")
                .one_of({"gpt2", "default"}),
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
  config.layers = settings.integer("model.layers");
  config.heads = settings.integer("model.heads");
  config.state = settings.integer("model.state");
  config.mlp_ratio = settings.integer("model.mlp_ratio");
  config.position_rows = settings.integer("model.position_rows");
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
  if (settings.has("model.init")) {
    config.init = settings.text("model.init") == "gpt2" ? BlockInit::Gpt2 : BlockInit::Default;
  }
  if (settings.has("model.position_std")) config.position_std = settings.number("model.position_std");
  for (const auto& [path, entry] : settings.entries()) {
    if (path.starts_with("model.")) config.settings.set(path, entry.value, entry.origin);
  }
  return config;
}

}  // namespace graft
