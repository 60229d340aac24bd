#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

/// Rows with this label are not scored.
inline constexpr std::int32_t kIgnoredLabel = -100;

struct CrossEntropyForward {
  ConstView logits;          // [rows, stored columns]
  ConstView labels;          // [rows] int32
  View log_sum;              // [rows] log of the sum of exp(logits) over the valid columns
  View row_loss;             // [rows] log_sum - logit at the label; 0 where ignored
  View loss;                 // []
  View weight;               // [] 1 / scored rows, 0 if there are none
  std::int64_t columns = 0;  // valid ones
};

struct CrossEntropyBackward {
  ConstView dloss;  // []
  ConstView logits, labels, log_sum, weight;
  GradTarget dlogits;
  std::int64_t columns = 0;
};

inline constinit Kernel<CrossEntropyForward> cross_entropy_forward{"cross_entropy_forward"};
inline constinit Kernel<CrossEntropyBackward> cross_entropy_backward{"cross_entropy_backward"};

/// loss = mean over the rows whose label is not -100 of log(sum_c exp(logits[c])) - logits[label].
///   logits   [..., stored]  the compute or stream dtype; the first `columns` columns are valid (0: all of them)
///   labels   [...]          int32, in [0, columns) or -100
///   returns  []             the stream dtype
/// The sum is shifted by the row's maximum. The loss is 0 if no row is scored. A label that is neither -100 nor in
/// range makes the loss NaN. Saves logits, labels and the log sums, not the probabilities.
/// Backward: dlogits = (softmax - onehot) * dloss / scored rows; 0 in ignored rows and beyond the valid columns.
/// Throws ArgumentError if labels do not fit the rows of logits, or `columns` the stored ones.
Tensor cross_entropy(const Context& ctx, const Tensor& logits, const Tensor& labels, std::int64_t columns = 0);

}  // namespace graft
