#include "tasks/two_layer_net.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "engine/error.h"
#include "engine/philox.h"
#include "tasks/baselines.h"

namespace graft::test {
namespace {

using Options = TwoLayerNet::Options;
constexpr const char* kNames[] = {"first.weight", "first.bias", "second.weight", "second.bias"};

struct Points {
  Points(std::size_t count, std::size_t dim) {
    const Draw draw{4, RandomDomain::Evaluation, 0, 0};
    for (std::uint32_t i = 0; i < count * dim; ++i) xs.push_back(draw.normal(0, i));
    for (std::uint32_t i = 0; i < count; ++i) ys.push_back(std::abs(xs[i * dim]) + 0.1F * draw.normal(1, i));
  }
  std::vector<float> xs, ys;
};

/// The same network with formulas written out: parameters W1, b1, w2, b2 in one vector.
struct Reference {
  Reference(const TwoLayerNet& net, std::size_t input_dim, std::size_t units) : dim(input_dim), hidden(units) {
    for (const char* name : kNames) {
      const std::vector<double> values = net.parameter(name);
      p.insert(p.end(), values.begin(), values.end());
    }
    m.resize(p.size());
    v.resize(p.size());
  }

  double answer(const float* x, std::vector<double>* gradient = nullptr, double scale = 0, double target = 0) const {
    const std::size_t bias = hidden * dim, second = bias + hidden, last = second + hidden;
    std::vector<double> z(hidden);
    double y = p[last];
    for (std::size_t h = 0; h < hidden; ++h) {
      z[h] = p[bias + h];
      for (std::size_t k = 0; k < dim; ++k) z[h] += p[h * dim + k] * double{x[k]};
      y += p[second + h] * std::max(z[h], 0.0);
    }
    if (gradient == nullptr) return y;
    const double dy = 2 * scale * (y - target);
    (*gradient)[last] += dy;
    for (std::size_t h = 0; h < hidden; ++h) {
      (*gradient)[second + h] += dy * std::max(z[h], 0.0);
      if (z[h] <= 0) continue;
      (*gradient)[bias + h] += dy * p[second + h];
      for (std::size_t k = 0; k < dim; ++k) (*gradient)[h * dim + k] += dy * p[second + h] * double{x[k]};
    }
    return y;
  }

  void step(const std::vector<float>& xs, const std::vector<float>& ys, double rate) {
    std::vector<double> gradient(p.size());
    for (std::size_t i = 0; i < ys.size(); ++i) {
      answer(&xs[i * dim], &gradient, 1.0 / static_cast<double>(ys.size()), double{ys[i]});
    }
    ++steps;
    for (std::size_t i = 0; i < p.size(); ++i) {
      m[i] = 0.9 * m[i] + 0.1 * gradient[i];
      v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
      p[i] -= rate * (m[i] / (1 - std::pow(0.9, steps))) / (std::sqrt(v[i] / (1 - std::pow(0.999, steps))) + 1e-8);
    }
  }

  [[nodiscard]] double worst_difference(const TwoLayerNet& net) const {
    double worst = 0;
    std::size_t at = 0;
    for (const char* name : kNames) {
      for (const double value : net.parameter(name)) worst = std::max(worst, std::abs(value - p[at++]));
    }
    return worst;
  }

  std::size_t dim, hidden;
  std::vector<double> p, m, v;
  int steps = 0;
};

TEST_CASE("two-layer net: a hundred steps match formulas written out") {
  const std::size_t dim = 3;
  const Points points(9, dim);
  for (const Precision precision : {Precision::Fp64, Precision::Fp32}) {
    TwoLayerNet net(dim, {.hidden = 7, .precision = precision});
    net.start(11);
    Reference reference(net, dim, 7);
    net.train(points.xs, points.ys);
    for (int step = 0; step < 100; ++step) reference.step(points.xs, points.ys, 5e-3);
    const std::vector<float> query = {0.3F, -1.F, 0.7F};
    // Measured: 1e-15 and 1e-6, twice.
    const double tolerance = precision == Precision::Fp64 ? 1e-12 : 2e-5;
    CHECK(reference.worst_difference(net) < tolerance);
    CHECK(std::abs(net(query) - reference.answer(query.data())) < tolerance);
  }
}

TEST_CASE("two-layer net: starts are uniform within the bounds and begin anew") {
  TwoLayerNet net(20);
  net.start(1);
  const auto check = [&](const char* name, std::size_t count, double bound) {
    const std::vector<double> values = net.parameter(name);
    CHECK(values.size() == count);
    double squares = 0;
    for (const double value : values) {
      CHECK(std::abs(value) <= bound);
      squares += value * value;
    }
    if (count < 100) return;
    // variance bound^2 / 3; its estimate has a relative standard error of 2 / sqrt(5 count)
    CHECK(std::abs(squares / static_cast<double>(count) / (bound * bound / 3) - 1) <
          4.5 * 2 / std::sqrt(5.0 * static_cast<double>(count)));
  };
  check("first.weight", 2000, 1 / std::sqrt(20.0));
  check("first.bias", 100, 1 / std::sqrt(20.0));
  check("second.weight", 100, 0.1);
  check("second.bias", 1, 0.1);

  const Points points(5, 20);
  net.train(points.xs, points.ys);
  const double first = net(std::span(points.xs).first(20));
  net.start(1);
  net.train(points.xs, points.ys);
  CHECK(net(std::span(points.xs).first(20)) == first);
  net.start(2);
  net.train(points.xs, points.ys);
  CHECK(net(std::span(points.xs).first(20)) != first);
}

TEST_CASE("two-layer net: more points than a batch are seen in different parts") {
  const std::size_t dim = 2;
  const Points points(3, dim);
  // One step on one point of three: which one differs from start to start.
  std::set<std::size_t> seen;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    TwoLayerNet net(dim, {.hidden = 5, .steps = 1, .batch = 1, .precision = Precision::Fp64});
    net.start(seed);
    std::vector<Reference> references(3, Reference(net, dim, 5));
    net.train(points.xs, points.ys);
    for (std::size_t i = 0; i < 3; ++i) {
      references[i].step({points.xs.begin() + static_cast<std::ptrdiff_t>(i * dim),
                          points.xs.begin() + static_cast<std::ptrdiff_t>((i + 1) * dim)},
                         {points.ys[i]}, 5e-3);
      if (references[i].worst_difference(net) < 1e-12) seen.insert(i);
    }
  }
  CHECK(seen.size() == 3);
}

TEST_CASE("two-layer net: it learns") {
  const Points points(100, 1);
  const auto total = static_cast<std::int64_t>(points.ys.size());
  const std::vector<double> predictions = predict(find_baseline("two_layer_net"), points.xs, points.ys, 1, total, 1);
  double error = 0, power = 0;
  for (std::size_t i = 80; i < 100; ++i) {
    error += std::pow(predictions[i] - double{points.ys[i]}, 2);
    power += std::pow(double{points.ys[i]}, 2);
  }
  CHECK(error < 0.1 * power);
}

TEST_CASE("two-layer net: wrong arguments are refused") {
  CHECK_THROWS_WITH_AS(TwoLayerNet(0), doctest::Contains("0 inputs"), ArgumentError);
  CHECK_THROWS_WITH_AS(TwoLayerNet(2, {.precision = Precision::Bf16}), doctest::Contains("expected fp32 or fp64"),
                       ArgumentError);
  TwoLayerNet net(2, {.hidden = 3});
  net.start(0);
  const std::vector<float> one = {1};
  CHECK_THROWS_WITH_AS(net.train(one, one), doctest::Contains("1 inputs for 1 points"), ArgumentError);
  CHECK_THROWS_WITH_AS((void)net(one), doctest::Contains("expected 2"), ArgumentError);
  CHECK_THROWS_WITH_AS((void)net.parameter("third.weight"), doctest::Contains("third.weight"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
