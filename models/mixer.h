#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/context.h"
#include "engine/parameter_store.h"
#include "engine/tensor.h"
#include "models/model_config.h"

namespace graft {

/// The branch of one residual block: [B, T, D] -> [B, T, D]. Attention, the MLP, and state-space mixers implement it.
class Mixer {
 public:
  virtual ~Mixer() = default;
  [[nodiscard]] virtual Tensor operator()(const Context& ctx, const Tensor& x) const = 0;
  /// Forward floating-point operations for one sequence, a multiply-add counted as two; norms, activations
  /// and softmax are not counted, attention is counted dense.
  [[nodiscard]] virtual double forward_flops(std::int64_t tokens) const = 0;
  /// The same with attention counted causally, T (T + 1) / 2 pairs.
  [[nodiscard]] virtual double forward_flops_causal(std::int64_t tokens) const { return forward_flops(tokens); }
};

/// Where a block stands; some initialisations depend on it.
struct BlockPosition {
  std::int64_t index = 0;
  std::int64_t blocks = 1;  // that initialisation scales with
};

/// A kind of mixer, as block patterns name it.
struct MixerEntry {
  std::string symbol;  // an upper-case letter, then lower-case letters or digits: "A", "M2"
  std::string name;    // "attention"; part of parameter names: blocks.<i>.<name>.<...>
  std::string doc;
  std::function<std::unique_ptr<Mixer>(ParameterStore& store, const std::string& scope, const ModelConfig& config,
                                       const BlockPosition& position)>
      make;
  /// What cannot be built or trained with these settings, said in terms of their keys; empty: nothing to say. `make`
  /// throws ArgumentError on such a configuration, or the mixer's ops do.
  std::function<void(const ModelConfig& config, SettingMistakes& mistakes)> check = {};
};

/// Adds a mixer when the file that holds it is loaded; nothing lists all of them.
struct RegisterMixer {
  explicit RegisterMixer(MixerEntry entry);
};

/// The mixer with this symbol. Throws ArgumentError naming the known ones.
[[nodiscard]] const MixerEntry& find_mixer(std::string_view symbol);
/// All mixers, sorted by symbol.
[[nodiscard]] std::vector<MixerEntry> registered_mixers();

}  // namespace graft
