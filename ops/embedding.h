#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct EmbeddingForward {
  ConstView ids;        // [batch, tokens] int32
  ConstView table;      // [vocabulary, D]
  ConstView positions;  // [>= tokens, D] or null
  View y;               // [batch, tokens, D]
};

struct EmbeddingBackward {
  ConstView dy;       // [batch, tokens, D]
  ConstView ids;      // [batch, tokens] int32
  View partial;       // [segments, vocabulary, D] scratch; null where there is one segment
  GradTarget dtable;  // [vocabulary, D]
};

struct AddPositionsForward {
  ConstView x;      // [batch, tokens, D]
  ConstView table;  // [>= tokens, D]
  View y;           // [batch, tokens, D]
};

struct AddPositionsBackward {
  ConstView dy;       // [batch, tokens, D]
  GradTarget dx;      // [batch, tokens, D] in another dtype than dy, or absent
  GradTarget dtable;  // [>= tokens, D]; the rows beyond `tokens` have gradient 0
};

inline constinit Kernel<EmbeddingForward> embedding_forward{"embedding_forward"};
inline constinit Kernel<EmbeddingBackward> embedding_backward{"embedding_backward"};
inline constinit Kernel<AddPositionsForward> add_positions_forward{"add_positions_forward"};
inline constinit Kernel<AddPositionsBackward> add_positions_backward{"add_positions_backward"};

/// Into how many runs of consecutive tokens the table's gradient is split: enough work in parallel for a small
/// vocabulary, no scratch for a large one. A function of the shapes alone.
[[nodiscard]] constexpr std::int64_t embedding_segments(std::int64_t ids, std::int64_t vocabulary) {
  return std::clamp<std::int64_t>(2048 / std::max<std::int64_t>(vocabulary, 1), 1,
                                  std::max<std::int64_t>(ids / 256, 1));
}

/// y[..., :] = table[id[...], :], the look-up of token vectors; with a position table also + positions[t, :].
///   ids        [T] or [B, T]     int32
///   table      [vocabulary, D]   the stream dtype, or the compute dtype; rows may be padded
///   positions  [rows >= T, D]    as table, or an empty tensor: none
///   returns    [..., D]          the stream dtype
/// An id outside [0, vocabulary) gives a row of NaN and no gradient: the host cannot look at ids that are drawn on
/// the device, and a NaN is seen. Saves the ids.
/// dtable[v] = sum of dy over the tokens with id v, in order of the tokens: run after run the same bits.
/// Throws ArgumentError for ids that are not int32, for tables of another width, and for too few positions.
Tensor embedding(const Context& ctx, const Tensor& ids, const Tensor& table, const Tensor& positions = {});

/// y[b, t, :] = x[b, t, :] + table[t, :], learned absolute positions.
///   x        [B, T, D]       the stream dtype, or the compute dtype
///   table    [rows >= T, D]  the stream dtype, or the compute dtype
///   returns  [B, T, D]       the stream dtype
/// Saves nothing. dtable[t] is the sum over the batch in a fixed order.
/// Throws ArgumentError if the table has fewer than T rows (the message names both numbers) or another width.
Tensor add_positions(const Context& ctx, const Tensor& x, const Tensor& table);

}  // namespace graft
