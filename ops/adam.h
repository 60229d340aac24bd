#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/parameter_store.h"
#include "engine/step_state.h"
#include "engine/tensor.h"

namespace graft {

struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;  // decoupled; 0 is plain Adam
};

struct AdamArgs {
  ConstView gradients;                          // [n] float32 or float64, as the next three
  View weights, first_moments, second_moments;  // [n]
  View compute_copy;                            // [n] bfloat16, or null
  ConstView decay_flags;                        // [ceil(n / 64)] uint8, or null: nothing decays
  const StepState* state;
  AdamOptions options;
};

inline constinit Kernel<AdamArgs> adam_update{"adam"};

/// One update of all parameters, in one pass over the flat buffers of the store:
///   g = state.clip_scale * gradient
///   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///   p = p - lr * weight_decay * p                            where the decay flag is set
///   p = p - lr * (m / state.bias_correction1) / (sqrt(v / state.bias_correction2) + eps)
/// and the bfloat16 copy of p where the store has one. Learning rate and corrections are read from the device. Does
/// nothing at all if state.skip is set. Padding, where weights and gradients are zero, stays zero.
/// Throws ArgumentError without a step state, for a store without moments, and for betas outside [0, 1).
/// Source: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2 (decay multiplied by the learning
/// rate, as in torch.optim.AdamW).
void adam(const Context& ctx, const ParameterStore& store, const AdamOptions& options);

}  // namespace graft
