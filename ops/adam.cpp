#include "ops/adam.h"

#include "engine/require.h"

namespace graft {

void adam(const Context& ctx, const ParameterStore& store, const AdamOptions& options) {
  require(ctx.state != nullptr, "adam: the context has no step state");
  require(static_cast<bool>(store.first_moments()), "adam: the parameter store was allocated without an optimizer");
  require(options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1,
          "adam: betas are {} and {}, expected at least 0 and below 1", options.beta1, options.beta2);
  if (store.flat_elements() == 0) return;
  const auto view = [](const Tensor& tensor) { return tensor ? tensor.mutable_view() : View{}; };
  adam_update(ctx, {store.gradients().view(), store.weights().mutable_view(), store.first_moments().mutable_view(),
                    store.second_moments().mutable_view(), view(store.compute_copy()), view(store.decay_flags()),
                    ctx.state, options});
}

}  // namespace graft
