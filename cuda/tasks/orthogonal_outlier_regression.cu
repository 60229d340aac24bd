#include "cuda/tasks/prompt_sampler.cuh"
#include "tasks/orthogonal_outlier_regression.h"

namespace graft::cuda {
namespace {

const Register sampler{sample_orthogonal_outlier_regression, Backend::Cuda,
                       sample_prompts<OrthogonalOutlierRegression>};

}  // namespace
}  // namespace graft::cuda
