#include <cblas.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "engine/cpu_stream.h"
#include "engine/host_blas.h"
#include "ops/gelu_formula.h"
#include "ops/linear.h"
#include "ops/rows_cpu.h"

// Every product is cut into tiles of a fixed size, each computed by one call of single-threaded OpenBLAS: which worker
// computes a tile, and how many workers there are, changes no bit.

namespace graft {
namespace {

constexpr std::int64_t kTileRows = 64;
constexpr std::int64_t kTileColumns = 128;
constexpr std::int64_t kSumColumns = 64;  // columns that a worker sums at a time
constexpr std::int64_t kSumRows = 64;     // rows added up before they join the total

template <class A>
struct Operand {
  const A* data;
  std::int64_t stride;
  bool transposed = false;
};

void gemm(const Operand<float>& a, const Operand<float>& b, std::int64_t m, std::int64_t n, std::int64_t k,
          float* out) {
  cblas_sgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans, b.transposed ? CblasTrans : CblasNoTrans,
              static_cast<blasint>(m), static_cast<blasint>(n), static_cast<blasint>(k), 1.F, a.data,
              static_cast<blasint>(a.stride), b.data, static_cast<blasint>(b.stride), 0.F, out,
              static_cast<blasint>(n));
}
void gemm(const Operand<double>& a, const Operand<double>& b, std::int64_t m, std::int64_t n, std::int64_t k,
          double* out) {
  cblas_dgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans, b.transposed ? CblasTrans : CblasNoTrans,
              static_cast<blasint>(m), static_cast<blasint>(n), static_cast<blasint>(k), 1.0, a.data,
              static_cast<blasint>(a.stride), b.data, static_cast<blasint>(b.stride), 0.0, out,
              static_cast<blasint>(n));
}

/// The part of an operand that belongs to rows (of a) or columns (of b) from `first` on.
template <class A>
Operand<A> from_row(const Operand<A>& a, std::int64_t first) {
  return {a.data + (a.transposed ? first : first * a.stride), a.stride, a.transposed};
}
template <class A>
Operand<A> from_column(const Operand<A>& b, std::int64_t first) {
  return {b.data + (b.transposed ? first * b.stride : first), b.stride, b.transposed};
}

/// Computes op(a)[m, k] op(b)[k, n] and calls finish(row, column, count, values) for each row of each tile; finish may
/// change the values.
template <class A, class Finish>
void product(Stream& stream, const Operand<A>& a, const Operand<A>& b, std::int64_t m, std::int64_t n, std::int64_t k,
             Finish&& finish) {
  use_one_blas_thread();
  const std::int64_t across = ceil_div(n, kTileColumns);
  parallel_blocks(stream, ceil_div(m, kTileRows) * across, [&](std::int64_t tile) {
    const std::int64_t row = tile / across * kTileRows;
    const std::int64_t column = tile % across * kTileColumns;
    const std::int64_t rows = std::min(kTileRows, m - row);
    const std::int64_t columns = std::min(kTileColumns, n - column);
    std::vector<A> values(static_cast<std::size_t>(rows * columns));
    gemm(from_row(a, row), from_column(b, column), rows, columns, k, values.data());
    for (std::int64_t i = 0; i < rows; ++i) finish(row + i, column, columns, values.data() + i * columns);
  });
}

/// A matrix in the type of the arithmetic: the tensor itself, or a converted copy of a bfloat16 one.
template <class A>
class Widened {
 public:
  Widened(Stream& stream, const ConstView& view) {
    if (view.dtype == dtype_of<A>) {
      data_ = view.as<A>();
      return;
    }
    copy_.resize(static_cast<std::size_t>(view.shape.elements()));
    parallel_for(stream, view.shape.elements(), std::int64_t{1} << 15, [&](std::int64_t first, std::int64_t last) {
      load_row(view, first, last - first, copy_.data() + first);
    });
    data_ = copy_.data();
  }
  [[nodiscard]] const A* data() const { return data_; }

 private:
  std::vector<A> copy_;
  const A* data_ = nullptr;
};

template <class A>
void activate(Activation activation, std::int64_t count, A* values) {
  if (activation == Activation::GeluTanh) {
    for (std::int64_t i = 0; i < count; ++i) values[i] = gelu_tanh(values[i]);
  } else if (activation == Activation::GeluErf) {
    for (std::int64_t i = 0; i < count; ++i) values[i] = gelu_erf(values[i]);
  }
}

template <class A>
void multiply_by_slope(Activation activation, std::int64_t count, const A* pre, A* values) {
  if (activation == Activation::GeluTanh) {
    for (std::int64_t i = 0; i < count; ++i) values[i] *= gelu_tanh_slope(pre[i]);
  } else if (activation == Activation::GeluErf) {
    for (std::int64_t i = 0; i < count; ++i) values[i] *= gelu_erf_slope(pre[i]);
  }
}

template <class A>
void column_sums(Stream& stream, const ConstView& matrix, const GradTarget& target) {
  const std::int64_t rows = matrix.shape.rows();
  const std::int64_t columns = matrix.shape.columns();
  parallel_for(stream, columns, kSumColumns, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t count = last - first;
    A total[kSumColumns] = {};
    for (std::int64_t block = 0; block < rows; block += kSumRows) {
      A part[kSumColumns] = {};
      A row[kSumColumns];
      for (std::int64_t r = block; r < std::min(rows, block + kSumRows); ++r) {
        load_row(matrix, r * columns + first, count, row);
        for (std::int64_t i = 0; i < count; ++i) part[i] += row[i];
      }
      for (std::int64_t i = 0; i < count; ++i) total[i] += part[i];
    }
    store_gradient(target, first, count, total);
  });
}

void forward(Stream& stream, const LinearForward& args) {
  with_accumulate(args.x.dtype, [&](auto a) {
    using A = decltype(a);
    const std::int64_t in = args.weight.shape[1];
    const std::int64_t out = args.weight.shape[0];
    const Widened<A> x(stream, args.x);
    const Widened<A> weight(stream, args.weight);
    std::vector<A> bias(static_cast<std::size_t>(args.bias ? out : 0));
    if (args.bias) load_row(args.bias, 0, out, bias.data());
    product<A>(stream, {x.data(), in}, {weight.data(), in, true}, args.x.shape.rows(), out, in,
               [&](std::int64_t row, std::int64_t column, std::int64_t count, A* values) {
                 if (!bias.empty()) {
                   for (std::int64_t i = 0; i < count; ++i) values[i] += bias[static_cast<std::size_t>(column + i)];
                 }
                 if (args.pre) store_row(args.pre, row * out + column, count, values);
                 activate(args.activation, count, values);
                 store_row(args.y, row * out + column, count, values);
               });
  });
}

void backward_data(Stream& stream, const LinearBackwardData& args) {
  with_accumulate(args.dy.dtype, [&](auto a) {
    using A = decltype(a);
    const std::int64_t in = args.weight.shape[1];
    const std::int64_t out = args.weight.shape[0];
    const Widened<A> dy(stream, args.dy);
    const Widened<A> weight(stream, args.weight);
    product<A>(stream, {dy.data(), out}, {weight.data(), in}, args.dy.shape.rows(), in, out,
               [&](std::int64_t row, std::int64_t column, std::int64_t count, A* values) {
                 if (args.pre) {
                   A pre[kTileColumns];
                   load_row(args.pre, row * in + column, count, pre);
                   multiply_by_slope(args.activation, count, pre, values);
                 }
                 store_gradient(args.dx, row * in + column, count, values);
               });
    if (args.dx_sums) column_sums<A>(stream, args.dx.view, args.dx_sums);
  });
}

void backward_weight(Stream& stream, const LinearBackwardWeight& args) {
  with_accumulate(args.dy.dtype, [&](auto a) {
    using A = decltype(a);
    if (args.dbias) column_sums<A>(stream, args.dy, args.dbias);
    if (!args.dweight) return;
    const std::int64_t in = args.x.shape.columns();
    const std::int64_t out = args.dy.shape.columns();
    const Widened<A> dy(stream, args.dy);
    const Widened<A> x(stream, args.x);
    product<A>(stream, {dy.data(), out, true}, {x.data(), in}, out, in, args.dy.shape.rows(),
               [&](std::int64_t row, std::int64_t column, std::int64_t count, A* values) {
                 store_gradient(args.dweight, row * in + column, count, values);
               });
  });
}

const Register forward_registered{linear_forward, Backend::Cpu, forward};
const Register backward_data_registered{linear_backward_data, Backend::Cpu, backward_data};
const Register backward_weight_registered{linear_backward_weight, Backend::Cpu, backward_weight};

}  // namespace
}  // namespace graft
