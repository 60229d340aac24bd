#include "bench/support/name_filter.h"

#include <fmt/format.h>

#include "engine/error.h"

namespace graft::bench {
namespace {

std::regex compiled(std::string_view command, const std::string& pattern) {
  try {
    return std::regex(pattern);
  } catch (const std::regex_error& error) {
    throw ArgumentError(
        fmt::format("{}: --filter \"{}\" is no regular expression: {}", command, pattern, error.what()));
  }
}

}  // namespace

NameFilter::NameFilter(std::string_view command, const std::string& pattern)
    : all_(pattern.empty()), expression_(compiled(command, pattern)) {}

bool NameFilter::operator()(const std::string& name) const { return all_ || std::regex_search(name, expression_); }

}  // namespace graft::bench
