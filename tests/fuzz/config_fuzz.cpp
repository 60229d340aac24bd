// The configuration reader on arbitrary text. The program links the reader alone: its tasks and presets are the few
// declared here, one with every kind of key.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/error.h"
#include "engine/settings.h"
#include "tests/fuzz/fuzz.h"
#include "train/config.h"
#include "train/config_file.h"

namespace graft {
namespace {

const RegisterSettings task{{
    .table = "task",
    .owner = "linear_regression",
    .doc = "a task with every kind of key",
    .keys =
        {
            SettingKey::integer("task.dim", "an integer").with_default(20).between(1, 1024),
            SettingKey::number("task.noise", "a number").with_default(0).between(0, 1e6),
            SettingKey::boolean("task.curriculum.enabled", "a boolean in a nested table").with_default(true),
            SettingKey::integers("task.sizes", "integers").with_defaults({1, 2}).at_least(1),
            SettingKey::numbers("task.levels", "numbers").with_defaults({0.5, 1.0}).between(0, 1),
            SettingKey::texts("task.labels", "texts").with_defaults({"a"}),
            SettingKey::text("task.kind", "a choice").with_default("plain").one_of({"plain", "noisy"}),
        },
}};
const RegisterSettings preset{{
    .table = "model",
    .owner = "transformer",
    .doc = "a preset",
    .keys = {SettingKey::integer("model.rows", "a key of the preset").with_default(64).at_least(1)},
}};

/// What follows the first of these in an input is an -o argument, up to the next.
constexpr char kOverrideMark = '\x1e';

void check(std::string_view text, const std::vector<std::string>& overrides) {
  try {
    const RunConfig config = parse_config(text, "x.toml", overrides);
    const std::string canonical = resolved_toml(config);
    std::string again;
    try {
      again = resolved_toml(parse_config(canonical, "x.toml"));
    } catch (const ConfigError& error) {
      again = error.what();
    }
    fuzz::expect(again == canonical, "the canonical text reads back to itself", canonical + "\nbecame\n" + again);
  } catch (const ConfigError& error) {
    fuzz::expect_message(error.what(), 64 << 10, true);
    fuzz::expect(is_utf8(error.what()), "a message is UTF-8", error.what());
  }
}

}  // namespace
}  // namespace graft

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string_view text = rest.substr(0, rest.find(graft::kOverrideMark));
  std::vector<std::string> overrides;
  for (rest.remove_prefix(text.size()); !rest.empty() && overrides.size() < 8;) {
    rest.remove_prefix(1);
    overrides.emplace_back(rest.substr(0, rest.find(graft::kOverrideMark)));
    rest.remove_prefix(overrides.back().size());
  }
  graft::check(text, overrides);
  return 0;
}
