#pragma once

#include <functional>
#include <initializer_list>

#include "engine/context.h"
#include "engine/tensor.h"

namespace graft {

/// Runs `function(ctx, input)` without keeping its activations, and runs it again in the backward pass
/// to get them: memory for time. Parameters used inside receive their gradients as usual, and results are
/// those without it, bit for bit: both runs launch what a run that is recorded launches. The function
/// must give the same result both times; random numbers do, being functions of the step. Tensors
/// that the function captures get no gradient, unless they are parameters.
Tensor recompute(const Context& ctx, const std::function<Tensor(const Context&, const Tensor&)>& function,
                 const Tensor& input);

}  // namespace graft
