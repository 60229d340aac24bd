#include "tasks/ngram_retrieval.h"

#include "cuda/tasks/token_sampler.cuh"

namespace graft::cuda {
namespace {

const Register sampler{sample_ngram_retrieval, Backend::Cuda, sample_tokens<NgramRetrieval>};

}  // namespace
}  // namespace graft::cuda
