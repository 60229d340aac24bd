#include "cuda/tasks/prompt_sampler.cuh"
#include "tasks/decision_tree.h"

namespace graft::cuda {
namespace {

const Register sampler{sample_decision_tree, Backend::Cuda, sample_prompts<DecisionTree>};

}  // namespace
}  // namespace graft::cuda
