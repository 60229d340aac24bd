// Whether the [model] table describes a model that can be built and trained. Asked while a configuration is read, so
// that mistakes come with their place in the file and before anything is allocated.

#include <fmt/format.h>

#include <set>
#include <string>
#include <vector>

#include "engine/error.h"
#include "models/mixer.h"
#include "models/model_config.h"
#include "models/pattern.h"
#include "ops/residual_norm.h"

namespace graft {
namespace {

/// One block's mixer on its own: what its limits are, it knows best.
void check_mixer(const MixerEntry& entry, const ModelConfig& config, const std::string& blame,
                 SettingMistakes& mistakes) {
  const std::size_t before = mistakes.list().size();
  if (entry.check) entry.check(config, mistakes);
  if (mistakes.list().size() > before) return;
  try {
    ParameterStore parameters;  // shapes only, nothing is allocated
    static_cast<void>(entry.make(parameters, entry.name, config, {0, 1}));
  } catch (const ArgumentError& error) {
    mistakes.add({blame}, error.what());
  }
}

void check_model(const Settings& settings, SettingMistakes& mistakes) {
  const bool by_hand = !settings.has("model.preset");
  if (by_hand && !settings.has("model.pattern")) return;                         // that is reported as missing
  if (!by_hand && !is_registered_preset(settings.text("model.preset"))) return;  // settings of no model of ours
  const ModelConfig config = model_config(settings);
  const std::string blame = by_hand ? "model.pattern" : "model.preset";

  if (config.width > kResidualNormMaxWidth) {
    mistakes.add({"model.width"},
                 fmt::format("got {}, expected at most {}, the widest norm", config.width, kResidualNormMaxWidth));
  }
  std::set<std::string> symbols;
  try {
    for (const PatternLayer& layer : expand_pattern(config.pattern)) {
      symbols.insert(layer.branches.begin(), layer.branches.end());
    }
  } catch (const ArgumentError& error) {
    mistakes.add({blame, "model.layers"}, error.what());
  }
  for (const std::string& symbol : symbols) {
    const MixerEntry* entry = nullptr;
    try {
      entry = &find_mixer(symbol);
    } catch (const ArgumentError& error) {
      mistakes.add({blame}, error.what());
      continue;
    }
    check_mixer(*entry, config, blame, mistakes);
  }
}

const RegisterSettings checks{{
    .table = "model",
    .owner = "",
    .doc = "conditions that every model fulfils",
    .checks = {check_model},
}};

}  // namespace
}  // namespace graft
