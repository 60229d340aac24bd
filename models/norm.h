#pragma once

#include <cstdint>
#include <string_view>

#include "engine/parameter_store.h"
#include "models/model_config.h"
#include "ops/residual_norm.h"

namespace graft {

struct NormOptions {
  bool decay_gain = false;  // whether weight decay takes part of the gain; never of the bias
};

/// Gain, and for a layer norm a bias, of one norm over the width; eps is 1e-5 everywhere.
struct NormParams {
  NormParams() = default;
  NormParams(ParameterStore& store, std::string_view scope, NormKind kind, std::int64_t width, NormOptions options = {})
      : gain(store.add(scope, "gain", {width}, init::constant(1), {.decay = options.decay_gain})) {
    if (kind == NormKind::LayerNorm) bias = store.add(scope, "bias", {width}, init::constant(0), {.decay = false});
  }
  [[nodiscard]] NormWeights weights(const Context& ctx) const {
    return {gain.master(ctx), bias ? bias.master(ctx) : Tensor()};
  }

  Param gain;
  Param bias;
};

}  // namespace graft
