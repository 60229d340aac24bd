#include "cuda/tasks/prompt_sampler.cuh"
#include "tasks/relu_2nn_regression.h"

namespace graft::cuda {
namespace {

const Register sampler{sample_relu_2nn_regression, Backend::Cuda, sample_prompts<Relu2nnRegression>};

}  // namespace
}  // namespace graft::cuda
