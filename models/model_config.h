#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/settings.h"
#include "ops/residual_norm.h"

namespace graft {

/// How linear layers of attention and MLP branches start.
enum class BlockInit : std::uint8_t {
  Gpt2,     // N(0, 0.02^2); projections into the residual stream N(0, (0.02 / sqrt(branches))^2); biases 0
  Default,  // weights uniform on +-1/sqrt(fan_in); biases 0
  Normal,   // N(0, 0.02^2) everywhere, as in GPT-NeoX; biases 0
};

enum class Positions : std::uint8_t { None, Learned };

/// How branches join the residual stream x.
enum class Residual : std::uint8_t {
  Clean,     // x + f(norm(x)), behind a gate x + tanh(beta) f(norm(x)); the final norm reads the last x
  Released,  // as in the published code of Pantazopoulos et al. 2026: a Transformer stream brings its own x along,
             // a state-space layer on its own reads and passes on 2 x, and the final norm reads the last two x
};

/// A model as a configuration describes it, presets resolved.
struct ModelConfig {
  std::string preset;   // empty: a hand-written pattern
  std::string pattern;  // "(AF)*12"
  std::int64_t width = 256;
  std::int64_t layers = 12;  // as the preset counts them: one, two or more layers of the pattern each
  std::int64_t heads = 8;
  std::int64_t state = 16;
  std::int64_t mlp_ratio = 4;
  std::int64_t mlp_width = 0;  // hidden width of an MLP; 0: mlp_ratio times the width
  bool gelu_erf = false;       // an MLP's GELU: exact, or its tanh form
  double rotary = 0;           // share of a head's columns that turn with the position
  double rotary_base = 10000;
  NormKind norm = NormKind::LayerNorm;  // in front of every mixer and at the end
  Residual residual = Residual::Clean;
  bool tokens = false;                   // whether the task speaks in token ids
  bool tied = true;                      // token ids: whether the read-out is the embedding
  std::int64_t vocabulary_multiple = 1;  // token ids: rows of the embedding are rounded up to one
  Positions positions = Positions::Learned;
  std::int64_t position_rows = 0;  // 0: as many as the longest prompt has tokens
  double position_std = 0.02;
  BlockInit init = BlockInit::Gpt2;
  bool recompute = false;  // whether backward computes what mixers save again, instead of keeping it: train.recompute
  std::int64_t depth = 0;  // layers and branches that initialisation scales with; 0: as many as the pattern has
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
