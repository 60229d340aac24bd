#pragma once
// What the fuzz targets share: a property that does not hold ends the process, which libFuzzer records as a finding.

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace graft::fuzz {

inline void expect(bool holds, std::string_view what, std::string_view detail = {}) {
  if (holds) return;
  std::fprintf(stderr, "property: %.*s\n%.*s\n", static_cast<int>(what.size()), what.data(),
               static_cast<int>(detail.size()), detail.data());
  std::abort();
}

/// Messages go to terminals and logs: text, short, and nothing that moves a cursor.
inline void expect_message(std::string_view message, std::size_t longest, bool many_lines) {
  expect(!message.empty(), "a message is not empty");
  expect(message.size() <= longest, "a message is short", message.substr(0, 2000));
  for (std::size_t i = 0; i < message.size(); ++i) {
    const auto byte = static_cast<unsigned char>(message[i]);
    const auto next = static_cast<unsigned char>(i + 1 < message.size() ? message[i + 1] : ' ');
    const bool control = byte < 0x20 || byte == 0x7f || (byte == 0xc2 && next < 0xa0);
    expect(!control || (many_lines && byte == '\n'), "a message has no control characters", message);
  }
}

}  // namespace graft::fuzz
