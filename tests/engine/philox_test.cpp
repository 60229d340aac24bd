#include "engine/philox.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

namespace graft::test {
namespace {

bool operator==(const Words4& a, const Words4& b) { return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w; }

/// Mean, variance, skewness and excess kurtosis of a sample.
struct Moments {
  double mean = 0, variance = 0, skewness = 0, kurtosis = 0;

  explicit Moments(const std::vector<double>& sample) {
    const auto n = static_cast<double>(sample.size());
    for (const double x : sample) mean += x / n;
    double third = 0;
    double fourth = 0;
    for (const double x : sample) {
      const double d = x - mean;
      variance += d * d / n;
      third += d * d * d / n;
      fourth += d * d * d * d / n;
    }
    skewness = third / std::pow(variance, 1.5);
    kurtosis = fourth / (variance * variance) - 3;
  }
};

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const Moments of_a(a);
  const Moments of_b(b);
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - of_a.mean) * (b[i] - of_b.mean);
  return sum / static_cast<double>(a.size()) / std::sqrt(of_a.variance * of_b.variance);
}

constexpr std::uint32_t kSample = 1U << 20U;

std::vector<double> uniforms(const Draw& draw, std::uint32_t purpose, std::uint32_t count = kSample) {
  std::vector<double> values(count);
  for (std::uint32_t i = 0; i < count; ++i) values[i] = static_cast<double>(draw.uniform(purpose, i));
  return values;
}

// Random123 1.09, tests/kat_vectors, philox4x32 with 10 rounds.
TEST_CASE("philox: known answers") {
  CHECK(philox4x32_10({0, 0, 0, 0}, 0, 0) == Words4{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U});
  CHECK(philox4x32_10({~0U, ~0U, ~0U, ~0U}, ~0U, ~0U) == Words4{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU});
  CHECK(philox4x32_10({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, 0xa4093822U, 0x299f31d0U) ==
        Words4{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U});
}

TEST_CASE("philox: a draw's words are those of its counter and key") {
  const Draw draw{0x0123456789abcdefULL, RandomDomain::Dropout, 0xfeedbeef5ULL, 77};
  const Words4 expected =
      philox4x32_10({9, 77, 0xeedbeef5U, (0xfU << 16U) | 12U}, 0x89abcdefU, 0x01234567U ^ (3U << 24U));
  CHECK(draw.words(12, 9) == expected);
  CHECK(draw.bits(12, 36) == expected.x);
  CHECK(draw.bits(12, 37) == expected.y);
  CHECK(draw.bits(12, 38) == expected.z);
  CHECK(draw.bits(12, 39) == expected.w);
}

TEST_CASE("philox: uniforms lie in [0, 1) and have the moments of a uniform") {
  CHECK(Draw::to_unit(0) == 0.F);
  CHECK(Draw::to_unit(~0U) == 1.F - 0x1p-24F);
  const std::vector<double> sample = uniforms({7, RandomDomain::Train, 3, 1}, 2);
  CHECK(*std::min_element(sample.begin(), sample.end()) >= 0);
  CHECK(*std::max_element(sample.begin(), sample.end()) < 1);
  const Moments moments(sample);
  const double n = kSample;
  CHECK(std::abs(moments.mean - 0.5) < 4 * std::sqrt(1.0 / 12 / n));            // standard error of the mean
  CHECK(std::abs(moments.variance - 1.0 / 12) < 4 * std::sqrt(1.0 / 180 / n));  // and of the variance
  std::array<double, 64> bins{};
  for (const double x : sample) bins[static_cast<std::size_t>(x * 64)] += 1;
  double chi2 = 0;
  for (const double count : bins) chi2 += (count - n / 64) * (count - n / 64) / (n / 64);
  CHECK(std::abs(chi2 - 63) < 4 * std::sqrt(2.0 * 63));  // 63 degrees of freedom
  std::vector<double> next(sample.begin() + 1, sample.end());
  CHECK(std::abs(correlation({sample.begin(), sample.end() - 1}, next)) < 4 / std::sqrt(n));
}

TEST_CASE("philox: normals have the moments of a standard normal") {
  const Draw draw{11, RandomDomain::Train, 5, 2};
  std::vector<double> sample(kSample);
  for (std::uint32_t i = 0; i < kSample; ++i) sample[i] = static_cast<double>(draw.normal(1, i));
  const Moments moments(sample);
  const double n = kSample;
  CHECK(std::abs(moments.mean) < 4 * std::sqrt(1 / n));
  CHECK(std::abs(moments.variance - 1) < 4 * std::sqrt(2 / n));
  CHECK(std::abs(moments.skewness) < 4 * std::sqrt(6 / n));
  CHECK(std::abs(moments.kurtosis) < 4 * std::sqrt(24 / n));
  std::vector<double> even;
  std::vector<double> odd;
  double beyond = 0;
  for (std::size_t i = 0; i < sample.size(); i += 2) {
    even.push_back(sample[i]);
    odd.push_back(sample[i + 1]);
    beyond += std::abs(sample[i]) > 3 ? 1 : 0;
    beyond += std::abs(sample[i + 1]) > 3 ? 1 : 0;
  }
  CHECK(std::abs(correlation(even, odd)) < 4 / std::sqrt(n / 2));  // cosine and sine of one pair
  const double tail = std::erfc(3 / std::sqrt(2.0));
  CHECK(std::abs(beyond / n - tail) < 4 * std::sqrt(tail / n));
}

TEST_CASE("philox: box-muller never takes the logarithm of zero") {
  CHECK(std::isfinite(Draw::box_muller(0, 0, false)));
  CHECK(Draw::box_muller(0, 0, false) == doctest::Approx(std::sqrt(-2 * std::log(0x1p-25))));
  CHECK(std::abs(Draw::box_muller(~0U, 0, false)) < 1e-3F);
}

TEST_CASE("philox: four normals at a time are the same normals") {
  const Draw draw{3, RandomDomain::Evaluation, 1, 9};
  for (std::uint32_t block = 0; block < 100; ++block) {
    std::array<float, 4> four{};
    draw.normal4(6, block, four.data());
    for (std::uint32_t i = 0; i < 4; ++i) CHECK(four[i] == draw.normal(6, 4 * block + i));
  }
}

TEST_CASE("philox: integers below n") {
  const Draw draw{5, RandomDomain::Train, 0, 0};
  for (const std::uint32_t n : {1U, 2U, 7U, 1000U}) {
    std::vector<double> counts(n, 0);
    const std::uint32_t draws = 200000;
    for (std::uint32_t i = 0; i < draws; ++i) {
      counts.at(draw.below(n, 4, i)) += 1;
    }
    if (n == 1) continue;
    const double expected = static_cast<double>(draws) / n;
    double chi2 = 0;
    for (const double count : counts) chi2 += (count - expected) * (count - expected) / expected;
    CHECK(std::abs(chi2 - (n - 1.0)) < 4 * std::sqrt(2.0 * (n - 1.0)) + 4);
  }
}

TEST_CASE("philox: seeds, domains, purposes, steps and examples are streams of their own") {
  const Draw base{42, RandomDomain::Train, 7, 3};
  std::vector<std::vector<double>> streams;
  const std::uint32_t count = 1U << 14U;
  const auto add = [&](const Draw& draw, std::uint32_t purpose) { streams.push_back(uniforms(draw, purpose, count)); };
  add(base, 1);
  add(base, 2);
  for (const RandomDomain domain :
       {RandomDomain::Evaluation, RandomDomain::Initialisation, RandomDomain::Dropout, RandomDomain::Bootstrap}) {
    add({base.seed, domain, base.step, base.example}, 1);
  }
  add({43, base.domain, base.step, base.example}, 1);
  add({42 | (1ULL << 32U), base.domain, base.step, base.example}, 1);
  add({42, base.domain, 8, base.example}, 1);
  add({42, base.domain, 7 | (1ULL << 32U), base.example}, 1);  // steps have 48 bits
  add({42, base.domain, 7 | (1ULL << 47U), base.example}, 1);
  add({42, base.domain, 7, 4}, 1);
  for (std::size_t a = 0; a < streams.size(); ++a) {
    for (std::size_t b = a + 1; b < streams.size(); ++b) {
      INFO("streams " << a << " and " << b);
      CHECK(streams[a] != streams[b]);
      CHECK(std::abs(correlation(streams[a], streams[b])) < 5 / std::sqrt(static_cast<double>(count)));
    }
  }
}

TEST_CASE("philox: the same draw twice is the same number, and the words of a step do not repeat") {
  const Draw draw{1, RandomDomain::Train, 2, 3};
  CHECK(draw.bits(4, 5) == Draw{1, RandomDomain::Train, 2, 3}.bits(4, 5));
  std::set<std::uint64_t> seen;
  for (std::uint32_t example = 0; example < 50; ++example) {
    for (std::uint32_t purpose = 0; purpose < 20; ++purpose) {
      for (std::uint32_t block = 0; block < 50; ++block) {
        const Words4 w = Draw{1, RandomDomain::Train, 2, example}.words(purpose, block);
        seen.insert((std::uint64_t{w.x} << 32U) | w.y);
      }
    }
  }
  CHECK(seen.size() == 50 * 20 * 50);
}

}  // namespace
}  // namespace graft::test
