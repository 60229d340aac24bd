#include "cuda/launch.cuh"
#include "ops/schedule.h"

namespace graft::cuda {
namespace {

__global__ void advance_kernel(const AdvanceArgs args) {
  StepState state = *args.state;
  end_step(state, args.schedule, args.beta1, args.beta2);
  *args.state = state;
}

void launch(Stream& stream, const AdvanceArgs& args) {
  advance_kernel<<<1, 1, 0, handle(stream)>>>(args);
  check(cudaGetLastError());
}

const Register advance_registered{advance_state, Backend::Cuda, launch};

}  // namespace
}  // namespace graft::cuda
