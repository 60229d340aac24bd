#include "cuda/tasks/prompt_sampler.cuh"
#include "tasks/sparse_linear_regression.h"

namespace graft::cuda {
namespace {

const Register sampler{sample_sparse_linear_regression, Backend::Cuda, sample_prompts<SparseLinearRegression>};

}  // namespace
}  // namespace graft::cuda
