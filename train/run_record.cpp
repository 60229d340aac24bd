#include "train/run_record.h"

#include "engine/version.h"
#include "train/command.h"

namespace graft {

RunOptions run_options(const RunConfig& config) {
  RunOptions options;
  options.name = config.run.name;
  options.config_hash = config_hash8(config);
  options.config_text = config.text;
  options.resolved_text = resolved_toml(config);
  return options;
}

nlohmann::json run_info(const RunConfig& config, const Session& session) {
  const BuildInfo& build = build_info();
  return {{"graft", build.version},
          {"git", build.git},
          {"compiler", build.compiler},
          {"cuda", build.cuda},
          {"seed", config.run.seed},
          {"device", session.runtime().device_name()},
          {"backend", name_of(session.ctx().backend)},
          {"command_line", command_line()}};
}

}  // namespace graft
