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

/// What a mixer remembers of the tokens it has read, when it reads a sequence piece by piece: keys and values, the last
/// inputs of a convolution, the state of a scan. Empty for mixers that look at one token at a time.
struct MixerState {
  std::vector<Tensor> parts;
};

/// One branch of a residual layer: [B, T, D] -> [B, T, D]. Attention, the MLP, and state-space mixers implement it.
class Mixer {
 public:
  virtual ~Mixer() = default;
  [[nodiscard]] virtual Tensor operator()(const Context& ctx, const Tensor& x) const = 0;

  /// The state before the first token, for `batch` sequences of at most `capacity` tokens; in run memory.
  [[nodiscard]] virtual MixerState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const {
    static_cast<void>(ctx), static_cast<void>(batch), static_cast<void>(capacity);
    return {};
  }
  /// Reads n further tokens x [B, n, D] and gives what operator() gives for them at the end of the whole sequence; the
  /// state is brought up to date in place. For inference: nothing is recorded.
  ///   length  [1] int32 on the device, tokens read before these; the caller advances it when all mixers have read
  [[nodiscard]] virtual Tensor extend(const Context& ctx, const Tensor& x, const MixerState& state,
                                      const Tensor& length) const {
    static_cast<void>(state), static_cast<void>(length);
    return (*this)(ctx, x);
  }

  /// Forward floating-point operations for one sequence, a multiply-add counted as two; norms, activations
  /// and softmax are not counted, attention is counted dense.
  [[nodiscard]] virtual double forward_flops(std::int64_t tokens) const = 0;
  /// The same with attention counted causally, T (T + 1) / 2 pairs.
  [[nodiscard]] virtual double forward_flops_causal(std::int64_t tokens) const { return forward_flops(tokens); }
};

/// Where a mixer stands; some initialisations depend on it.
struct BlockPosition {
  std::int64_t index = 0;     // of its layer in the pattern
  std::int64_t layers = 1;    // of the pattern, that initialisation of state-space projections scales with
  std::int64_t branches = 1;  // of all layers, that GPT-2's scales with: layers side by side count each
};

/// What a mixer is in the language of hybrids: part of a Transformer, or a state-space model.
enum class MixerKind : std::uint8_t { StateSpace, Transformer };

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
  MixerKind kind = MixerKind::StateSpace;
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
