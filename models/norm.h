#pragma once

#include <cstdint>
#include <string_view>

#include "engine/parameter_store.h"
#include "ops/layer_norm.h"

namespace graft {

/// LayerNorm with gain and bias, eps 1e-5; alone, or fused with the residual add before it.
struct LayerNorm {
  LayerNorm() = default;
  LayerNorm(ParameterStore& store, std::string_view scope, std::int64_t width)
      : gain(store.add(scope, "gain", {width}, init::constant(1), {.decay = false})),
        bias(store.add(scope, "bias", {width}, init::constant(0), {.decay = false})) {}

  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const {
    return layer_norm(ctx, x, gain.master(ctx), bias.master(ctx));
  }
  [[nodiscard]] AddLayerNorm add(const Context& ctx, const Tensor& residual, const Tensor& branch,
                                 bool keep_residual = true) const {
    return add_layer_norm(ctx, residual, branch, gain.master(ctx), bias.master(ctx), keep_residual);
  }

  Param gain;
  Param bias;
};

}  // namespace graft
