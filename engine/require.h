#pragma once

#include <fmt/format.h>

#include <source_location>
#include <type_traits>

#include "engine/error.h"

namespace graft {

/// A format string that remembers where it was written. It exists because a defaulted argument
/// cannot follow a parameter pack.
template <class... Args>
struct LocatedFormat {
  template <class Text>
  // NOLINTNEXTLINE(google-explicit-constructor): must convert from a string literal
  consteval LocatedFormat(const Text& text, std::source_location at = std::source_location::current())
      : format(text), where(at) {}
  fmt::format_string<Args...> format;
  std::source_location where;
};

[[noreturn]] void throw_argument_error(const std::string& message, const std::source_location& where);

/// Throws ArgumentError with the formatted message and the caller's file and line unless `ok`.
/// Messages read "op: what came, what was expected".
template <class... Args>
void require(bool ok, LocatedFormat<std::type_identity_t<Args>...> message, Args&&... args) {
  if (!ok) [[unlikely]] {
    throw_argument_error(fmt::format(message.format, std::forward<Args>(args)...), message.where);
  }
}

}  // namespace graft
