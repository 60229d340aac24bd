#include "tasks/regression_tree.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/baselines.h"
#include "tests/tasks/fixture.h"

namespace graft::test {
namespace {

double at(const RegressionTree& tree, std::vector<float> x) { return tree(x); }

TEST_CASE("regression tree: a line by hand") {
  // The root separates {0, 1} from {10, 14} halfway between 2 and 4; then each half by itself.
  const std::vector<float> xs = {4, 1, 6, 2}, ys = {10, 0, 14, 1};
  const RegressionTree full(xs, ys, 1, 0);
  REQUIRE(full.nodes().size() == 7);
  CHECK(full.nodes()[0].feature == 0);
  CHECK(full.nodes()[0].threshold == 3);
  CHECK(full.nodes()[0].value == 6.25);
  CHECK(full.nodes()[0].points == 4);
  CHECK(at(full, {-5}) == 0);
  CHECK(at(full, {1.5}) == 0);  // what is on the threshold goes left
  CHECK(at(full, {1.6F}) == 1);
  CHECK(at(full, {3}) == 1);
  CHECK(at(full, {3.1F}) == 10);
  CHECK(at(full, {99}) == 14);
  const RegressionTree stump(xs, ys, 1, 1);
  REQUIRE(stump.nodes().size() == 3);
  CHECK(at(stump, {0}) == 0.5);
  CHECK(at(stump, {9}) == 12);
}

TEST_CASE("regression tree: a plane by hand") {
  // y = 8 [x_1 > 0] + 2 [x_0 > 0]: x_1 explains more and is the root, x_0 follows on both sides.
  const std::vector<float> xs = {-1, -1, 1, -1, -1, 1, 1, 1}, ys = {0, 2, 8, 10};
  const RegressionTree tree(xs, ys, 2, 0);
  REQUIRE(tree.nodes().size() == 7);
  CHECK(tree.nodes()[0].feature == 1);
  CHECK(tree.nodes()[tree.nodes()[0].left].feature == 0);
  CHECK(tree.nodes()[tree.nodes()[0].right].feature == 0);
  CHECK(at(tree, {0.5F, -0.5F}) == 2);
  CHECK(at(tree, {-0.5F, 0.5F}) == 8);
}

TEST_CASE("regression tree: ties go to the lowest coordinate, then the lowest threshold") {
  const std::vector<float> twins = {1, 1, 2, 2, 3, 3}, steps = {0, 0, 6};
  CHECK(RegressionTree(twins, steps, 2, 0).nodes()[0].feature == 0);
  // Cutting off either end is as good.
  const std::vector<float> line = {1, 2, 3}, bump = {0, 1, 0};
  const RegressionTree tree(line, bump, 1, 1);
  CHECK(tree.nodes()[0].threshold == 1.5);
  CHECK(at(tree, {3}) == 0.5);
}

TEST_CASE("regression tree: what cannot be split is a leaf") {
  const std::vector<float> same_x = {2, 2, 2}, ys = {1, 2, 6};
  CHECK(RegressionTree(same_x, ys, 1, 0).nodes().size() == 1);
  CHECK(at(RegressionTree(same_x, ys, 1, 0), {7}) == 3);
  const std::vector<float> xs = {1, 2, 3}, same_y = {4, 4, 4};
  CHECK(RegressionTree(xs, same_y, 1, 0).nodes().size() == 1);
  const std::vector<float> close = {0, 5e-8F}, two = {1, 3};
  CHECK(RegressionTree(close, two, 1, 0).nodes().size() == 1);
  // Halfway between two neighbouring floats would round up: the lower one is the threshold then.
  const float lower = 1000, upper = std::nextafter(lower, 2000.F);
  const RegressionTree narrow(std::vector<float>{lower, upper}, two, 1, 0);
  CHECK(at(narrow, {lower}) == 1);
  CHECK(at(narrow, {upper}) == 3);
}

TEST_CASE("regression tree: a full tree answers seen points with their labels") {
  std::vector<float> xs, ys;
  for (int i = 0; i < 50; ++i) {
    for (int k = 0; k < 3; ++k) xs.push_back(static_cast<float>((i * 37 + k * 11) % 101));
    ys.push_back(static_cast<float>((i * i) % 17));
  }
  const RegressionTree tree(xs, ys, 3, 0);
  for (std::size_t i = 0; i < 50; ++i) CHECK(tree(std::span(xs).subspan(i * 3, 3)) == ys[i]);
  for (const std::int64_t depth : {1, 2, 4}) {
    std::size_t leaves = 0;
    const RegressionTree limited(xs, ys, 3, depth);
    for (const RegressionTree::Node& node : limited.nodes()) leaves += node.feature < 0;
    CHECK(leaves <= std::size_t{1} << static_cast<std::size_t>(depth));
  }
}

TEST_CASE("regression tree: fits and predictions of another program") {
  const nlohmann::json data = fixture("regression_tree");
  const nlohmann::json& fitted = data.at("fitted");
  const auto xs = fitted.at("xs").get<std::vector<float>>();
  const auto ys = fitted.at("ys").get<std::vector<float>>();
  const auto dim = fitted.at("dim").get<std::size_t>();
  const nlohmann::json& line = data.at("line");
  for (const std::string name : {"tree_depth4", "tree_full"}) {
    CAPTURE(name);
    const auto values = fitted.at("values").at(name).get<std::vector<double>>();
    const RegressionTree tree(xs, ys, static_cast<std::int64_t>(dim), name == "tree_full" ? 0 : 4);
    for (std::size_t i = 0; i < ys.size(); ++i) {
      CHECK(tree(std::span(xs).subspan(i * dim, dim)) == doctest::Approx(values[i]).epsilon(1e-12));
    }
    const auto expected = line.at("predictions").at(name).get<std::vector<double>>();
    const std::vector<double> predictions =
        predict(find_baseline(name), line.at("xs").get<std::vector<float>>(), line.at("ys").get<std::vector<float>>(),
                1, static_cast<std::int64_t>(expected.size()), 1);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      CHECK(predictions[i] == doctest::Approx(expected[i]).epsilon(1e-12));
    }
  }
}

TEST_CASE("regression tree: wrong arguments are refused") {
  const std::vector<float> three = {1, 2, 3}, none;
  CHECK_THROWS_WITH_AS(RegressionTree(none, none, 1, 0), doctest::Contains("0 points"), ArgumentError);
  CHECK_THROWS_WITH_AS(RegressionTree(three, three, 2, 0), doctest::Contains("expected 3 x 2"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
