#include "ops/schedule.h"

#include "engine/require.h"

namespace graft {

void advance(const Context& ctx, const Schedule& schedule, double beta1, double beta2) {
  require(ctx.state != nullptr, "advance: the context has no step state");
  advance_state(ctx, {ctx.state, schedule, beta1, beta2});
}

}  // namespace graft
