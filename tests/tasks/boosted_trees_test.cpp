#include "tasks/boosted_trees.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/error.h"
#include "tasks/baselines.h"
#include "tests/tasks/fixture.h"

namespace graft::test {
namespace {

using Options = BoostedTrees::Options;

float at(const BoostedTrees& trees, std::vector<float> x) { return trees(x); }

TEST_CASE("boosted trees: one point comes closer by 0.15 of the rest each time") {
  // A leaf of one point adds 0.3 r / (1 + 1), r what is missing.
  const BoostedTrees trees(std::vector<float>{3}, std::vector<float>{2}, 1);
  CHECK(trees.trees().size() == 100);
  CHECK(at(trees, {0}) == doctest::Approx(2 - 1.5 * std::pow(0.85, 100)).epsilon(1e-6));
  const BoostedTrees few(std::vector<float>{3}, std::vector<float>{2}, 1, {.trees = 3});
  CHECK(at(few, {-8}) == doctest::Approx(2 - 1.5 * std::pow(0.85, 3)).epsilon(1e-6));
  CHECK(at(BoostedTrees(std::vector<float>{3}, std::vector<float>{2}, 1, {.trees = 0}), {0}) == 0.5F);
}

TEST_CASE("boosted trees: the first tree by hand") {
  // g = 0.5 - y = (0.5, 0.5, -9.5, -7.5). Gains: after 1: 0.125 + 16.5^2/4 - 16^2/5 = 16.99; after 2: 1/3 + 17^2/3
  // - 51.2 = 45.47; after 3: 8.5^2/4 + 7.5^2/2 - 51.2 = -5.01.
  const std::vector<float> xs = {1, 2, 4, 6}, ys = {0, 0, 10, 8};
  const BoostedTrees trees(xs, ys, 1, {.trees = 1, .most_depth = 1});
  const BoostedTrees::Tree& tree = trees.trees()[0];
  REQUIRE(tree.size() == 3);
  CHECK(tree[0].feature == 0);
  CHECK(tree[0].threshold == 3);
  CHECK(tree[tree[0].left].value == doctest::Approx(0.3 * -1.0 / 3));
  CHECK(tree[tree[0].right].value == doctest::Approx(0.3 * 17.0 / 3));
  CHECK(at(trees, {2.9F}) == doctest::Approx(0.4));
  CHECK(at(trees, {3}) == doctest::Approx(2.2));  // what is on the threshold goes right
  // One level more: {0.5, 0.5} apart gain 0.25/2 + 0.25/2 - 1/3 < 0: a leaf; {-9.5, -7.5} gain less than 0 too.
  CHECK(BoostedTrees(xs, ys, 1, {.trees = 1}).trees()[0].size() == 3);
  CHECK(BoostedTrees(xs, ys, 1, {.trees = 1, .lambda = 0}).trees()[0].size() == 5);  // -9.5 and -7.5 apart
  CHECK(BoostedTrees(xs, ys, 1, {.trees = 1, .most_depth = 0}).trees()[0].size() == 1);
  // No child of less than three points: no split at all.
  CHECK(BoostedTrees(xs, ys, 1, {.trees = 1, .min_child_weight = 3}).trees()[0].size() == 1);
}

TEST_CASE("boosted trees: ties go to the lowest coordinate, then the highest threshold") {
  const Options one{.trees = 1, .most_depth = 1};
  const BoostedTrees twins(std::vector<float>{1, 1, 2, 2, 3, 3}, std::vector<float>{0, 0, 6}, 2, one);
  CHECK(twins.trees()[0][0].feature == 0);
  // Labels mirrored around 0.5 - 0.5: cutting off either end is as good.
  const BoostedTrees bump(std::vector<float>{1, 2, 3}, std::vector<float>{5, -5, 5}, 1, one);
  CHECK(bump.trees()[0][0].threshold == 2.5F);
}

TEST_CASE("boosted trees: predictions of another program") {
  const nlohmann::json file = fixture("boosted_trees");
  REQUIRE(file.at("cases").size() == 2);
  for (const nlohmann::json& data : file.at("cases")) {
    CAPTURE(data.at("name").get<std::string>());
    const auto expected = data.at("predictions").get<std::vector<double>>();
    const std::vector<double> predictions =
        predict(find_baseline("boosted_trees"), data.at("xs").get<std::vector<float>>(),
                data.at("ys").get<std::vector<float>>(), 1, static_cast<std::int64_t>(expected.size()),
                data.at("dim").get<std::int64_t>());
    // Measured: the same bits. A compiler that contracts a product and a sum may round otherwise.
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      CHECK(predictions[i] == doctest::Approx(expected[i]).epsilon(1e-6));
    }
  }
}

TEST_CASE("boosted trees: wrong arguments are refused") {
  const std::vector<float> three = {1, 2, 3}, none;
  CHECK_THROWS_WITH_AS(BoostedTrees(none, none, 1), doctest::Contains("0 points"), ArgumentError);
  CHECK_THROWS_WITH_AS(BoostedTrees(three, three, 2), doctest::Contains("expected 3 x 2"), ArgumentError);
  CHECK_THROWS_WITH_AS(BoostedTrees(three, three, 1, {.trees = -1}), doctest::Contains("below 0"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
