#include "engine/stream.h"
#include "ops/schedule.h"

namespace graft {
namespace {

void run(Stream&, const AdvanceArgs& args) {
  StepState& state = *args.state;
  state.step += 1;
  state.updates += state.skip == 0 ? 1 : 0;
  state.skip = 0;
  prepare_update(state, args.schedule, args.beta1, args.beta2);
}

const Register registered{advance_state, Backend::Cpu, run};

}  // namespace
}  // namespace graft
