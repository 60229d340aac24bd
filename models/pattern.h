#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// Expands a block pattern into mixer symbols: "M(AM)*2" is M A M A M.
///
///   pattern = { item }      item = ( symbol | "(" pattern ")" ) [ "*" count ]
///   symbol  = an upper-case letter, then lower-case letters or digits
///
/// Spaces are ignored. Throws ArgumentError with the position of the mistake, on an empty pattern, on more
/// than 1,000 blocks and on more than 16 nested parentheses.
[[nodiscard]] std::vector<std::string> expand_pattern(std::string_view pattern);

}  // namespace graft
