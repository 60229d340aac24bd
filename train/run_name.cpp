#include "train/run_name.h"

#include <algorithm>

namespace graft {
namespace {

/// Not std::isalnum, whose answer depends on the locale.
bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("_-.+=").find(c) != std::string_view::npos;
}

bool may_begin(char c) { return c != '.' && c != '-'; }

}  // namespace

bool is_run_name(std::string_view name) {
  return !name.empty() && name.size() <= kLongestRunName && may_begin(name.front()) &&
         std::all_of(name.begin(), name.end(), is_plain);
}

std::string run_name_from(std::string_view stem) {
  std::string name;
  for (const char c : stem) name += is_plain(c) ? c : '_';
  if (name.empty() || !may_begin(name.front())) name.insert(0, "run");
  name.resize(std::min(name.size(), kLongestRunName));
  return name;
}

}  // namespace graft
