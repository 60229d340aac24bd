#include "tests/support/share.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <system_error>

namespace graft::test {
namespace {

constexpr const char* kShard = "GRAFT_TEST_SHARD";
constexpr const char* kSteps = "GRAFT_TEST_STEPS";

/// The text as a whole as a number that is not negative; -1 if it is none.
std::int64_t number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0 ? value : -1;
}

}  // namespace

Share::Share(const char* text) {
  if (text == nullptr) return;
  const std::string_view all = text;
  const std::size_t slash = all.find('/');
  index_ = number(all.substr(0, slash));
  of_ = slash == std::string_view::npos ? -1 : number(all.substr(slash + 1));
  if (index_ < 0 || index_ >= of_) {
    throw std::runtime_error(fmt::format("{}: got '{}', expected K/N with 0 <= K < N", kShard, all));
  }
}

bool is_shared() { return std::getenv(kShard) != nullptr; }

bool in_share(const std::string& item) {
  static Share share(std::getenv(kShard));
  if (!share.next()) return false;
  if (is_shared() && !item.empty()) MESSAGE(fmt::format("share {}: {}", std::getenv(kShard), item));
  return true;
}

std::int64_t steps_within(std::int64_t steps, const char* bound) {
  if (bound == nullptr) return steps;
  const std::int64_t most = number(bound);
  if (most < 1) {
    throw std::runtime_error(fmt::format("{}: got '{}', expected a number of steps from 1 on", kSteps, bound));
  }
  return std::min(steps, most);
}

std::int64_t test_steps(std::int64_t steps) { return steps_within(steps, std::getenv(kSteps)); }

}  // namespace graft::test
