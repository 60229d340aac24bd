#pragma once

#include <nlohmann/json.hpp>

#include "train/config.h"
#include "train/run_directory.h"
#include "train/session.h"

namespace graft {

/// What a run's directory is made from: name, hash and texts of its configuration. Where it lies, `info` and `resume`
/// are left to the caller.
[[nodiscard]] RunOptions run_options(const RunConfig& config);

/// The part of run.json that any command records about a run: versions, seed, device, command line.
[[nodiscard]] nlohmann::json run_info(const RunConfig& config, const Session& session);

}  // namespace graft
