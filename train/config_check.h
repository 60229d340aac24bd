#pragma once
// A tree of named values against the schema: all mistakes at once, or resolved settings.

#include <string>
#include <string_view>
#include <vector>

#include "engine/settings.h"
#include "train/config_file.h"
#include "train/config_schema.h"

namespace graft {

/// Resolves values, defaults and conditions. `text` is the file's, quoted under each mistake; `stem` names a run that
/// has no name. A later override of a key wins. An override of one of two alternatives (model.preset and
/// model.pattern, train.steps and train.examples) replaces the one in the file.
/// Throws ConfigError with every mistake and, as its last line, a summary.
[[nodiscard]] Settings check_config(const Schema& schema, const RawConfig& raw,
                                    const std::vector<RawOverride>& overrides, std::string_view text,
                                    const std::string& label, const std::string& stem);

}  // namespace graft
