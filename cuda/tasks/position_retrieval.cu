#include "tasks/position_retrieval.h"

#include "cuda/tasks/token_sampler.cuh"

namespace graft::cuda {
namespace {

const Register sampler{sample_position_retrieval, Backend::Cuda, sample_tokens<PositionRetrieval>};

}  // namespace
}  // namespace graft::cuda
