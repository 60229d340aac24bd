#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/cpu_stream.h"
#include "ops/attention.h"
#include "ops/exponential_formula.h"

namespace graft {
namespace {

constexpr std::int64_t kLanes = 16;  // independent partial sums, so that reductions vectorize

template <class A>
A max_of(const A* x, std::int64_t n) {
  A lanes[kLanes];
  std::fill(lanes, lanes + kLanes, x[0]);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) lanes[j] = lanes[j] < x[i + j] ? x[i + j] : lanes[j];
  }
  for (; i < n; ++i) lanes[0] = std::max(lanes[0], x[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

template <class A>
A sum_of(const A* x, std::int64_t n) {
  A lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j];
  }
  for (; i < n; ++i) lanes[i % kLanes] += x[i];
  A sum = 0;
  for (const A lane : lanes) sum += lane;
  return sum;
}

/// out[j] = sum_d x[d] * matrix[d][j] for j < n, rows of the matrix `stride` apart; four rows at a time.
template <class A>
void multiply_rows(A* out, const A* x, const A* matrix, std::int64_t rows, std::int64_t n, std::int64_t stride) {
  std::fill(out, out + n, A{0});
  std::int64_t d = 0;
  for (; d + 4 <= rows; d += 4) {
    const A *m0 = matrix + d * stride, *m1 = m0 + stride, *m2 = m1 + stride, *m3 = m2 + stride;
    const A x0 = x[d], x1 = x[d + 1], x2 = x[d + 2], x3 = x[d + 3];
    for (std::int64_t j = 0; j < n; ++j) out[j] += x0 * m0[j] + x1 * m1[j] + x2 * m2[j] + x3 * m3[j];
  }
  for (; d < rows; ++d) {
    for (std::int64_t j = 0; j < n; ++j) out[j] += x[d] * matrix[d * stride + j];
  }
}

/// out[j] += factor * x[j]
template <class A>
void add_scaled(A* out, A factor, const A* x, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) out[j] += factor * x[j];
}

/// One head's [T, head_dim] part of a packed tensor, as dense values of the type that sums are kept in.
template <class T, class A>
void gather(A* out, const T* first, std::int64_t row_stride, std::int64_t tokens, std::int64_t size) {
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t d = 0; d < size; ++d) out[i * size + d] = static_cast<A>(first[i * row_stride + d]);
  }
}
template <class T, class A>
void gather_transposed(A* out, const T* first, std::int64_t row_stride, std::int64_t tokens, std::int64_t size) {
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t d = 0; d < size; ++d) out[d * tokens + i] = static_cast<A>(first[i * row_stride + d]);
  }
}

template <class T>
void forward(Stream& stream, const AttentionForward& args) {
  using A = Accumulate<T>;
  const std::int64_t tokens = args.qkv.shape[1];
  const std::int64_t row = args.qkv.shape[2];
  const AttentionLayout layout = args.layout;
  const std::int64_t size = layout.head_dim;
  const std::int64_t width = layout.width();
  parallel_blocks(stream, args.qkv.shape[0] * layout.heads, [&](std::int64_t block) {
    const std::int64_t batch = block / layout.heads;
    const std::int64_t head = block % layout.heads;
    const T* qkv = args.qkv.as<T>() + batch * tokens * row + head * layout.head_stride;
    T* y = args.y.as<T>() + batch * tokens * width + head * size;
    A* lse = args.lse.as<A>() + block * tokens;

    std::vector<A> keys(static_cast<std::size_t>(tokens * size));  // [head_dim, T]
    std::vector<A> values(keys.size());                            // [T, head_dim]
    gather_transposed(keys.data(), qkv + layout.k_offset, row, tokens, size);
    gather(values.data(), qkv + layout.v_offset, row, tokens, size);
    std::vector<A> weights(static_cast<std::size_t>(tokens));
    std::vector<A> query(static_cast<std::size_t>(size));
    std::vector<A> result(query.size());
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (std::int64_t d = 0; d < size; ++d) {
        query[d] = static_cast<A>(qkv[i * row + layout.q_offset + d]) * static_cast<A>(args.scale);
      }
      const std::int64_t seen = i + 1;
      multiply_rows(weights.data(), query.data(), keys.data(), size, seen, tokens);
      const A largest = max_of(weights.data(), seen);
      for (std::int64_t j = 0; j < seen; ++j) weights[j] = exponential(weights[j] - largest);
      const A sum = sum_of(weights.data(), seen);
      lse[i] = largest + std::log(sum);
      multiply_rows(result.data(), weights.data(), values.data(), seen, size, size);
      for (std::int64_t d = 0; d < size; ++d) y[i * width + d] = static_cast<T>(result[d] / sum);
    }
  });
}

/// Stores or adds [T, head_dim] values to one head's part of the gradient.
template <class G, class A>
void scatter(G* first, const A* values, std::int64_t row_stride, std::int64_t tokens, std::int64_t size,
             bool accumulate) {
  for (std::int64_t i = 0; i < tokens; ++i) {
    G* to = first + i * row_stride;
    const A* from = values + i * size;
    for (std::int64_t d = 0; d < size; ++d)
      to[d] = static_cast<G>(accumulate ? static_cast<A>(to[d]) + from[d] : from[d]);
  }
}

template <class T, class G>
void backward(Stream& stream, const AttentionBackward& args) {
  using A = Accumulate<T>;
  const std::int64_t tokens = args.qkv.shape[1];
  const std::int64_t row = args.qkv.shape[2];
  const AttentionLayout layout = args.layout;
  const std::int64_t size = layout.head_dim;
  const std::int64_t width = layout.width();
  const A scale = static_cast<A>(args.scale);
  const bool accumulate = args.dqkv.accumulate;
  if (!accumulate && 3 * width < row) {  // padding columns
    G* const gradient = args.dqkv.view.as<G>();
    parallel_for(stream, args.dqkv.view.shape.elements(), std::int64_t{1} << 16,
                 [&](std::int64_t first, std::int64_t last) { std::fill(gradient + first, gradient + last, G(0)); });
  }
  parallel_blocks(stream, args.qkv.shape[0] * layout.heads, [&](std::int64_t block) {
    const std::int64_t batch = block / layout.heads;
    const std::int64_t head = block % layout.heads;
    const std::int64_t first = batch * tokens * row + head * layout.head_stride;
    const T* qkv = args.qkv.as<T>() + first;
    const T* y = args.y.as<T>() + batch * tokens * width + head * size;
    const A* lse = args.lse.as<A>() + block * tokens;
    A* delta = args.delta.as<A>() + block * tokens;

    const auto cells = static_cast<std::size_t>(tokens * size);
    std::vector<A> queries(cells), keys(cells), dy(cells);            // [T, head_dim]
    std::vector<A> keys_transposed(cells), values_transposed(cells);  // [head_dim, T]
    std::vector<A> dq(cells), dk(cells), dv(cells);
    gather(queries.data(), qkv + layout.q_offset, row, tokens, size);
    gather(keys.data(), qkv + layout.k_offset, row, tokens, size);
    gather(dy.data(), args.dy.as<T>() + batch * tokens * width + head * size, width, tokens, size);
    gather_transposed(keys_transposed.data(), qkv + layout.k_offset, row, tokens, size);
    gather_transposed(values_transposed.data(), qkv + layout.v_offset, row, tokens, size);
    std::vector<A> weights(static_cast<std::size_t>(tokens)), dweights(weights.size());
    std::vector<A> scaled(static_cast<std::size_t>(size));
    for (std::int64_t i = 0; i < tokens; ++i) {
      const A* query = queries.data() + i * size;
      const A* dy_row = dy.data() + i * size;
      A dot = 0;
      for (std::int64_t d = 0; d < size; ++d) {
        scaled[d] = query[d] * scale;
        dot += dy_row[d] * static_cast<A>(y[i * width + d]);
      }
      delta[i] = dot;
      const std::int64_t seen = i + 1;
      multiply_rows(weights.data(), scaled.data(), keys_transposed.data(), size, seen, tokens);
      multiply_rows(dweights.data(), dy_row, values_transposed.data(), size, seen, tokens);
      for (std::int64_t j = 0; j < seen; ++j) {
        // Rounding may leave a score a little above lse; the exponential there is 1 all the same.
        const A exponent = weights[j] - lse[i];
        weights[j] = exponential(exponent > A{0} ? A{0} : exponent);
        dweights[j] = weights[j] * (dweights[j] - dot) * scale;
      }
      multiply_rows(dq.data() + i * size, dweights.data(), keys.data(), seen, size, size);
      for (std::int64_t j = 0; j < seen; ++j) {
        add_scaled(dk.data() + j * size, dweights[j], query, size);
        add_scaled(dv.data() + j * size, weights[j], dy_row, size);
      }
    }
    G* gradient = args.dqkv.view.as<G>() + first;
    scatter(gradient + layout.q_offset, dq.data(), row, tokens, size, accumulate);
    scatter(gradient + layout.k_offset, dk.data(), row, tokens, size, accumulate);
    scatter(gradient + layout.v_offset, dv.data(), row, tokens, size, accumulate);
  });
}

void launch_forward(Stream& stream, const AttentionForward& args) {
  switch (args.qkv.dtype) {
    case DType::F64:
      return forward<double>(stream, args);
    case DType::BF16:
      return forward<bfloat16>(stream, args);
    default:
      return forward<float>(stream, args);
  }
}

void launch_backward(Stream& stream, const AttentionBackward& args) {
  switch (args.qkv.dtype) {
    case DType::F64:
      return backward<double, double>(stream, args);
    case DType::BF16:
      return args.dqkv.view.dtype == DType::F32 ? backward<bfloat16, float>(stream, args)
                                                : backward<bfloat16, bfloat16>(stream, args);
    default:
      return backward<float, float>(stream, args);
  }
}

const Register forward_registered{attention_forward, Backend::Cpu, launch_forward};
const Register backward_registered{attention_backward, Backend::Cpu, launch_backward};

}  // namespace
}  // namespace graft
