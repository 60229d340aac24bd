#include "models/backbone.h"

#include <map>
#include <utility>

#include "engine/recompute.h"
#include "engine/require.h"
#include "models/pattern.h"

namespace graft {

Backbone::Backbone(ParameterStore& store, const ModelConfig& config)
    : norm_(config.norm), residual_(config.residual), recompute_(config.recompute) {
  const std::vector<PatternLayer> pattern = expand_pattern(config.pattern);
  const auto count = static_cast<std::int64_t>(pattern.size());
  std::int64_t branches = 0;
  for (const PatternLayer& layer : pattern) branches += static_cast<std::int64_t>(layer.branches.size());
  const std::int64_t scaled_layers = config.depth > 0 ? config.depth : count;
  const std::int64_t scaled_branches = config.depth > 0 ? config.depth : branches;
  for (std::int64_t i = 0; i < count; ++i) {
    const PatternLayer& symbols = pattern[static_cast<std::size_t>(i)];
    const std::string scope = fmt::format("blocks.{}", i);
    Layer layer;
    std::map<std::string, int> seen;
    bool transformer[2] = {false, false};  // whether a stream, the second being behind the gate, is a Transformer's
    for (std::size_t b = 0; b < symbols.branches.size(); ++b) {
      const MixerEntry& entry = find_mixer(symbols.branches[b]);
      const int earlier = seen[entry.name]++;
      const std::string name = earlier == 0 ? entry.name : fmt::format("{}{}", entry.name, earlier + 1);
      const bool alone = symbols.branches.size() == 1;
      const NormParams norm(store, alone ? scope + ".norm" : fmt::format("{}.norm_{}", scope, name), norm_,
                            config.width);
      const bool gated = b >= symbols.gated;
      if (entry.kind == MixerKind::Transformer) transformer[gated ? 1 : 0] = true;
      layer.branches.push_back(
          {norm, entry.make(store, fmt::format("{}.{}", scope, name), config, {i, scaled_layers, scaled_branches}),
           gated});
    }
    if (symbols.has_gate()) layer.gate = store.add(scope, "gate", {1}, init::constant(0));
    if (residual_ == Residual::Released) {
      if (!symbols.has_gate() && !transformer[0]) layer.read = 2;
      if (transformer[0]) layer.keep = 2;
      if (transformer[1]) layer.keep_gated = 1;
    }
    layers_.push_back(std::move(layer));
  }
  // As in the retrieval study, whose trainer knows norms by their names and misses the last one of Mamba-like stacks.
  final_norm_ = NormParams(store, "final_norm", norm_, config.width, {.decay_gain = norm_ == NormKind::RmsNorm});
}

Tensor Backbone::walk(const Context& ctx, const Tensor& x, const Call& call) const {
  std::vector<ResidualTerm> terms = {{x}};  // their sum is the stream; formed where a norm reads it
  Tensor gate;
  std::size_t index = 0;
  for (const Layer& layer : layers_) {
    std::vector<NormWeights> norms;
    for (const Branch& branch : layer.branches) norms.push_back(branch.norm.weights(ctx));
    for (ResidualTerm& term : terms) {
      term.constant *= layer.read;
      term.gate *= layer.read;
    }
    ResidualNorm read = residual_norm(ctx, terms, gate, norm_, norms);
    terms.clear();  // branches are not needed any more
    terms.push_back({std::move(read.residual), layer.keep, layer.keep_gated});
    for (std::size_t b = 0; b < layer.branches.size(); ++b) {
      const Branch& branch = layer.branches[b];
      const Tensor normed = std::exchange(read.normed[b], Tensor());
      terms.push_back({call(branch, index++, normed), branch.gated ? 0.0 : 1.0, branch.gated ? 1.0 : 0.0});
    }
    gate = layer.gate ? layer.gate.master(ctx) : Tensor();
  }
  if (residual_ == Residual::Released) terms[0].constant += 1 / layers_.back().read;  // the last layer's input
  return residual_norm(ctx, terms, gate, norm_, {final_norm_.weights(ctx)}, false).normed[0];
}

Tensor Backbone::operator()(const Context& ctx, const Tensor& x) const {
  return walk(ctx, x, [&](const Branch& branch, std::size_t, const Tensor& normed) {
    const Mixer& mixer = *branch.mixer;
    if (!recompute_) return mixer(ctx, normed);
    return recompute(
        ctx, [&mixer](const Context& c, const Tensor& input) { return mixer(c, input); }, normed);
  });
}

Tensor Backbone::extend(const Context& ctx, const Tensor& x, const BackboneState& state, const Tensor& length) const {
  return walk(ctx, x, [&](const Branch& branch, std::size_t index, const Tensor& normed) {
    return branch.mixer->extend(ctx, normed, state.mixers[index], length);
  });
}

BackboneState Backbone::make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const {
  BackboneState state;
  for (const Layer& layer : layers_) {
    for (const Branch& branch : layer.branches) state.mixers.push_back(branch.mixer->make_state(ctx, batch, capacity));
  }
  return state;
}

std::int64_t Backbone::branches() const {
  std::int64_t count = 0;
  for (const Layer& layer : layers_) count += static_cast<std::int64_t>(layer.branches.size());
  return count;
}

double Backbone::forward_flops(std::int64_t tokens, bool causal) const {
  double total = 0;
  for (const Layer& layer : layers_) {
    for (const Branch& branch : layer.branches) {
      total += causal ? branch.mixer->forward_flops_causal(tokens) : branch.mixer->forward_flops(tokens);
    }
  }
  return total;
}

}  // namespace graft
