#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

/// Which predictions belong to which targets, and how errors are averaged.
struct SquaredErrorOptions {
  std::int64_t columns = 0;          // columns that count; 0: all columns of the targets from target_column on
  std::int64_t position_stride = 1;  // target i is predicted at token position_stride * i + position_offset
  std::int64_t position_offset = 0;
  bool sum_columns = false;  // a position counts with the sum over its columns (squared norm) instead of their mean
  std::int64_t first_column = 0;   // of the predictions' columns that count; those before it are others'
  std::int64_t target_column = 0;  // of the targets' columns that count
};

/// What forward and backward kernels know of the layout.
struct SquaredErrorLayout {
  std::int64_t batch = 0;
  std::int64_t tokens = 0;          // of the predictions
  std::int64_t stored_columns = 0;  // of the predictions
  std::int64_t points = 0;          // of the targets
  std::int64_t target_columns = 0;  // of the targets
  SquaredErrorOptions options;      // columns resolved

  /// Elements that are compared if no position is masked.
  [[nodiscard]] GRAFT_HD std::int64_t elements() const { return batch * points * options.columns; }

  /// Index of the first column that counts of the prediction of target (prompt, point).
  [[nodiscard]] GRAFT_HD std::int64_t prediction_at(std::int64_t prompt, std::int64_t point) const {
    return (prompt * tokens + options.position_stride * point + options.position_offset) * stored_columns +
           options.first_column;
  }
  /// Index of the first column that counts of target `position` = prompt * points + point.
  [[nodiscard]] GRAFT_HD std::int64_t target_at(std::int64_t position) const {
    return position * target_columns + options.target_column;
  }
  /// The target point that token `token` predicts, or -1.
  [[nodiscard]] GRAFT_HD int point_of(int token) const {
    const int stride = static_cast<int>(options.position_stride);
    const int distance = token - static_cast<int>(options.position_offset);
    if (distance < 0 || distance % stride != 0) return -1;
    return distance / stride < points ? distance / stride : -1;
  }
};

struct SquaredErrorForward {
  ConstView predictions;  // [B, T, stored columns]
  ConstView targets;      // [B, N, target columns]
  ConstView mask;         // [B, N] uint8, or null: every position counts
  View partial;           // [squared_error_blocks(), 2] float64 scratch: sum of squares, scored positions
  View loss;              // []
  View weight;            // [] 1 / (number of scored terms), 0 if there are none; or null
  SquaredErrorLayout layout;
};

struct SquaredErrorBackward {
  ConstView dloss;  // []
  ConstView predictions, targets, mask;
  ConstView weight;
  GradTarget dpredictions;
  SquaredErrorLayout layout;
};

inline constinit Kernel<SquaredErrorForward> squared_error_forward{"squared_error_forward"};
inline constinit Kernel<SquaredErrorBackward> squared_error_backward{"squared_error_backward"};

/// Into how many blocks of consecutive elements the sum is split; a function of the shape alone.
[[nodiscard]] constexpr std::int64_t squared_error_blocks(std::int64_t elements) {
  return std::clamp<std::int64_t>((elements + 8191) / 8192, 1, 256);
}

/// Mean squared error of predictions at chosen tokens:
///   loss = sum over scored (b, i) and c of (predictions[b, stride * i + offset, c] - targets[b, i, c])^2 / terms,
///   terms = scored positions * columns, or scored positions alone with options.sum_columns.
/// c runs over `columns` columns, from first_column of the predictions and target_column of the targets on.
///   predictions  [B, T, stored]      the compute or stream dtype
///   targets      [B, N, >= columns]  the stream dtype
///   mask         [B, N]            uint8, 1 = the position counts; or an empty tensor: all do
///   returns      []                the stream dtype
/// One mean over everything scored, not a mean of means. The loss (and every gradient) is 0 if nothing is scored.
/// Saves predictions, targets and mask. Backward writes dpredictions whole: 0 wherever nothing was read.
/// Throws ArgumentError if shapes or dtypes do not fit, if the last target lies beyond the last token, or if there
/// are 2^31 predictions or more.
/// Source: Garg et al. 2022, section 3; the masked form is the loss of krafton-ai/mambaformer-icl (train.py).
Tensor squared_error(const Context& ctx, const Tensor& predictions, const Tensor& targets, const Tensor& mask = {},
                     const SquaredErrorOptions& options = {});

/// The checks of squared_error() and what they establish, for ops that read predictions and targets the same way.
[[nodiscard]] SquaredErrorLayout squared_error_layout(const Context& ctx, const char* op, const Tensor& predictions,
                                                      const Tensor& targets, const Tensor& mask,
                                                      const SquaredErrorOptions& options);

}  // namespace graft
