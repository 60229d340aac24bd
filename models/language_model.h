#pragma once

#include "models/model_config.h"

namespace graft {

/// What Mamba, Mamba-2 and the hybrids of the retrieval study share: RMS norms, no positions, an embedding with rows
/// for a multiple of 8 token ids that is also the read-out, uniform starts, exact GELUs. Source: gpantaz/retrievit;
/// state-spaces/mamba, mixer_seq_simple.py.
inline void language_model(ModelConfig& config) {
  config.positions = Positions::None;
  config.init = BlockInit::Default;
  config.norm = NormKind::RmsNorm;
  config.tied = true;
  config.vocabulary_multiple = 8;
  config.gelu_erf = true;
}

}  // namespace graft
