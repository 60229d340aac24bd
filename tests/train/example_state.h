#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/temporary_directory.h"
#include "train/file_io.h"

namespace graft::test {

/// A state.json that a run may have saved after `step` steps.
[[nodiscard]] inline nlohmann::json example_state(std::int64_t step, std::uint64_t seed = 5) {
  return {{"config_hash", "01234567"},
          {"seed", seed},
          {"curriculum", {{"points", 5}, {"dims", 3}}},
          {"interval", {{"loss_sum", step > 0 ? 2.5 : 0.0}, {"finite", step > 0 ? 1 : 0}}},
          {"step_state",
           {{"step", step},
            {"seed", seed},
            {"updates", step},
            {"skipped", 0},
            {"skipped_in_row", 0},
            {"learning_rate", 0.1},
            {"bias_correction1", 1 - std::pow(0.9, step + 1)},
            {"bias_correction2", 1 - std::pow(0.999, step + 1)}}}};
}

/// Changes a checkpoint's files as somebody does who knows the format: all checksums are right.
inline void forge(const std::filesystem::path& checkpoint, const std::string& state_text,
                  const std::function<void(nlohmann::json&)>& change_manifest = {}) {
  write_contents(checkpoint / "state.json", state_text);
  nlohmann::json manifest = nlohmann::json::parse(contents(checkpoint / "manifest.json"));
  const FileDigest digest = digest_of_text(state_text);
  manifest["files"]["state.json"] = {{"bytes", digest.bytes}, {"xxh3_128", digest.xxh3_128}};
  if (change_manifest) change_manifest(manifest);
  manifest.erase("checksum");
  manifest["checksum"] = digest_of_text(manifest.dump()).xxh3_128;
  write_contents(checkpoint / "manifest.json", manifest.dump(1) + "\n");
}

/// The same for a value of the state, named as in "/step_state/step"; null removes it.
inline void forge_value(const std::filesystem::path& checkpoint, const std::string& pointer,
                        const nlohmann::json& value) {
  nlohmann::json state = nlohmann::json::parse(contents(checkpoint / "state.json"));
  const nlohmann::json::json_pointer where(pointer);
  state[where] = value;
  if (value.is_null()) state[where.parent_pointer()].erase(where.back());
  forge(checkpoint, state.dump(1) + "\n");
}

}  // namespace graft::test
