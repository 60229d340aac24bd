#pragma once

#include <cstdint>

#include "engine/philox.h"
#include "tasks/prompt_sampler.h"
#include "tasks/random_subset.h"

namespace graft {

/// One sparse-parity prompt: x_i uniform on {-1, 1}^dim, y_i = product of x_i[j] over j in S, in {-1, 1}. S is a
/// uniformly random subset of `subset_size` of the active coordinates.
///
/// S is a prompt's own, or (one_subset) shared by all training prompts of a step, on whichever device. Evaluation
/// prompts always have their own: what is expected of a prompt is the same either way, and the mean over an evaluation
/// set would otherwise hang on few subsets.
/// Source: Park et al. 2024, section 3.2 and appendix; shared subsets: krafton-ai/mambaformer-icl.
struct SparseParity {
  enum : std::uint32_t { kSubset, kInputs, kSharedSubset };  // purposes: separate random streams
  int dim = 10;
  int subset_size = 2;
  bool one_subset = false;

  [[nodiscard]] GRAFT_HD int parameters() const { return subset_size; }                          // S, ascending
  [[nodiscard]] GRAFT_HD float parameter(const Draw& /*draw*/, int /*j*/) const { return 0.F; }  // see settle()
  GRAFT_HD void settle(const Draw& draw, int active, float* coordinates) const {
    const bool shared = one_subset && draw.domain == RandomDomain::Train;
    const Draw source{draw.seed, draw.domain, draw.step, shared ? 0 : draw.example};
    RandomSubset subset(active, subset_size);
    int found = 0;
    for (int j = 0; j < active; ++j) {
      if (subset.takes_next(source, shared ? kSharedSubset : kSubset)) coordinates[found++] = static_cast<float>(j);
    }
  }
  GRAFT_HD void inputs4(const Draw& draw, int block, float* x) const {
    const Words4 words = draw.words(kInputs, static_cast<std::uint32_t>(block));
    x[0] = sign(words.x);
    x[1] = sign(words.y);
    x[2] = sign(words.z);
    x[3] = sign(words.w);
  }
  [[nodiscard]] GRAFT_HD float label(const float* coordinates, const float* x) const {
    float product = 1.F;
    for (int k = 0; k < subset_size; ++k) product *= x[static_cast<int>(coordinates[k])];
    return product;
  }

 private:
  [[nodiscard]] GRAFT_HD static float sign(std::uint32_t word) { return (word >> 31U) != 0 ? 1.F : -1.F; }
};

inline constinit Kernel<SamplePrompts<SparseParity>> sample_sparse_parity{"sample_sparse_parity"};

}  // namespace graft
