#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/mixer.h"
#include "models/norm.h"

namespace graft {

/// What the layers of a backbone remember while it reads sequences piece by piece; one MixerState a mixer.
struct BackboneState {
  std::vector<MixerState> mixers;
};

/// Pre-norm residual layers and a final norm: x = x + Mixer(norm(x)) for each layer of the pattern, then norm(x).
/// A layer is a symbol, or several in brackets: branches side by side, which read the same x, each through a norm of
/// its own; those behind a bar are multiplied by tanh(beta), beta a scalar that starts at 0. model.residual chooses
/// between this (clean) and what the published code of the retrieval study computes (released), with A and F the
/// Transformer's mixers and M state-space ones:
///   M          y = 2 x,  y + M(norm(y))
///   A, F, [AF] 2 x + A(norm(x)) + F(norm'(x))
///   [M|AF]     x + M(norm(x)) + tanh(beta) (x + A(norm'(x)) + F(norm''(x)))
///   [AF|M]     2 x + A(norm(x)) + F(norm'(x)) + tanh(beta) M(norm''(x))
/// and the final norm reads the sum of the last layer's input and output.
/// The sums of one layer and the norms of the next are one op.
/// Parameters: blocks.<i>.norm.* or, side by side, blocks.<i>.norm_<mixer>.*; blocks.<i>.<mixer>.*; blocks.<i>.gate
/// [1]; final_norm.*. Weight decay takes part of the gain of final_norm where it is an RMS norm, of no other norm's.
/// Source: Pantazopoulos et al. 2026 and its code, gpantaz/retrievit, for the released form.
class Backbone {
 public:
  Backbone(ParameterStore& store, const ModelConfig& config);

  /// x [B, T, D] stream dtype -> [B, T, D] compute dtype
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const;
  /// The same for n further tokens of sequences whose earlier ones `state` knows; see Mixer::extend.
  [[nodiscard]] Tensor extend(const Context& ctx, const Tensor& x, const BackboneState& state,
                              const Tensor& length) const;
  [[nodiscard]] BackboneState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const;

  [[nodiscard]] double forward_flops(std::int64_t tokens, bool causal = false) const;
  [[nodiscard]] std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }
  /// Of all layers, one a mixer.
  [[nodiscard]] std::int64_t branches() const;

 private:
  struct Branch {
    NormParams norm;
    std::unique_ptr<Mixer> mixer;
    bool gated = false;
  };
  struct Layer {
    std::vector<Branch> branches;
    Param gate;             // beta, if any branch is gated
    double read = 1;        // factor of the stream before the norms
    double keep = 1;        // factor of what was read in the sum that follows, without a gate
    double keep_gated = 0;  // and its factor behind the gate
  };
  using Call = std::function<Tensor(const Branch& branch, std::size_t index, const Tensor& x)>;
  /// Walks through the layers; `call` runs the mixer that is the index-th of the backbone.
  [[nodiscard]] Tensor walk(const Context& ctx, const Tensor& x, const Call& call) const;

  NormKind norm_;
  Residual residual_;
  bool recompute_;
  std::vector<Layer> layers_;
  NormParams final_norm_;
};

}  // namespace graft
