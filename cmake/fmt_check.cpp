// Links only if fmt_library.cpp defines everything that users of fmt's headers need.
#include <fmt/chrono.h>
#include <fmt/color.h>
#include <fmt/format.h>
#include <fmt/ostream.h>
#include <fmt/ranges.h>

#include <chrono>
#include <locale>
#include <vector>

int main(int argc, char** argv) {
  const std::vector<double> values{1.5, static_cast<double>(argc)};
  fmt::memory_buffer buffer;
  fmt::format_to(std::back_inserter(buffer), "{:>8.3f} {:e} {:#x}", 1.25f, 1e-300, argc);
  fmt::print(stderr, "{} {} {:%S} {:L}\n", fmt::to_string(buffer), fmt::join(values, ", "),
             std::chrono::milliseconds(argc), 12345);
  fmt::print("{}", fmt::styled(values, fmt::emphasis::bold));
  const auto text = fmt::format(std::locale(), "{:L} {}", 12345.5, fmt::ptr(argv)) +
                    fmt::format(fmt::runtime("{:{}}"), argv[0], argc) + fmt::format("{:g}", 0.1L);
  return text.empty() ? 1 : 0;
}
