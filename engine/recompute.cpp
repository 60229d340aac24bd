#include "engine/recompute.h"

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {

Tensor recompute(const Context& ctx, const std::function<Tensor(const Context&, const Tensor&)>& function,
                 const Tensor& input) {
  if (ctx.tape == nullptr) return function(ctx, input);
  Tensor output;
  {
    // Recorded, as it will be again in backward: an op that saves something may take another kernel, of other rounding.
    Tape dropped;
    output = function(ctx.with_tape(dropped), input);
  }
  GradRef parameters;  // stands for the parameters used inside, which need gradients whatever the input
  parameters.requires_grad = true;
  ctx.tape->record("recompute", {input, parameters}, output,
                   [function, input](const Context& c, Grads& grads, const GradRef& dy) {
                     Tape tape;
                     const Context recording = c.with_tape(tape);
                     const Tensor again = function(recording, input);
                     if (!again.requires_grad()) return;  // no parameter inside, and an input without a gradient
                     const Grads inner = tape.backward_from(c, {{again, grads.tensor(dy)}}, grads.sink());
                     if (input.requires_grad() && inner.has(input)) grads.pass(input, inner.tensor(input));
                   });
  return output;
}

}  // namespace graft
