#include "models/generate.h"

#include "engine/require.h"
#include "ops/argmax.h"

namespace graft {

Generation generate_greedily(const Context& ctx, const SequenceModel& model, const Tensor& prompts, std::int64_t count,
                             bool keep_logits) {
  require(prompts.shape().rank() == 2, "generate: prompts are {}, expected [B, n]", prompts.shape().str());
  require(count >= 1, "generate: {} ids, expected at least 1", count);
  const DecodeState state = model.make_state(ctx, prompts.shape()[0], prompts.shape()[1] + count - 1);
  Generation generation;
  for (std::int64_t i = 0; i < count; ++i) {
    const Tensor logits = model.extend_logits(ctx, i == 0 ? prompts : generation.ids.back(), state, true);
    generation.ids.push_back(argmax(ctx, logits, model.output_columns(), DType::I32));
    if (keep_logits) generation.logits.push_back(logits);
  }
  return generation;
}

}  // namespace graft
