#pragma once
// Names of runs: what they may be, and one for a run whose configuration names none.

#include <cstddef>
#include <string>
#include <string_view>

namespace graft {

inline constexpr std::size_t kLongestRunName = 100;

/// What is_run_name() lets through, for messages.
inline constexpr const char* kRunNameRule =
    "letters, digits and \"_-.+=\", at most 100, not beginning with \".\" or \"-\": it names a directory";

/// True if a run may be called that: a directory is, and no shell needs quotes for it.
[[nodiscard]] bool is_run_name(std::string_view name);

/// The name of a run after its configuration's file: other characters become "_". is_run_name() holds for it.
[[nodiscard]] std::string run_name_from(std::string_view stem);

}  // namespace graft
