#include "cuda/tasks/prompt_sampler.cuh"
#include "tasks/sparse_parity.h"

namespace graft::cuda {
namespace {

const Register sampler{sample_sparse_parity, Backend::Cuda, sample_prompts<SparseParity>};

}  // namespace
}  // namespace graft::cuda
