#pragma once
// The nearest known name to a misspelled one. Names are short and lists are small: exact distances, no index.

#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// Number of insertions, deletions, substitutions and swaps of neighbours that lead from `a` to `b`, no character
/// edited twice (optimal string alignment). Stops early and returns limit + 1 when it is more than `limit`.
/// Bytes are compared, letters without case.
/// Source: the recurrence of Boytsov 2011, section 2.2.1 (restricted Damerau-Levenshtein distance).
[[nodiscard]] int edit_distance(std::string_view a, std::string_view b, int limit = 1 << 20);

/// The candidate nearest to `typed`, or an empty string if none is near enough to be what was meant (a third of the
/// letters may differ, at least one). Ties go to the longer common beginning, then to the earlier candidate.
[[nodiscard]] std::string nearest_name(std::string_view typed, const std::vector<std::string>& candidates);

/// A dotted key as a candidate.
struct KeyCandidate {
  std::string path;                  // "optimizer.lr"
  std::vector<std::string> aliases;  // what other programs call it: "learning_rate"
  bool active = true;                // legal in this configuration; preferred between equals
};

/// Like nearest_name() for dotted keys: the table and the last part are judged apart, so that a right key in a wrong
/// table is found as well as a wrong letter in a right one, and an alias as well as a misspelling.
[[nodiscard]] std::string nearest_key(std::string_view typed, const std::vector<KeyCandidate>& candidates);

}  // namespace graft
