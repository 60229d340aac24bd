#include "cuda/tasks/prompt_sampler.cuh"
#include "tasks/many_outlier_regression.h"

namespace graft::cuda {
namespace {

const Register sampler{sample_many_outlier_regression, Backend::Cuda, sample_prompts<ManyOutlierRegression>};

}  // namespace
}  // namespace graft::cuda
