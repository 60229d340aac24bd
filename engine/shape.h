#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "engine/dtype.h"

namespace graft {

/// Extents of a dense, row-major tensor, at most five. Trivially copyable, so that it can travel in
/// kernel argument blocks. Negative positions count from the end: shape[-1] is the last extent.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents);

  [[nodiscard]] GRAFT_HD int rank() const { return rank_; }
  [[nodiscard]] GRAFT_HD std::int64_t operator[](int axis) const { return extents_[axis < 0 ? axis + rank_ : axis]; }
  /// Number of elements; 1 for rank 0.
  [[nodiscard]] GRAFT_HD std::int64_t elements() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= extents_[i];
    return n;
  }
  /// Product of all extents but the last; 1 for rank 0 and 1.
  [[nodiscard]] GRAFT_HD std::int64_t rows() const {
    std::int64_t n = 1;
    for (int i = 0; i + 1 < rank_; ++i) n *= extents_[i];
    return n;
  }
  /// The last extent; 1 for rank 0.
  [[nodiscard]] GRAFT_HD std::int64_t columns() const { return rank_ == 0 ? 1 : extents_[rank_ - 1]; }

  /// This shape with its last extent replaced.
  [[nodiscard]] Shape with_columns(std::int64_t columns) const;
  /// "[2, 3]"
  [[nodiscard]] std::string str() const;

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i) {
      if (a.extents_[i] != b.extents_[i]) return false;
    }
    return true;
  }

 private:
  std::int64_t extents_[kMaxRank] = {};
  int rank_ = 0;
};

/// Smallest multiple of `multiple` that is at least `n`.
[[nodiscard]] GRAFT_HD constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
[[nodiscard]] GRAFT_HD constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

}  // namespace graft
