#pragma once

#include "engine/context.h"
#include "ops/ssd.h"

namespace graft {

/// What ssd() and extend_ssd() ask of their inputs. `op` starts every message. Throws ArgumentError.
void check_ssd_inputs(const Context& ctx, const char* op, const SsdInputs& inputs);

}  // namespace graft
