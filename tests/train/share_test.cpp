// How processes share a long test case.

#include "tests/support/share.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace graft::test {
namespace {

TEST_CASE("share: N shares take every item once, in turn") {
  constexpr int kItems = 17;
  for (int of = 1; of <= kItems + 2; ++of) {
    CAPTURE(of);
    std::vector<std::vector<int>> takers(kItems);
    for (int index = 0; index < of; ++index) {
      Share share(fmt::format("{}/{}", index, of).c_str());
      for (std::vector<int>& item : takers) {
        if (share.next()) item.push_back(index);
      }
    }
    for (int item = 0; item < kItems; ++item) {
      CHECK(takers[static_cast<std::size_t>(item)] == std::vector<int>{item % of});
    }
  }
}

TEST_CASE("share: without one a process takes everything") {
  Share all(nullptr);
  for (int item = 0; item < 5; ++item) CHECK(all.next());
}

TEST_CASE("share: a text that is none is refused") {
  for (const char* text : {"", "1", "/", "1/", "/2", "2/2", "0/0", "-1/2", "1/-2", "1/2x", " 1/2", "a/b", "1/2/3",
                           "0/99999999999999999999"}) {
    const std::string expected = fmt::format("GRAFT_TEST_SHARD: got '{}', expected K/N with 0 <= K < N", text);
    CHECK_THROWS_WITH_AS(Share{text}, expected.c_str(), std::runtime_error);
  }
}

TEST_CASE("share: steps are bounded from above alone") {
  CHECK(steps_within(60, nullptr) == 60);
  CHECK(steps_within(60, "20") == 20);
  CHECK(steps_within(60, "60") == 60);
  CHECK(steps_within(60, "1000") == 60);
  for (const char* bound : {"", "0", "-3", "20x", " 20", "1.5", "many", "99999999999999999999"}) {
    const std::string expected = fmt::format("GRAFT_TEST_STEPS: got '{}', expected a number of steps from 1 on", bound);
    CHECK_THROWS_WITH_AS(static_cast<void>(steps_within(60, bound)), expected.c_str(), std::runtime_error);
  }
}

}  // namespace
}  // namespace graft::test
