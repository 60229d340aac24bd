#include "tasks/baselines.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/philox.h"
#include "tests/support/golden.h"
#include "train/safetensors.h"

namespace graft {
namespace {

struct Prompts {
  std::int64_t prompts, points, dim;
  std::vector<float> xs, ys, weights;

  [[nodiscard]] std::vector<double> predict(const char* baseline, int threads = 1) const {
    return graft::predict(find_baseline(baseline), xs, ys, prompts, points, dim, threads);
  }
  /// Mean squared error at a position, and its standard error.
  struct Estimate {
    double mean, standard_error;
  };
  [[nodiscard]] Estimate error(const std::vector<double>& predictions, std::int64_t position) const {
    double sum = 0, squares = 0;
    for (std::int64_t b = 0; b < prompts; ++b) {
      const auto at = static_cast<std::size_t>(b * points + position);
      const double error = (predictions[at] - ys[at]) * (predictions[at] - ys[at]);
      sum += error;
      squares += error * error;
    }
    const auto n = static_cast<double>(prompts);
    return {sum / n, std::sqrt((squares / n - sum / n * (sum / n)) / (n - 1))};
  }
};

/// x, w ~ N(0, I), y = <w, x>.
Prompts linear(std::int64_t prompts, std::int64_t points, std::int64_t dim, std::uint64_t seed = 1) {
  Prompts result{prompts, points, dim, {}, {}, {}};
  for (std::int64_t b = 0; b < prompts; ++b) {
    const Draw draw{seed, RandomDomain::Evaluation, 0, static_cast<std::uint32_t>(b)};
    std::vector<float> w;
    for (std::int64_t k = 0; k < dim; ++k) w.push_back(draw.normal(0, static_cast<std::uint32_t>(k)));
    for (std::int64_t i = 0; i < points; ++i) {
      double y = 0;
      for (std::int64_t k = 0; k < dim; ++k) {
        result.xs.push_back(draw.normal(1, static_cast<std::uint32_t>(i * dim + k)));
        y += double{w[static_cast<std::size_t>(k)]} * result.xs.back();
      }
      result.ys.push_back(static_cast<float>(y));
    }
    result.weights.insert(result.weights.end(), w.begin(), w.end());
  }
  return result;
}

double worst_relative(const std::vector<double>& values, const std::vector<double>& expected) {
  double difference = 0, largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference = std::max(difference, std::abs(values[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return difference / largest;
}

TEST_CASE("baselines: golden predictions") {
  const auto path = test::golden_directory() / "least_squares" / "data.safetensors";
  REQUIRE_MESSAGE(std::filesystem::exists(path), path.string());
  const SafetensorsFile file(path);
  const Shape shape = file.at("in.xs").shape;
  const Prompts prompts{shape[0], shape[1], shape[2], file.read_as<float>("in.xs"), file.read_as<float>("in.ys"), {}};
  // Measured: 1.0e-15, 2.3e-16 and 0; the case states 1e-9.
  CHECK(worst_relative(prompts.predict("least_squares"), file.read_doubles("out.least_squares")) < 1e-12);
  CHECK(worst_relative(prompts.predict("averaging"), file.read_doubles("out.averaging")) < 1e-12);
  CHECK(worst_relative(prompts.predict("knn3"), file.read_doubles("out.nearest_neighbours_3")) < 1e-12);
}

TEST_CASE("baselines: least squares on noiseless prompts errs by dim - i, then not at all") {
  const Prompts prompts = linear(2000, 30, 20);
  const std::vector<double> predictions = prompts.predict("least_squares");
  for (std::int64_t i = 0; i < 20; ++i) {
    CAPTURE(i);
    const auto [mean, standard_error] = prompts.error(predictions, i);
    CHECK(standard_error < 1.0);
    CHECK(std::abs(mean - static_cast<double>(20 - i)) < 4.5 * standard_error);
  }
  // Labels are rounded to float32, so the weights are off by about 1e-7 times the condition of the 20 points.
  for (std::int64_t i = 25; i < 30; ++i) CHECK(prompts.error(predictions, i).mean < 1e-8);
}

TEST_CASE("baselines: averaging errs by dim (dim + 1) / i") {
  const Prompts prompts = linear(4000, 42, 5);
  const std::vector<double> predictions = prompts.predict("averaging");
  for (const std::int64_t i : {1, 2, 10, 41}) {
    CAPTURE(i);
    const auto [mean, standard_error] = prompts.error(predictions, i);
    CHECK(std::abs(mean - 30.0 / static_cast<double>(i)) < 4.5 * standard_error);
  }
  CHECK(std::abs(prompts.error(prompts.predict("zero"), 3).mean - 5) <
        4.5 * prompts.error(predictions, 0).standard_error);
}

TEST_CASE("baselines: every one answers 0 without points") {
  const Prompts prompts = linear(3, 4, 2);
  for (const std::string& name : baseline_names()) {
    const std::vector<double> predictions = prompts.predict(name.c_str());
    for (std::size_t b = 0; b < 3; ++b) CHECK(predictions[b * 4] == 0);
  }
}

TEST_CASE("baselines: nearest neighbours by hand, ties to the earlier point") {
  //               0  1  2  3  4   5: the points 1, 3, 2 are nearest; 0 and 4 are equally far
  const Prompts prompts{1, 6, 1, {-2, 0, 1, -1, 2, 0}, {100, 1, 2, 4, 200, 0}, {}};
  const std::vector<double> predictions = prompts.predict("knn3");
  CHECK(predictions[1] == 100);
  CHECK(predictions[2] == doctest::Approx(101.0 / 2));
  CHECK(predictions[3] == doctest::Approx(103.0 / 3));
  CHECK(predictions[5] == doctest::Approx(7.0 / 3));
  const Prompts tied{1, 5, 1, {1, -1, 1, -1, 0}, {1, 2, 4, 8, 0}, {}};
  CHECK(tied.predict("knn3")[4] == doctest::Approx(7.0 / 3));
}

TEST_CASE("baselines: fewer points than dimensions give the fit of smallest norm") {
  // One point: w = x y / |x|^2.
  const Prompts one{1, 2, 3, {1, 2, 2, 3, 0, 1}, {9, 0}, {}};
  CHECK(one.predict("least_squares")[1] == doctest::Approx(5.0));
  // Coordinates that are zero in all points stay out of the fit, wherever they stand.
  const Prompts padded{1, 4, 4, {0, 1, 0, 0, 0, 0, 0, 2, 0, 1, 0, 1, 7, 1, 7, 1}, {3, 8, 7, 0}, {}};
  const std::vector<double> predictions = padded.predict("least_squares");
  CHECK(predictions[1] == doctest::Approx(0.0));
  CHECK(predictions[2] == doctest::Approx(7.0));
  CHECK(predictions[3] == doctest::Approx(7.0));
  const Prompts zeros{1, 3, 2, {0, 0, 0, 0, 1, 1}, {5, 5, 5}, {}};
  CHECK(zeros.predict("least_squares") == std::vector<double>{0, 0, 0});
}

TEST_CASE("baselines: repeated points count as one direction") {
  // Nine of ten points are (1, ..., 1) with label 1, as in many-outlier regression; the others are noiseless.
  for (const std::int64_t dim : {1, 2, 3, 5, 20}) {
    CAPTURE(dim);
    Prompts prompts = linear(20, 400, dim);
    for (std::int64_t b = 0; b < prompts.prompts; ++b) {
      double w_sum = 0;  // label of (1, ..., 1), so that all points agree on one w
      for (std::int64_t k = 0; k < dim; ++k) w_sum += prompts.weights[static_cast<std::size_t>(b * dim + k)];
      for (std::int64_t i = 0; i < prompts.points; ++i) {
        if (i % 10 == 9) continue;
        const auto at = static_cast<std::size_t>(b * prompts.points + i);
        std::fill_n(prompts.xs.begin() + static_cast<std::ptrdiff_t>(at * static_cast<std::size_t>(dim)), dim, 1.F);
        prompts.ys[at] = static_cast<float>(w_sum);
      }
    }
    const std::vector<double> predictions = prompts.predict("least_squares");
    double worst_repeated = 0, worst_last = 0, largest = 0;
    for (std::size_t at = 0; at < predictions.size(); ++at) {
      const std::size_t i = at % 400;
      const double error = std::abs(predictions[at] - prompts.ys[at]);
      largest = std::max(largest, std::abs(predictions[at]));
      if (i > 0 && i % 10 != 9) worst_repeated = std::max(worst_repeated, error);
      if (i >= 300) worst_last = std::max(worst_last, error);
    }
    CHECK(worst_repeated < 1e-5);  // seen before, whatever else was
    CHECK(worst_last < 1e-4);      // 30 clean points are enough
    CHECK(largest < 200);          // rounding never became a direction with weights of its own
  }
}

TEST_CASE("baselines: least squares of noisy labels agrees with the normal equations") {
  Prompts prompts = linear(3, 60, 4, 5);
  for (std::size_t i = 0; i < prompts.ys.size(); ++i) {
    prompts.ys[i] += Draw{9, RandomDomain::Evaluation, 0, 0}.normal(0, static_cast<std::uint32_t>(i));
  }
  const std::vector<double> predictions = prompts.predict("least_squares");
  for (std::int64_t b = 0; b < 3; ++b) {
    // X'X w = X'y by elimination, with all points but the last.
    double a[4][5] = {};
    const float* x = &prompts.xs[static_cast<std::size_t>(b * 60 * 4)];
    const float* y = &prompts.ys[static_cast<std::size_t>(b * 60)];
    for (int i = 0; i < 59; ++i) {
      for (int r = 0; r < 4; ++r) {
        for (int c = 0; c < 4; ++c) a[r][c] += double{x[i * 4 + r]} * x[i * 4 + c];
        a[r][4] += double{x[i * 4 + r]} * y[i];
      }
    }
    for (int p = 0; p < 4; ++p) {
      for (int r = 0; r < 4; ++r) {
        if (r == p) continue;
        const double factor = a[r][p] / a[p][p];
        for (int c = p; c < 5; ++c) a[r][c] -= factor * a[p][c];
      }
    }
    double expected = 0;
    for (int k = 0; k < 4; ++k) expected += a[k][4] / a[k][k] * x[59 * 4 + k];
    CHECK(predictions[static_cast<std::size_t>(b * 60 + 59)] == doctest::Approx(expected).epsilon(1e-10));
  }
}

TEST_CASE("baselines: the number of threads changes no bit") {
  const Prompts many = linear(37, 41, 20);
  const Prompts few = linear(6, 8, 5);
  for (const std::string& name : baseline_names()) {
    CAPTURE(name);
    const Prompts& prompts = find_baseline(name).expensive ? few : many;
    CHECK(prompts.predict(name.c_str(), 1) == prompts.predict(name.c_str(), 5));
  }
}

TEST_CASE("baselines: answers depend on what came before alone") {
  const Prompts prompts = linear(2, 12, 3);
  Prompts changed = prompts;
  changed.ys[6] += 10;                                            // the label of the first prompt's point 6
  for (float& x : std::span(changed.xs).subspan(21, 15)) x += 1;  // and its points 7 to 11
  for (const std::string& name : baseline_names()) {
    CAPTURE(name);
    const std::vector<double> before = prompts.predict(name.c_str());
    const std::vector<double> after = changed.predict(name.c_str());
    for (std::size_t i = 0; i < before.size(); ++i) {
      if (i < 7 || i >= 12) CHECK(before[i] == after[i]);
    }
    if (name != "zero") CHECK(before[11] != after[11]);
  }
}

TEST_CASE("baselines: positions that are not wanted are NaN, others as always") {
  const Prompts prompts = linear(3, 9, 4);
  const std::vector<std::uint8_t> wanted = {0, 1, 0, 0, 1, 0, 0, 0, 1};
  for (const std::string& name : baseline_names()) {
    CAPTURE(name);
    const std::vector<double> all = prompts.predict(name.c_str());
    const std::vector<double> some =
        predict(find_baseline(name), prompts.xs, prompts.ys, 3, 9, 4, {.threads = 2, .wanted = wanted});
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (wanted[i % 9] != 0) {
        CHECK(some[i] == all[i]);
      } else {
        CHECK(std::isnan(some[i]));
      }
    }
  }
}

TEST_CASE("baselines: spread positions hold the first, the last and halves of halves") {
  const auto places = [](std::int64_t points, std::int64_t count) {
    std::vector<std::size_t> list;
    const std::vector<std::uint8_t> wanted = spread_positions(points, count);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (wanted[i] != 0) list.push_back(i);
    }
    return list;
  };
  CHECK(places(101, 4) == std::vector<std::size_t>{0, 25, 50, 75, 100});
  CHECK(places(101, 16).size() == 17);
  CHECK(places(41, 16).size() == 17);
  CHECK(places(512, 1) == std::vector<std::size_t>{0, 511});
  CHECK(places(5, 16) == std::vector<std::size_t>{0, 1, 2, 3, 4});
  CHECK(places(1, 16) == std::vector<std::size_t>{0});
  CHECK_THROWS_WITH_AS((void)spread_positions(5, 0), doctest::Contains("at least 1"), ArgumentError);
}

TEST_CASE("baselines: least squares on clean points is not told lies") {
  // Every third point of each prompt is an outlier with a label from nowhere.
  Prompts prompts = linear(4, 30, 5);
  std::vector<std::uint8_t> scored(prompts.ys.size(), 1);
  Prompts clean{4, 20, 5, {}, {}, {}};
  for (std::size_t at = 0; at < prompts.ys.size(); ++at) {
    const bool outlier = at % 3 == 1;
    if (outlier) {
      prompts.ys[at] = 100;
      scored[at] = 0;
    } else {
      clean.ys.push_back(prompts.ys[at]);
      clean.xs.insert(clean.xs.end(), &prompts.xs[at * 5], &prompts.xs[at * 5] + 5);
    }
  }
  const std::vector<double> oracle =
      predict(find_baseline("least_squares_clean"), prompts.xs, prompts.ys, 4, 30, 5, {.threads = 1, .scored = scored});
  const std::vector<double> expected = clean.predict("least_squares");
  std::size_t next = 0;
  for (std::size_t at = 0; at < prompts.ys.size(); ++at) {
    if (scored[at] != 0) CHECK(oracle[at] == expected[next++]);
  }
  // Without marks all points are clean.
  CHECK(prompts.predict("least_squares_clean") == prompts.predict("least_squares"));
  CHECK(prompts.predict("least_squares_clean") != oracle);
}

TEST_CASE("baselines: work can be watched and stopped") {
  const Prompts prompts = linear(50, 3, 2);
  std::vector<std::int64_t> told;
  PredictOptions options{.threads = 3, .progress = [&](std::int64_t done) { told.push_back(done); }};
  CHECK(predict(find_baseline("averaging"), prompts.xs, prompts.ys, 50, 3, 2, options).size() == 150);
  CHECK(told.size() == 50);
  CHECK(std::is_sorted(told.begin(), told.end()));
  told.clear();
  std::atomic<int> asked{0};
  options.stop = [&] { return ++asked > 10; };
  CHECK(predict(find_baseline("averaging"), prompts.xs, prompts.ys, 50, 3, 2, options).empty());
  CHECK(told.size() == 10);
}

TEST_CASE("baselines: what takes long stops within a prompt") {
  const Prompts prompts = linear(1, 30, 4);
  for (const char* name : {"knn3", "least_squares", "lasso_0.01", "tree_full", "boosted_trees", "two_layer_net"}) {
    CAPTURE(std::string(name));
    for (const int last : {1, 2, 20}) {
      int asked = 0;
      PredictOptions options{.threads = 1, .stop = [&] { return ++asked >= last; }};
      CHECK(predict(find_baseline(name), prompts.xs, prompts.ys, 1, 30, 4, options).empty());
      CHECK(asked == last);
    }
  }
}

TEST_CASE("baselines: unknown names and wrong sizes are refused") {
  CHECK_THROWS_WITH_AS((void)find_baseline("lasso9"), doctest::Contains("averaging"), ArgumentError);
  CHECK_THROWS_WITH_AS(RegisterBaseline({"zero", nullptr}), doctest::Contains("twice"), ArgumentError);
  const std::vector<float> xs(12), ys(4);
  CHECK_THROWS_WITH_AS((void)predict(find_baseline("zero"), xs, ys, 2, 2, 4), doctest::Contains("expected 2 x 2 x 4"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS((void)predict(find_baseline("zero"), xs, ys, 2, 3, 2), doctest::Contains("4 labels"),
                       ArgumentError);
  const std::vector<std::uint8_t> marks(3);
  CHECK_THROWS_WITH_AS((void)predict(find_baseline("zero"), xs, ys, 2, 2, 3, {.scored = marks}),
                       doctest::Contains("3 marks of scored points"), ArgumentError);
  CHECK_THROWS_WITH_AS((void)predict(find_baseline("zero"), xs, ys, 2, 2, 3, {.wanted = marks}),
                       doctest::Contains("3 marks of wanted positions"), ArgumentError);
  const Baseline failing{"failing", [](const PromptPoints&, std::span<double>) { throw DataError("no"); }};
  CHECK_THROWS_AS((void)predict(failing, xs, ys, 4, 1, 3, 2), DataError);
}

}  // namespace
}  // namespace graft
