#include "cuda/tasks/prompt_sampler.cuh"
#include "tasks/linear_regression.h"

namespace graft::cuda {
namespace {

const Register sampler{sample_linear_regression, Backend::Cuda, sample_prompts<LinearRegression>};

}  // namespace
}  // namespace graft::cuda
