#include "engine/shape.h"

#include "engine/require.h"

namespace graft {

Shape::Shape(std::initializer_list<std::int64_t> extents) : rank_(static_cast<int>(extents.size())) {
  require(rank_ <= kMaxRank, "shape: {} extents, expected at most {}", rank_, kMaxRank);
  int axis = 0;
  for (const std::int64_t extent : extents) {
    require(extent >= 0, "shape: extent {} of axis {}, expected none below 0", extent, axis);
    extents_[axis++] = extent;
  }
}

Shape Shape::with_columns(std::int64_t columns) const {
  require(rank_ >= 1, "shape: no last extent to replace in {}", str());
  Shape result = *this;
  result.extents_[rank_ - 1] = columns;
  return result;
}

std::string Shape::str() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) text += fmt::format("{}{}", i == 0 ? "" : ", ", extents_[i]);
  return text + "]";
}

}  // namespace graft
