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
  ConstView start;      // [1] int32: position of token 0; null: 0
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
  ConstView start;  // [1] int32: position of token 0; null: 0
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
///   start      [1] int32         on the device, for inference: positions are start + t; an empty tensor: 0
///   returns    [..., D]          the stream dtype
/// An id outside [0, vocabulary) gives a row of NaN and no gradient: the host cannot look at ids that are drawn on
/// the device, and a NaN is seen. So does a position outside the table that comes of `start`. Saves the ids.
/// dtable[v] = sum of dy over the tokens with id v, in order of the tokens: run after run the same bits.
/// Throws ArgumentError for ids that are not int32, for tables of another width, for too few positions, and for a start
/// that is not [1] int32 or comes without positions or while a tape is recording.
Tensor embedding(const Context& ctx, const Tensor& ids, const Tensor& table, const Tensor& positions = {},
                 const Tensor& start = {});

/// y[b, t, :] = x[b, t, :] + table[t, :], learned absolute positions.
///   x        [B, T, D]       the stream dtype, or the compute dtype
///   table    [rows >= T, D]  the stream dtype, or the compute dtype
///   start    [1] int32       on the device, for inference: the row is start + t; an empty tensor: 0
///   returns  [B, T, D]       the stream dtype
/// Saves nothing. dtable[t] is the sum over the batch in a fixed order.
/// A position outside the table that comes of `start` gives a row of NaN.
/// Throws ArgumentError if the table has fewer than T rows (the message names both numbers) or another width, and for a
/// start that is not [1] int32 or comes while a tape is recording.
Tensor add_positions(const Context& ctx, const Tensor& x, const Tensor& table, const Tensor& start = {});

}  // namespace graft
