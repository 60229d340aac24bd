#pragma once

#include <cstdint>
#include <vector>

#include "models/sequence_model.h"

namespace graft {

struct Generation {
  std::vector<Tensor> ids;     // each [B, 1] int32, in order
  std::vector<Tensor> logits;  // each [B, 1, stored columns], those the ids were chosen from; empty unless asked for
};

/// Continues prompts greedily: reads them once, then appends the id with the largest logit (the lowest of several equal
/// ones) `count` times. Everything stays on the device.
///   prompts  [B, n] int32; n + count - 1 tokens are read in all
/// Throws ArgumentError where the model reads vectors, for count < 1, and where a position table is too short.
[[nodiscard]] Generation generate_greedily(const Context& ctx, const SequenceModel& model, const Tensor& prompts,
                                           std::int64_t count, bool keep_logits = false);

}  // namespace graft
