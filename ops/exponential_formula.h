#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "engine/dtype.h"

namespace graft {

// The exponential and what is made of it, for hosts: the C library's takes a call for each element, and its last bits
// depend on the machine. Devices have instructions for it.

/// exp(x) to about one unit in the last place, without a call, so that a loop over it becomes vector instructions; the
/// same bits on every machine. NaN stays NaN; overflow is infinite, underflow gradual.
[[nodiscard]] GRAFT_HD inline float exponential(float x) {
  constexpr float kLog2E = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;       // nine bits: times an integer up to 2^15 it is exact
  constexpr float kLn2Low = -2.12194440055e-4F;  // ln 2 - kLn2High
  constexpr float kRound = 12582912.F;           // 1.5 * 2^23: added to a small number, the last bit is worth 1
  // Beyond these the result is 0 or infinite, and the exponents below would not fit.
  const float bounded = x < -105.F ? -105.F : (x > 90.F ? 90.F : x);
  const float shifted = bounded * kLog2E + kRound;
  const float k = shifted - kRound;  // exp(x) = 2^k exp(r), |r| <= ln(2) / 2
  const float r = (bounded - k * kLn2High) - k * kLn2Low;
  // The series up to r^7: what is left out is below 6e-9.
  float tail = 1.F / 5040;
  tail = tail * r + 1.F / 720;
  tail = tail * r + 1.F / 120;
  tail = tail * r + 1.F / 24;
  tail = tail * r + 1.F / 6;
  tail = tail * r + 0.5F;
  const float power = tail * (r * r) + r + 1.F;
  // 2^k in two factors, since k goes from -152 to 130 and a float's exponent from -126 to 127.
  const std::int32_t exponent = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const std::int32_t half = exponent >> 1;
  const auto first = std::bit_cast<float>((half + 127) << 23);
  const auto second = std::bit_cast<float>((exponent - half + 127) << 23);
  return power * first * second;
}

/// std::exp: in double the last digits count and speed does not.
[[nodiscard]] GRAFT_HD inline double exponential(double x) { return std::exp(x); }

/// ln(1 + exp(x)), of the same kind as exponential(): no call and no cancellation.
[[nodiscard]] GRAFT_HD inline float log1p_exponential(float x) {
  // max(x, 0) + ln(1 + t) with t = exp(-|x|) <= 1, and ln(1 + t) = 2 artanh(s) with s = t / (2 + t) <= 1/3: the series
  // up to s^15 leaves out less than 2e-9 of the value.
  const float t = exponential(-std::fabs(x));
  const float s = t / (2.F + t);
  const float square = s * s;
  float series = 1.F / 15;
  series = series * square + 1.F / 13;
  series = series * square + 1.F / 11;
  series = series * square + 1.F / 9;
  series = series * square + 1.F / 7;
  series = series * square + 1.F / 5;
  series = series * square + 1.F / 3;
  const float logarithm = 2.F * (s + s * (square * series));
  return (x > 0.F ? x : 0.F) + logarithm;
}
[[nodiscard]] GRAFT_HD inline double log1p_exponential(double x) { return std::log1p(std::exp(x)); }

}  // namespace graft
