#include "engine/stream.h"
#include "ops/schedule.h"

namespace graft {
namespace {

void run(Stream&, const AdvanceArgs& args) { end_step(*args.state, args.schedule, args.beta1, args.beta2); }

const Register registered{advance_state, Backend::Cpu, run};

}  // namespace
}  // namespace graft
