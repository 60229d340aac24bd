#include "engine/shape.h"

#include <doctest/doctest.h>

#include <type_traits>

#include "engine/error.h"

namespace graft::test {
namespace {

static_assert(std::is_trivially_copyable_v<Shape>);

TEST_CASE("shape: extents, elements, rows and columns") {
  const Shape shape{2, 3, 5};
  CHECK(shape.rank() == 3);
  CHECK(shape[0] == 2);
  CHECK(shape[-1] == 5);
  CHECK(shape[-3] == 2);
  CHECK(shape.elements() == 30);
  CHECK(shape.rows() == 6);
  CHECK(shape.columns() == 5);
  CHECK(shape.str() == "[2, 3, 5]");
}

TEST_CASE("shape: a scalar has one element, a vector one row") {
  const Shape scalar;
  CHECK(scalar.rank() == 0);
  CHECK(scalar.elements() == 1);
  CHECK(scalar.rows() == 1);
  CHECK(scalar.columns() == 1);
  CHECK(scalar.str() == "[]");
  const Shape vector{7};
  CHECK(vector.rows() == 1);
  CHECK(vector.columns() == 7);
}

TEST_CASE("shape: an extent may be 0") {
  const Shape empty{4, 0, 3};
  CHECK(empty.elements() == 0);
  CHECK(empty.rows() == 0);
}

TEST_CASE("shape: equality compares rank and extents") {
  CHECK(Shape{2, 3} == Shape{2, 3});
  CHECK_FALSE(Shape{2, 3} == Shape{3, 2});
  CHECK_FALSE(Shape{2, 3} == Shape{2, 3, 1});
  CHECK_FALSE(Shape{} == Shape{1});
}

TEST_CASE("shape: replaces the last extent") {
  CHECK(Shape{2, 3, 5}.with_columns(8) == Shape{2, 3, 8});
  CHECK_THROWS_WITH_AS(static_cast<void>(Shape{}.with_columns(1)), doctest::Contains("no last extent"), ArgumentError);
}

TEST_CASE("shape: refuses negative extents and more than five") {
  CHECK_THROWS_WITH_AS((Shape{2, -1}), doctest::Contains("extent -1 of axis 1"), ArgumentError);
  CHECK_THROWS_WITH_AS((Shape{1, 1, 1, 1, 1, 1}), doctest::Contains("6 extents, expected at most 5"), ArgumentError);
}

TEST_CASE("shape: rounding helpers") {
  CHECK(round_up(0, 8) == 0);
  CHECK(round_up(1, 8) == 8);
  CHECK(round_up(8, 8) == 8);
  CHECK(round_up(9, 8) == 16);
  CHECK(ceil_div(0, 4) == 0);
  CHECK(ceil_div(9, 4) == 3);
  CHECK(ceil_div(8, 4) == 2);
}

}  // namespace
}  // namespace graft::test
