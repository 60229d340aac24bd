#pragma once

#include <cstdint>
#include <string_view>

#include "engine/parameter_store.h"
#include "ops/linear.h"

namespace graft {

/// Initialisers of a linear layer's weight and bias.
struct LinearInit {
  Initializer weight;
  Initializer bias;
};

/// The default of linear layers in both studies: weight and bias uniform on +-1/sqrt(fan_in).
[[nodiscard]] inline LinearInit default_linear_init(std::int64_t fan_in) {
  return {init::uniform_fan_in(fan_in), init::uniform_fan_in(fan_in)};
}

struct LinearOptions {
  bool bias = true;
  bool pad_in = false;   // inputs come with columns rounded up to a multiple of 8
  bool pad_out = false;  // outputs leave that way
};

/// y = x W^T + b.   x [..., in], y [..., out], W [out, in], b [out]
struct Linear {
  Linear() = default;
  Linear(ParameterStore& store, std::string_view scope, std::int64_t in, std::int64_t out, LinearInit init,
         LinearOptions options = {})
      : weight(store.add(scope, "weight", {out, in}, std::move(init.weight),
                         {.pad_rows = options.pad_out, .pad_columns = options.pad_in})) {
    if (options.bias) {
      bias = store.add(scope, "bias", {out}, std::move(init.bias), {.decay = false, .pad_rows = options.pad_out});
    }
  }

  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& x) const {
    return linear(ctx, x, weight.tensor(ctx), bias ? bias.tensor(ctx) : Tensor());
  }

  Param weight;
  Param bias;
};

}  // namespace graft
