#pragma once

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

struct GatherRowsForward {
  ConstView x;          // [B, T, C]
  ConstView positions;  // [B, N] int32
  View y;               // [B, N, C]
};

struct GatherRowsBackward {
  ConstView dy;         // [B, N, C]
  ConstView positions;  // [B, N] int32
  GradTarget dx;        // [B, T, C]
};

inline constinit Kernel<GatherRowsForward> gather_rows_forward{"gather_rows_forward"};
inline constinit Kernel<GatherRowsBackward> gather_rows_backward{"gather_rows_backward"};

/// y[b, i, :] = x[b, positions[b, i], :], the rows of each sequence that are scored: what comes after, such as the
/// final norm and a head over a vocabulary, then runs on N rows of T.
///   x          [B, T, C]  float32, bfloat16 or float64
///   positions  [B, N]     int32, in any order, with repetitions
///   returns    [B, N, C]  x's dtype
/// A position outside [0, T) gives a row of NaN and no gradient: the host cannot look at positions that are drawn on
/// the device, and a NaN is seen. Saves the positions.
/// dx[b, t] = sum of dy[b, i] over the i with positions[b, i] == t, in order of i: run after run the same bits; zero
/// where there is none. Throws ArgumentError for positions that are not int32 or do not fit x.
Tensor gather_rows(const Context& ctx, const Tensor& x, const Tensor& positions);

}  // namespace graft
