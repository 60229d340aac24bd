#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "engine/cpu_stream.h"
#include "ops/rows_cpu.h"

namespace graft {

inline constexpr std::int64_t kElementwiseChunk = 1024;

/// y = value(x) for each element; value(A) computes in A, float or double.
template <class Value>
void elementwise_forward(Stream& stream, const ConstView& x, const View& y, const Value& value) {
  with_accumulate(x.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, x.shape.elements(), kElementwiseChunk, [&](std::int64_t first, std::int64_t last) {
      std::array<A, kElementwiseChunk> buffer;
      for (std::int64_t at = first; at < last; at += kElementwiseChunk) {
        const std::int64_t count = std::min(kElementwiseChunk, last - at);
        load_row(x, at, count, buffer.data());
        for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) buffer[i] = value(buffer[i]);
        store_row(y, at, count, buffer.data());
      }
    });
  });
}

/// dx = dy * slope(x) for each element. An absent target is skipped.
template <class Slope>
void elementwise_backward(Stream& stream, const ConstView& x, const ConstView& dy, const GradTarget& dx,
                          const Slope& slope) {
  if (!dx) return;
  with_accumulate(x.dtype, [&](auto a) {
    using A = decltype(a);
    parallel_for(stream, x.shape.elements(), kElementwiseChunk, [&](std::int64_t first, std::int64_t last) {
      std::array<A, kElementwiseChunk> values, gradient;
      for (std::int64_t at = first; at < last; at += kElementwiseChunk) {
        const std::int64_t count = std::min(kElementwiseChunk, last - at);
        load_row(x, at, count, values.data());
        load_row(dy, at, count, gradient.data());
        for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) gradient[i] *= slope(values[i]);
        store_gradient(dx, at, count, gradient.data());
      }
    });
  });
}

}  // namespace graft
