#include "ops/linear.h"

#include "cuda/blas.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/activation_formula.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kEach = 8;  // neighbouring columns a thread takes where rows are aligned, else 1

/// Calls body with the activation as a constant: one of those that linear maps take along.
template <class Body>
void with_fused_activation(Activation activation, const Body& body) {
  with_one_of<Activation::None, Activation::GeluTanh, Activation::GeluErf>(activation, body);
}

// ---- after a forward product: bias and activation -------------------------------------------------------

/// y = act(product + bias), and the argument of act to `pre` where it is kept. `product` may be y or pre.
template <class T, class B, int kVec, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    finish_forward(const T* product, const B* bias, T* pre, T* y, std::int64_t elements, std::int64_t columns) {
  const std::int64_t first = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec;
  if (first >= elements) return;
  float value[kVec];
  load(product + first, value);
  if (bias != nullptr) {
    float addend[kVec];
    load(bias + first % columns, addend);
#pragma unroll
    for (int i = 0; i < kVec; ++i) value[i] += addend[i];
  }
  if (pre != nullptr) store(pre + first, value);
  if (y == nullptr) return;
#pragma unroll
  for (int i = 0; i < kVec; ++i) value[i] = activated<kActivation>(value[i]);
  store(y + first, value);
}

void launch_finish_forward(Stream& stream, ConstView product, ConstView bias, View pre, View y, Activation activation) {
  const std::int64_t elements = product.shape.elements();
  const std::int64_t columns = product.shape.columns();
  const bool aligned = columns % kEach == 0 && is_aligned16(product.data) && is_aligned16(bias.data) &&
                       is_aligned16(pre.data) && is_aligned16(y.data);
  with_type(product.dtype, "linear_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    with_type(bias ? bias.dtype : product.dtype, "linear_forward", [&](auto bias_type) {
      using B = typename decltype(bias_type)::type;
      with_fused_activation(activation, [&](auto act) {
        constexpr Activation kActivation = decltype(act)::value;
        const auto launch = [&](auto kernel, int each) {
          kernel<<<blocks_for(elements, kThreads * each), kThreads, 0, handle(stream)>>>(
              product.as<T>(), bias.as<B>(), pre.as<T>(), y.as<T>(), elements, columns);
        };
        if (aligned) {
          launch(finish_forward<T, B, kEach, kActivation>, kEach);
        } else {
          launch(finish_forward<T, B, 1, kActivation>, 1);
        }
      });
    });
  });
  check(cudaGetLastError());
}

// ---- column sums, alone or behind the slope of an activation --------------------------------------------

/// First stage. A block takes kWarp * kVec columns and its share of the rows, each warp every kWarps-th of them; the
/// sums of its share go to scratch[blockIdx.y]. With an activation the matrix becomes matrix * slope(pre) on the way.
/// scratch may be empty then.
template <class T, int kVec, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    sum_rows(std::conditional_t<kActivation == Activation::None, const T, T>* matrix, const T* __restrict__ pre,
             float* __restrict__ scratch, std::int64_t rows, std::int64_t columns, std::int64_t share) {
  __shared__ float parts[kWarps][kWarp * kVec];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t column = (std::int64_t{blockIdx.x} * kWarp + lane) * kVec;
  const std::int64_t first = std::int64_t{blockIdx.y} * share;
  const std::int64_t last = first + share < rows ? first + share : rows;
  float sum[kVec] = {};
  if (column < columns) {
#pragma unroll 4
    for (std::int64_t row = first + warp; row < last; row += kWarps) {
      float value[kVec];
      load(matrix + row * columns + column, value);
      if constexpr (kActivation != Activation::None) {
        float argument[kVec];
        load(pre + row * columns + column, argument);
#pragma unroll
        for (int i = 0; i < kVec; ++i) value[i] *= activation_slope<kActivation>(argument[i]);
        store(matrix + row * columns + column, value);
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += value[i];
    }
  }
  if (scratch == nullptr) return;
#pragma unroll
  for (int i = 0; i < kVec; ++i) parts[warp][i * kWarp + lane] = sum[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kWarp * kVec; i += kThreads) {
    float total = 0.F;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += parts[w][i];
    // entry i belongs to lane i % kWarp, element i / kWarp of its vector
    const std::int64_t target = (std::int64_t{blockIdx.x} * kWarp + i % kWarp) * kVec + i / kWarp;
    if (target < columns) scratch[std::int64_t{blockIdx.y} * columns + target] = total;
  }
}

constexpr int kCombineGroups = 16;  // threads that share one column's parts

/// Second stage: target[column] = or += sum of scratch[:, column], in a fixed order.
template <class T>
__global__ void __launch_bounds__(kWarp* kCombineGroups)
    combine_sums(const float* __restrict__ scratch, T* target, int parts, std::int64_t columns, bool accumulate) {
  __shared__ float sums[kCombineGroups][kWarp];
  const std::int64_t column = std::int64_t{blockIdx.x} * kWarp + threadIdx.x;
  float sum = 0.F;
  if (column < columns) {
#pragma unroll 4
    for (int part = static_cast<int>(threadIdx.y); part < parts; part += kCombineGroups) {
      sum += scratch[part * columns + column];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  float total = 0.F;
#pragma unroll
  for (int group = 0; group < kCombineGroups; ++group) total += sums[group][threadIdx.x];
  if (accumulate) total += to_float(target[column]);
  target[column] = from_float<T>(total);
}

/// matrix *= slope(pre) (with an activation) and sums = column sums of the result (where wanted).
void launch_sum_rows(Stream& stream, View matrix, ConstView pre, Activation activation, View scratch,
                     const GradTarget& sums, const char* kernel_name) {
  const std::int64_t rows = matrix.shape.rows();
  const std::int64_t columns = matrix.shape.columns();
  const std::int64_t parts = column_sum_parts(rows);
  const std::int64_t share = ceil_div(rows, parts);
  float* partial = sums ? scratch.as<float>() : nullptr;
  const bool aligned = columns % kEach == 0 && is_aligned16(matrix.data) && is_aligned16(pre.data);
  with_type(matrix.dtype, kernel_name, [&](auto type) {
    using T = typename decltype(type)::type;
    with_fused_activation(activation, [&](auto act) {
      constexpr Activation kActivation = decltype(act)::value;
      const auto launch = [&](auto kernel, int each) {
        const dim3 grid(blocks_for(columns, std::int64_t{kWarp} * each), static_cast<unsigned>(parts));
        kernel<<<grid, kThreads, 0, handle(stream)>>>(matrix.as<T>(), pre.as<T>(), partial, rows, columns, share);
      };
      if (aligned) {
        launch(sum_rows<T, kEach, kActivation>, kEach);
      } else {
        launch(sum_rows<T, 1, kActivation>, 1);
      }
    });
  });
  check(cudaGetLastError());
  if (!sums) return;
  with_type(sums.view.dtype, kernel_name, [&](auto type) {
    using T = typename decltype(type)::type;
    combine_sums<<<blocks_for(columns, kWarp), dim3(kWarp, kCombineGroups), 0, handle(stream)>>>(
        partial, sums.view.as<T>(), static_cast<int>(parts), columns, sums.accumulate);
  });
  check(cudaGetLastError());
}

void launch_column_sums(Stream& stream, ConstView matrix, View scratch, const GradTarget& sums, const char* kernel) {
  // without an activation the matrix is only read
  launch_sum_rows(stream, {const_cast<void*>(matrix.data), matrix.dtype, matrix.shape}, {}, Activation::None, scratch,
                  sums, kernel);
}

// ---- products -------------------------------------------------------------------------------------------

Gemm product(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View d, bool accumulate,
             Precision precision) {
  Gemm g;
  g.m = transpose_a ? a.shape.columns() : a.shape.rows();
  g.k = transpose_a ? a.shape.rows() : a.shape.columns();
  g.n = transpose_b ? b.shape.rows() : b.shape.columns();
  g.a = {a.data, a.dtype, a.shape.columns(), transpose_a};
  g.b = {b.data, b.dtype, b.shape.columns(), transpose_b};
  g.d = d.data;
  g.d_dtype = d.dtype;
  g.d_stride = g.n;
  g.beta = accumulate ? 1.F : 0.F;
  g.precision = precision;
  return g;
}

constexpr int kTile = 32;
constexpr int kTileRows = 8;

/// to[column, row] = from[row, column] for a [rows, columns] matrix, through a tile in shared memory.
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose(const float* __restrict__ from, float* __restrict__ to, std::int64_t rows, std::int64_t columns) {
  __shared__ float tile[kTile][kTile + 1];
  const std::int64_t column = std::int64_t{blockIdx.x} * kTile + threadIdx.x;
  const std::int64_t first_row = std::int64_t{blockIdx.y} * kTile;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.y); i < kTile; i += kTileRows) {
    if (first_row + i < rows && column < columns) tile[i][threadIdx.x] = from[(first_row + i) * columns + column];
  }
  __syncthreads();
  const std::int64_t row = first_row + threadIdx.x;
  const std::int64_t first_column = std::int64_t{blockIdx.x} * kTile;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.y); i < kTile; i += kTileRows) {
    if (first_column + i < columns && row < rows) to[(first_column + i) * rows + row] = tile[threadIdx.x][i];
  }
}

/// dy W: with the weight as it lies, or turned around first where there is scratch for it.
Gemm data_product(Stream& stream, const LinearBackwardData& args) {
  if (!args.transposed) {
    return product(args.dy, false, args.weight, false, args.dx.view, args.dx.accumulate, args.precision);
  }
  const std::int64_t rows = args.weight.shape.rows();
  const std::int64_t columns = args.weight.shape.columns();
  const dim3 grid(blocks_for(columns, kTile), blocks_for(rows, kTile));
  transpose<<<grid, dim3(kTile, kTileRows), 0, handle(stream)>>>(args.weight.as<float>(), args.transposed.as<float>(),
                                                                 rows, columns);
  check(cudaGetLastError());
  return product(args.dy, false, args.transposed, true, args.dx.view, args.dx.accumulate, args.precision);
}

Gemm with_vector(Gemm g, Epilogue epilogue, const void* vector, DType dtype) {
  g.epilogue = epilogue;
  g.vector = const_cast<void*>(vector);
  g.vector_dtype = dtype;
  return g;
}

Gemm with_aux(Gemm g, const void* aux) {
  g.aux = const_cast<void*>(aux);
  g.aux_stride = g.n;
  return g;
}

/// d = product + bias. Returns whether the bias still has to be added.
bool product_leaves_bias(Stream& stream, const Gemm& g, ConstView bias) {
  if (bias && try_gemm(stream, with_vector(g, Epilogue::Bias, bias.data, bias.dtype))) return false;
  gemm(stream, g);
  return static_cast<bool>(bias);
}

void forward(Stream& stream, const LinearForward& args) {
  const Gemm into_y = product(args.x, false, args.weight, true, args.y, false, args.precision);
  if (args.activation == Activation::None) {
    if (product_leaves_bias(stream, into_y, args.bias)) {
      launch_finish_forward(stream, args.y, args.bias, {}, args.y, Activation::None);
    }
    return;
  }
  if (args.activation == Activation::GeluTanh && args.fused.activation) {
    const Gemm fused =
        args.pre ? with_aux(with_vector(into_y, Epilogue::GeluAux, args.bias.data, args.bias.dtype), args.pre.data)
                 : with_vector(into_y, Epilogue::Gelu, args.bias.data, args.bias.dtype);
    if (try_gemm(stream, fused)) return;
  }
  const View before = args.pre ? args.pre : args.y;
  const bool bias_left =
      product_leaves_bias(stream, product(args.x, false, args.weight, true, before, false, args.precision), args.bias);
  launch_finish_forward(stream, before, bias_left ? args.bias : ConstView{}, bias_left ? args.pre : View{}, args.y,
                        args.activation);
}

void backward_data(Stream& stream, const LinearBackwardData& args) {
  const Gemm plain = data_product(stream, args);
  if (!args.pre || args.activation == Activation::None) {
    gemm(stream, plain);
    return;
  }
  if (args.dx.accumulate) throw DeviceError("dx behind an activation can be stored only, not added to");
  if (args.activation == Activation::GeluTanh && args.fused.activation_gradient) {
    const View& sums = args.dx_sums.view;
    if (sums && !args.dx_sums.accumulate &&
        try_gemm(stream,
                 with_aux(with_vector(plain, Epilogue::GeluGradientSums, sums.data, sums.dtype), args.pre.data))) {
      return;
    }
    Gemm fused = with_aux(plain, args.pre.data);
    fused.epilogue = Epilogue::GeluGradient;
    if (try_gemm(stream, fused)) {
      if (sums) launch_column_sums(stream, args.dx.view, args.scratch, args.dx_sums, "linear_backward_data");
      return;
    }
  }
  gemm(stream, plain);
  launch_sum_rows(stream, args.dx.view, args.pre, args.activation, args.scratch, args.dx_sums, "linear_backward_data");
}

void backward_weight(Stream& stream, const LinearBackwardWeight& args) {
  bool sums_left = static_cast<bool>(args.dbias);
  if (args.dweight) {
    const Gemm plain =
        product(args.dy, true, args.x, false, args.dweight.view, args.dweight.accumulate, args.precision);
    const View& sums = args.dbias.view;
    if (sums_left && args.fused.bias_gradient && !args.dbias.accumulate &&
        try_gemm(stream, with_vector(plain, Epilogue::RowSumsOfA, sums.data, sums.dtype))) {
      sums_left = false;
    } else {
      gemm(stream, plain);
    }
  }
  if (sums_left) launch_column_sums(stream, args.dy, args.scratch, args.dbias, "linear_backward_weight");
}

const Register forward_registered{linear_forward, Backend::Cuda, forward};
const Register backward_data_registered{linear_backward_data, Backend::Cuda, backward_data};
const Register backward_weight_registered{linear_backward_weight, Backend::Cuda, backward_weight};

}  // namespace
}  // namespace graft::cuda
