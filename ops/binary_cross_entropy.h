#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/squared_error.h"

namespace graft {

/// How targets say which of the two classes is meant.
enum class BinaryTargets : std::uint8_t {
  Signs,          // -1 or +1
  Probabilities,  // 0 or 1, or a probability of class 1 between them
};

struct BinaryCrossEntropyForward {
  ConstView predictions;  // [B, T, stored columns]
  ConstView targets;      // [B, N, target columns]
  ConstView mask;         // [B, N] uint8, or null: every position counts
  View partial;           // [squared_error_blocks(), 2] float64 scratch: sum of losses, scored terms
  View loss;              // []
  View weight;            // [] 1 / (number of scored terms), 0 if there are none; or null
  SquaredErrorLayout layout;
  BinaryTargets kind = BinaryTargets::Signs;
};

struct BinaryCrossEntropyBackward {
  ConstView dloss;  // []
  ConstView predictions, targets, mask;
  ConstView weight;
  GradTarget dpredictions;
  SquaredErrorLayout layout;
  BinaryTargets kind = BinaryTargets::Signs;
};

inline constinit Kernel<BinaryCrossEntropyForward> binary_cross_entropy_forward{"binary_cross_entropy_forward"};
inline constinit Kernel<BinaryCrossEntropyBackward> binary_cross_entropy_backward{"binary_cross_entropy_backward"};

/// Binary cross-entropy of logits z at chosen tokens, p being the target as a probability of class 1:
///   loss = sum over scored (b, i) and c of [max(z, 0) - z p + log(1 + exp(-|z|))] / terms,
///   z = predictions[b, stride * i + offset, c],  terms = scored positions * columns, or scored positions alone with
///   positions.sum_columns. Neither overflows nor cancels, whatever z.
///   predictions  [B, T, stored]      the compute or stream dtype
///   targets      [B, N, >= columns]  the stream dtype; p = (target + 1) / 2 for Signs, p = target for Probabilities
///   mask         [B, N]              uint8, 1 = the position counts; or an empty tensor: all do
///   positions    which token predicts which target, and which columns count, as for squared_error()
///   returns      []                  the stream dtype
/// The loss (and every gradient) is 0 if nothing is scored. Saves predictions, targets and mask. Backward,
/// (sigmoid(z) - p) / terms, writes dpredictions whole: 0 wherever nothing was read.
/// Throws ArgumentError if shapes or dtypes do not fit, if the last target lies beyond the last token, or if there
/// are 2^31 predictions or more.
/// Source: torch.nn.functional.binary_cross_entropy_with_logits.
[[nodiscard]] Tensor binary_cross_entropy_with_logits(const Context& ctx, const Tensor& predictions,
                                                      const Tensor& targets, const Tensor& mask = {},
                                                      const SquaredErrorOptions& positions = {},
                                                      BinaryTargets kind = BinaryTargets::Signs);

}  // namespace graft
