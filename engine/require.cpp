#include "engine/require.h"

#include <string_view>

namespace graft {

void throw_argument_error(const std::string& message, const std::source_location& where) {
  std::string_view file = where.file_name();
  if (const auto slash = file.rfind('/'); slash != std::string_view::npos) file.remove_prefix(slash + 1);
  throw ArgumentError(fmt::format("{} [{}:{}]", message, file, where.line()));
}

}  // namespace graft
