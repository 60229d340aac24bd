#include "train/suggest.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>

namespace graft {
namespace {

constexpr std::size_t kLongestName = 128;  // longer ones are no misspellings, and would cost time

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

int tolerated(std::size_t length) { return std::max(1, static_cast<int>(length) / 3); }

int common_prefix(std::string_view a, std::string_view b) {
  const auto [end, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  static_cast<void>(other);
  return static_cast<int>(end - a.begin());
}

struct Parts {
  std::string_view table, name;
};

Parts split(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  if (dot == std::string_view::npos) return {{}, path};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

constexpr int kUnrelated = 1000;

/// Half edits, so that "same distance but in another table" fits in between. kUnrelated: not what was meant.
int key_cost(std::string_view typed, const KeyCandidate& candidate) {
  const Parts typed_parts = split(typed);
  const Parts parts = split(candidate.path);
  int best = kUnrelated;

  const int table_distance = edit_distance(typed_parts.table, parts.table, 3);
  const int name_limit = tolerated(std::max(typed_parts.name.size(), parts.name.size()));
  const int name_distance = edit_distance(typed_parts.name, parts.name, name_limit);
  if (name_distance <= name_limit) {
    if (table_distance <= tolerated(parts.table.size())) {
      best = std::min(best, 2 * (name_distance + table_distance));
    } else if (name_distance == 0 || typed_parts.table.empty()) {  // a key in the wrong table, or in none
      best = std::min(best, 2 * name_distance + (typed_parts.table.empty() ? 1 : 3));
    }
  }
  if (table_distance > 0) {  // a dot lost, added or mistyped moves the border between the parts
    const int whole = edit_distance(typed, candidate.path, 2);
    if (whole <= 2) best = std::min(best, 2 * whole);
  }
  for (const std::string& alias : candidate.aliases) {
    const int distance = edit_distance(typed_parts.name, alias, 1);
    if (distance <= 1 && (distance == 0 || alias.size() > 3)) {
      best = std::min(best, 2 * distance + (typed_parts.table == parts.table ? 1 : 2));
    }
  }
  return best;
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b, int limit) {
  const auto rows = static_cast<int>(a.size());
  const auto columns = static_cast<int>(b.size());
  if (std::abs(rows - columns) > limit) return limit + 1;
  const auto width = static_cast<std::size_t>(columns) + 1;
  std::vector<int> before(width), above(width), row(width);  // rows i-2, i-1 and i of the table
  for (int j = 0; j <= columns; ++j) above[static_cast<std::size_t>(j)] = j;
  for (int i = 1; i <= rows; ++i) {
    row[0] = i;
    int smallest = i;
    const char from = lower(a[static_cast<std::size_t>(i) - 1]);
    for (std::size_t j = 1; j < width; ++j) {
      const char to = lower(b[j - 1]);
      int cost = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (from == to ? 0 : 1)});
      if (i > 1 && j > 1 && from == lower(b[j - 2]) && lower(a[static_cast<std::size_t>(i) - 2]) == to) {
        cost = std::min(cost, before[j - 2] + 1);
      }
      row[j] = cost;
      smallest = std::min(smallest, cost);
    }
    if (smallest > limit) return limit + 1;
    std::swap(before, above);
    std::swap(above, row);
  }
  return std::min(above[width - 1], limit + 1);
}

std::string nearest_name(std::string_view typed, const std::vector<std::string>& candidates) {
  if (typed.empty() || typed.size() > kLongestName) return {};
  const std::string* best = nullptr;
  std::tuple<int, int> best_cost;
  for (const std::string& candidate : candidates) {
    const int limit = tolerated(std::max(typed.size(), candidate.size()));
    const int distance = edit_distance(typed, candidate, limit);
    if (distance > limit) continue;
    const std::tuple<int, int> cost{distance, -common_prefix(typed, candidate)};
    if (best == nullptr || cost < best_cost) {
      best = &candidate;
      best_cost = cost;
    }
  }
  return best == nullptr ? std::string() : *best;
}

std::string nearest_key(std::string_view typed, const std::vector<KeyCandidate>& candidates) {
  if (typed.empty() || typed.size() > kLongestName) return {};
  const KeyCandidate* best = nullptr;
  std::tuple<int, bool, int, int> best_cost;
  for (const KeyCandidate& candidate : candidates) {
    const int cost = key_cost(typed, candidate);
    if (cost >= kUnrelated) continue;
    const int other_length = std::abs(static_cast<int>(typed.size()) - static_cast<int>(candidate.path.size()));
    const std::tuple<int, bool, int, int> order{cost, !candidate.active, -common_prefix(typed, candidate.path),
                                                other_length};
    if (best == nullptr || order < best_cost) {
      best = &candidate;
      best_cost = order;
    }
  }
  return best == nullptr ? std::string() : best->path;
}

}  // namespace graft
