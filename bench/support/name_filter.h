#pragma once

#include <regex>
#include <string>
#include <string_view>

namespace graft::bench {

/// What --filter says: a regular expression (ECMAScript) that is found anywhere in a name. An empty one lets
/// everything through.
class NameFilter {
 public:
  /// Throws ArgumentError naming the pattern if it is no regular expression; `command` is for the message.
  NameFilter(std::string_view command, const std::string& pattern);
  [[nodiscard]] bool operator()(const std::string& name) const;

 private:
  bool all_;
  std::regex expression_;
};

}  // namespace graft::bench
