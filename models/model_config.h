#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/settings.h"

namespace graft {

/// How linear layers of attention and MLP blocks start.
enum class BlockInit : std::uint8_t {
  Gpt2,     // N(0, 0.02^2); projections into the residual stream N(0, (0.02 / sqrt(blocks))^2); biases 0
  Default,  // weights uniform on +-1/sqrt(fan_in); biases 0
};

enum class Positions : std::uint8_t { None, Learned };

/// A model as a configuration describes it, presets resolved.
struct ModelConfig {
  std::string preset;   // empty: a hand-written pattern
  std::string pattern;  // "(AF)*12"
  std::int64_t width = 256;
  std::int64_t layers = 12;  // in the studies' sense: two blocks
  std::int64_t heads = 8;
  std::int64_t state = 16;
  std::int64_t mlp_ratio = 4;
  Positions positions = Positions::Learned;
  std::int64_t position_rows = 0;  // 0: as many as the longest prompt has tokens
  double position_std = 0.02;
  BlockInit init = BlockInit::Gpt2;
  std::int64_t depth = 0;  // blocks that initialisation scales with; 0: as many as the pattern has
  Settings settings;       // everything of the [model] table, for mixers with keys of their own
};

/// A named architecture: a pattern and the details that belong to it.
struct PresetEntry {
  std::string name;
  std::function<void(ModelConfig&)> apply;  // sets pattern and details from width, layers, heads, ...
};

/// Registers a preset; its keys are a SettingGroup of table "model" in the same file.
struct RegisterPreset {
  explicit RegisterPreset(PresetEntry entry);
};

[[nodiscard]] bool is_registered_preset(std::string_view name);

/// Reads the [model] table. Throws ArgumentError on an unknown preset.
[[nodiscard]] ModelConfig model_config(const Settings& settings);

}  // namespace graft
