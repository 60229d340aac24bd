#pragma once
// Means of a loss over the scored elements of predictions and targets, for CPU kernels of losses that a function of
// one prediction and its target defines. Sums are in double, over blocks that depend on the shape alone.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "engine/tensor.h"
#include "ops/rows_cpu.h"
#include "ops/squared_error.h"

namespace graft {

[[nodiscard]] inline bool is_scored(const ConstView& mask, std::int64_t position) {
  return !mask || mask.as<std::uint8_t>()[position] != 0;
}

/// `args` is SquaredErrorForward or a block with its fields; value(prediction, target) is the loss of an element.
template <class Forward, class Value>
void point_loss_forward(Stream& stream, const Forward& args, const Value& value) {
  const SquaredErrorLayout& layout = args.layout;
  const std::int64_t elements = layout.elements();
  const std::int64_t columns = layout.options.columns;
  const std::int64_t blocks = squared_error_blocks(elements);
  const std::int64_t elements_a_block = ceil_div(elements, blocks);
  auto* const partial = args.partial.template as<double>();
  parallel_blocks(stream, blocks, [&](std::int64_t block) {
    double sum = 0;
    double count = 0;
    const std::int64_t last = std::min(elements, (block + 1) * elements_a_block);
    for (std::int64_t i = block * elements_a_block; i < last; ++i) {
      const std::int64_t position = i / columns;
      const std::int64_t column = i % columns;
      if (!is_scored(args.mask, position)) continue;
      const std::int64_t at = layout.prediction_at(position / layout.points, position % layout.points) + column;
      sum += value(load_element<double>(args.predictions, at),
                   load_element<double>(args.targets, layout.target_at(position) + column));
      count += column == 0 || !layout.options.sum_columns ? 1 : 0;
    }
    partial[2 * block] = sum;
    partial[2 * block + 1] = count;
  });
  double sum = 0;
  double count = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    sum += partial[2 * block];
    count += partial[2 * block + 1];
  }
  const double weight = count > 0 ? 1 / count : 0;
  const double loss = sum * weight;
  store_row(args.loss, 0, 1, &loss);
  if (args.weight) store_row(args.weight, 0, 1, &weight);
}

/// slope(prediction, target) is the derivative of value() to the prediction.
template <class Backward, class Slope>
void point_loss_backward(Stream& stream, const Backward& args, const Slope& slope) {
  if (!args.dpredictions) return;
  const SquaredErrorLayout& layout = args.layout;
  const double scale = load_element<double>(args.dloss, 0) * load_element<double>(args.weight, 0);
  parallel_for(stream, layout.batch * layout.tokens, 64, [&](std::int64_t first, std::int64_t last) {
    std::vector<double> row(static_cast<std::size_t>(layout.stored_columns));
    for (std::int64_t i = first; i < last; ++i) {
      std::fill(row.begin(), row.end(), 0.0);
      const int point = layout.point_of(static_cast<int>(i % layout.tokens));
      const std::int64_t position = i / layout.tokens * layout.points + point;
      if (point >= 0 && is_scored(args.mask, position)) {
        for (std::int64_t c = 0; c < layout.options.columns; ++c) {
          const std::int64_t column = layout.options.first_column + c;
          row[static_cast<std::size_t>(column)] =
              scale * slope(load_element<double>(args.predictions, i * layout.stored_columns + column),
                            load_element<double>(args.targets, layout.target_at(position) + c));
        }
      }
      store_gradient(args.dpredictions, i * layout.stored_columns, layout.stored_columns, row.data());
    }
  });
}

}  // namespace graft
