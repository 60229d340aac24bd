#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// One layer of a pattern: mixers that read the same residual stream, each through a norm of its own. Usually one.
struct PatternLayer {
  std::vector<std::string> branches;  // symbols
  std::size_t gated = 0;  // branches from here on form a second stream, behind a gate; branches.size(): none

  [[nodiscard]] bool has_gate() const { return gated < branches.size(); }
};

/// Expands a block pattern into layers: "M(AM)*2" is M, A, M, A, M.
///
///   pattern = { item }      item = ( symbol | "(" pattern ")" | "[" branches "]" ) [ "*" count ]
///   branches = symbol { symbol } [ "|" symbol { symbol } ]
///   symbol  = an upper-case letter, then lower-case letters or digits
///
/// Brackets hold up to three mixers in parallel, as in x + A(norm x) + F(norm x), written "[AF]"; those behind a bar
/// are multiplied by a learned scalar tanh(beta) that starts at 0. Spaces are ignored. Throws ArgumentError with the
/// position of the mistake, on an empty pattern, on more than 1,000 layers and on more than 16 nested parentheses.
[[nodiscard]] std::vector<PatternLayer> expand_pattern(std::string_view pattern);

}  // namespace graft
