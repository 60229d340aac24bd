#pragma once
// From bytes to a tree of named values with positions. Knows TOML, not what the keys mean.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/settings.h"

namespace graft {

/// Bytes; no configuration comes near, and what is refused is refused quickly.
inline constexpr std::size_t kLargestConfig = 32 << 10;

/// A key with its value or, for a table or an array, its children, as it stands in the file.
struct RawSetting {
  std::string name;            // one part of the path; with quotes if it is not a bare key
  SettingOrigin key_origin;    // position of the key
  SettingOrigin value_origin;  // position of the value
  SettingValue value;          // std::monostate for what no setting can be: a date, a mixed array, a table
  std::string phrase;          // the value as messages say it: `the text "adam"`, `the integer 3`, `a date`
  bool is_table = false;
  bool is_empty_array = false;       // fits every kind of array
  std::vector<RawSetting> children;  // of a table; of an array its elements, which have no names
};

/// Something wrong at a place in the text.
struct ConfigMistake {
  SettingOrigin origin;
  std::string key;      // may be empty
  std::string message;  // "got ..., expected ..."
};

struct RawConfig {
  RawSetting root;                      // a table
  std::vector<ConfigMistake> mistakes;  // of syntax
  bool complete = true;                 // false: reading stopped at a mistake, the rest is not in `root`
};

/// The text of a configuration file. Throws ConfigError if it is missing (with the nearest name in its directory), not
/// a regular file, not readable, empty or larger than kLargestConfig. Never blocks: a pipe is refused, not waited for.
[[nodiscard]] std::string read_config_file(const std::string& path);

/// Parses TOML 1.0; `label` stands in positions. A byte-order mark and CRLF line ends are accepted. Each line that is
/// wrong by itself is reported and left out, so that one look at the messages shows them all. Text that is not
/// UTF-8, or nested deeper than a configuration can be, is refused before the parser sees it.
[[nodiscard]] RawConfig parse_toml(std::string_view text, const std::string& label);

/// One -o argument: "table.key=value".
struct RawOverride {
  std::string path;
  RawSetting setting;    // the value read as TOML
  std::string bare;      // the value as typed, for keys that take text
  bool readable = true;  // false: `bare` is no TOML value
};

/// Nothing, and one more mistake, if there is no "=", no key, or the key is not dotted bare names.
[[nodiscard]] std::optional<RawOverride> parse_override(const std::string& argument,
                                                        std::vector<ConfigMistake>& mistakes);

/// Position of the first byte that is not part of a UTF-8 character, or npos.
[[nodiscard]] std::size_t first_bad_utf8(std::string_view text);
[[nodiscard]] bool is_utf8(std::string_view text);

/// A name as shown in messages: UTF-8, long ones shortened in the middle, control characters and
/// bytes that are no character replaced.
[[nodiscard]] std::string shown(std::string_view name, std::size_t longest = 64);

}  // namespace graft
