#include "ops/exponential_formula.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/softplus_formula.h"

namespace graft::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// How many units in the last place of a float `got` is from `expected`.
double units_off(float got, double expected) {
  const int exponent = expected < std::numeric_limits<float>::min() ? -126 : std::ilogb(expected);
  return std::fabs(static_cast<double>(got) - expected) / std::ldexp(1.0, exponent - 23);
}

/// Calls body with floats from all of the line, evenly spaced in their bits.
template <class Body>
void for_floats(const Body& body) {
  for (std::uint64_t bits = 0; bits <= 0xffffffffU; bits += 4001) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (!std::isnan(x)) body(x);
  }
}

TEST_CASE("exponential: within 1.1 units in the last place of the C library's in double") {
  double worst = 0;
  for_floats([&](float x) {
    const double expected = std::exp(static_cast<double>(x));
    if (expected > static_cast<double>(std::numeric_limits<float>::max())) {
      REQUIRE(exponential(x) == kInfinity);
    } else {
      worst = std::max(worst, units_off(exponential(x), expected));
    }
  });
  CHECK(worst < 1.1);
}

TEST_CASE("exponential: the ends of the line, zeros and NaN") {
  CHECK(exponential(0.F) == 1.F);
  CHECK(exponential(-0.F) == 1.F);
  CHECK(exponential(kInfinity) == kInfinity);
  CHECK(exponential(-kInfinity) == 0.F);
  CHECK(std::isnan(exponential(kNaN)));
  CHECK(exponential(88.72283F) < kInfinity);
  CHECK(exponential(88.72284F) == kInfinity);
  CHECK(exponential(-103.F) > 0.F);  // below the normal numbers
  CHECK(exponential(1.0) == std::exp(1.0));
}

TEST_CASE("exponential: a value's bits do not depend on its place in a row") {
  // Vector instructions take the first elements of a row, single ones the rest.
  std::vector<float> row(37);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = 0.37F * static_cast<float>(i) - 7.F;
  std::vector<float> all = row;
  for (float& value : all) value = exponential(value);
  for (std::size_t i = 0; i < row.size(); ++i) {
    const volatile float alone = row[i];
    CHECK(exponential(alone) == all[i]);
  }
}

TEST_CASE("softplus: small step sizes keep their relative accuracy") {
  double worst = 0;
  for_floats([&](float x) {
    const double expected = x > 0 ? static_cast<double>(x) + std::log1p(std::exp(-static_cast<double>(x)))
                                  : std::log1p(std::exp(static_cast<double>(x)));
    if (std::isfinite(x)) worst = std::max(worst, units_off(softplus(x), expected));
  });
  CHECK(worst < 3.0);
  CHECK(softplus(kInfinity) == kInfinity);
  CHECK(softplus(-kInfinity) == 0.F);
  CHECK(std::isnan(softplus(kNaN)));
}

}  // namespace
}  // namespace graft::test
