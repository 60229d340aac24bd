#pragma once

#include <cstdint>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"
#include "ops/activation_formula.h"

namespace graft {

/// Which elementwise work is offered to the matrix library's epilogues instead of going through kernels of ours (on
/// CUDA; the CPU computes the same either way). A bias always is. Where the library cannot, our kernels do it.
struct FusedEpilogues {
  bool activation = true;           // gelu and the pre-activation behind a forward product
  bool activation_gradient = true;  // gelu' (and the bias gradient, where it is of the product's dtype) behind dy W
  bool bias_gradient = true;        // column sums of dy beside dy^T x
};
/// What linear() and mlp() use unless told otherwise: the one place to change it.
/// Measured on an H100 for the Transformer of 12 layers and width 256 at 5248 rows, us, library against ours: gelu
/// behind W x 39 against 37 (tf32), 15 against 23 (bf16); gelu' behind dy W 71 against 42 (tf32), 30 against 22 (bf16);
/// column sums beside dy^T x 31 against 30 (tf32), 20 against 19 (bf16).
[[nodiscard]] constexpr FusedEpilogues default_epilogues(Precision precision) {
  return {.activation = precision == Precision::Bf16, .activation_gradient = false, .bias_gradient = false};
}

/// Rows that one partial sum of a column sum covers at least, and the most partial sums there are: functions of
/// the shape alone, so that sums have one order everywhere.
inline constexpr std::int64_t kColumnSumRows = 32;
inline constexpr std::int64_t kColumnSumParts = 128;
[[nodiscard]] constexpr std::int64_t column_sum_parts(std::int64_t rows) {
  const std::int64_t parts = ceil_div(rows, kColumnSumRows);
  return parts < kColumnSumParts ? parts : kColumnSumParts;
}

// In all blocks, x, dx, y, dy and pre count as matrices [rows, columns], whatever their rank.

struct LinearForward {
  ConstView x, weight, bias;                 // [rows, in], [out, in], [out] or empty
  View y;                                    // [rows, out]
  View pre;                                  // [rows, out]: x W^T + b before the activation; empty: not kept
  Activation activation = Activation::None;  // or GeluTanh, GeluErf
  Precision precision = Precision::Fp32;
  FusedEpilogues fused;
};
/// dx = dy W, times the slope of the activation at `pre` where there is one.
struct LinearBackwardData {
  ConstView dy, weight;  // [rows, out], [out, in]
  ConstView pre;         // [rows, in]: what x was before its activation; empty: x had none
  GradTarget dx;         // [rows, in]; with an activation it must store
  GradTarget dx_sums;    // [in]: column sums of dx, the bias gradient of the layer before; only with an activation
  View scratch;          // [column_sum_parts(rows), in] in the accumulation dtype, with dx_sums
  View transposed;       // [in, out] scratch for the transpose of the weight, or empty: the product reads it as it lies
  Activation activation = Activation::None;  // or GeluTanh, GeluErf
  Precision precision = Precision::Fp32;
  FusedEpilogues fused;
};
/// dweight = dy^T x, dbias = column sums of dy.
struct LinearBackwardWeight {
  ConstView dy, x;     // [rows, out], [rows, in]
  GradTarget dweight;  // [out, in]
  GradTarget dbias;    // [out]
  View scratch;        // [column_sum_parts(rows), out] in the accumulation dtype, with dbias
  Precision precision = Precision::Fp32;
  FusedEpilogues fused;
};

inline constinit Kernel<LinearForward> linear_forward{"linear_forward"};
inline constinit Kernel<LinearBackwardData> linear_backward_data{"linear_backward_data"};
inline constinit Kernel<LinearBackwardWeight> linear_backward_weight{"linear_backward_weight"};

/// y = x W^T + b over the last axis.
///   x       [..., in]   the context's compute dtype
///   weight  [out, in]   the compute dtype; stored extents, padding included (padding is zero and stays so)
///   bias    [out]       the compute dtype, or float32 in bf16; an empty tensor: none
///   returns [..., out]  the compute dtype
/// Products of bfloat16 operands are summed in float32 and rounded once (where the library cannot add the bias by
/// itself, before the addition too). In tf32 operands are rounded to tf32 on CUDA; the CPU computes in float32.
/// Saves x and weight. Gradients: dx = dy W, dW = dy^T x, db = column sums of dy. Throws ArgumentError where
/// dtypes or shapes differ from the above.
Tensor linear(const Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias = {});
Tensor linear(const Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
              const FusedEpilogues& fused);

/// Scratch for LinearBackwardData::transposed: in tf32, for weights of 2^17 elements and more. Hopper's tf32 units want
/// the axis that is summed over to be contiguous in both operands, which it is not in dy W; turning the weight around
/// first halves the time. The CPU ignores it.
[[nodiscard]] Tensor transposed_weight_scratch(const Context& ctx, const Tensor& weight);

/// Scratch for the column sums of a [rows, columns] matrix; empty where `target` is.
[[nodiscard]] Tensor column_sum_scratch(const Context& ctx, const GradTarget& target, std::int64_t rows);

/// The checks of linear(), with the caller's name and the weight's in the messages; for ops that contain one.
void require_linear(const Context& ctx, const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    const char* weight_name, const char* bias_name);

}  // namespace graft
