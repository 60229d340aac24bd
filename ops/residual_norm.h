#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/context.h"
#include "engine/kernel.h"
#include "engine/tensor.h"

namespace graft {

enum class NormKind : std::uint8_t { LayerNorm, RmsNorm };

inline constexpr int kResidualNormMaxTerms = 4;
inline constexpr int kResidualNormMaxNorms = 3;

/// What a term of the sum is multiplied by: constant + gate * tanh(beta).
struct TermWeight {
  double constant = 0;
  double gate = 0;
};

struct ResidualNormForward {
  int terms = 0;
  int norms = 0;
  NormKind kind = NormKind::LayerNorm;
  double eps = 1e-5;
  ConstView term[kResidualNormMaxTerms];  // [rows, D]
  TermWeight weight[kResidualNormMaxTerms];
  ConstView beta;                         // [1], or null if no term has a gate
  ConstView gain[kResidualNormMaxNorms];  // [D]
  ConstView bias[kResidualNormMaxNorms];  // [D], null in an RMS norm
  View sum;                               // [rows, D] or null: the weighted sum of the terms
  View normed[kResidualNormMaxNorms];     // [rows, D]
  View mean, rstd;                        // [rows] or null; no mean in an RMS norm
};

struct ResidualNormBackward {
  int terms = 0;
  int norms = 0;
  NormKind kind = NormKind::LayerNorm;
  ConstView dsum;                         // [rows, D] or null: gradient that arrives at the sum from elsewhere
  ConstView dy[kResidualNormMaxNorms];    // [rows, D]; null: no gradient of this norm
  ConstView x;                            // [rows, D] what was normalised, the stream dtype
  ConstView gain[kResidualNormMaxNorms];  // [D]
  ConstView mean, rstd;                   // [rows]; no mean in an RMS norm
  TermWeight weight[kResidualNormMaxTerms];
  ConstView beta;                         // [1], or null if no term has a gate
  ConstView term[kResidualNormMaxTerms];  // [rows, D]: terms with a gate where dbeta is wanted, null elsewhere
  View partial;  // residual_norm_partial_elements() scratch, or null if no sum over rows is wanted
  GradTarget dterm[kResidualNormMaxTerms];  // [rows, D]; one of them may be the memory of dsum
  GradTarget dgain[kResidualNormMaxNorms];  // [D]
  GradTarget dbias[kResidualNormMaxNorms];  // [D]
  GradTarget dbeta;                         // [1]
};

inline constinit Kernel<ResidualNormForward> residual_norm_forward{"residual_norm_forward"};
inline constinit Kernel<ResidualNormBackward> residual_norm_backward{"residual_norm_backward"};

/// Widest row that residual_norm takes: the CUDA kernels keep a row in registers.
inline constexpr std::int64_t kResidualNormMaxWidth = 8192;

/// Into how many blocks of consecutive rows the sums for gains, biases and beta are split: a function of the shape
/// alone, so that results do not depend on the machine.
[[nodiscard]] constexpr std::int64_t residual_norm_row_blocks(std::int64_t rows) {
  return std::clamp<std::int64_t>((rows + 15) / 16, 1, 256);
}

/// Sums over rows that one row block leaves for gains and biases: [norms, 1 or 2, D], the gain's before the bias's.
[[nodiscard]] constexpr std::int64_t residual_norm_columns(NormKind kind, int norms, std::int64_t width) {
  return width * norms * (kind == NormKind::LayerNorm ? 2 : 1);
}

/// Elements of the scratch of residual_norm_backward: the sums of every row block, then one of each for beta.
[[nodiscard]] constexpr std::int64_t residual_norm_partial_elements(NormKind kind, int norms, std::int64_t rows,
                                                                    std::int64_t width) {
  return residual_norm_row_blocks(rows) * (residual_norm_columns(kind, norms, width) + 1);
}

/// One term of a residual sum; its weight is constant + gate * tanh(beta).
struct ResidualTerm {
  Tensor value;  // [..., D], the stream dtype or the compute dtype
  double constant = 1;
  double gate = 0;
};

struct NormWeights {
  Tensor gain;  // [D], the stream dtype
  Tensor bias;  // [D], the stream dtype; empty in an RMS norm
};

struct ResidualNorm {
  Tensor residual;             // the weighted sum, the stream dtype; empty if it was not asked for
  std::vector<Tensor> normed;  // its norms, the compute dtype
};

/// r = sum_k w_k t_k with w_k = constant_k + gate_k * tanh(beta);  y_i = norm(r) with the weights of norm i.
/// The step from one block of a pre-norm network to the next, in one pass over memory forward and one backward, for
/// plain residuals (t_0 + t_1), parallel branches (t_0 + t_1 + t_2), scaled ones (constants) and gated streams.
///   layer norm  y_i = (r - mean) * rstd * gain_i + bias_i,  rstd = 1 / sqrt(mean((r - mean)^2) + eps)
///   RMS norm    y_i = r * rstd * gain_i,                    rstd = 1 / sqrt(mean(r^2) + eps)
///   terms       1 to 4 tensors [..., D], each in the stream dtype or the compute dtype; D at most 8192
///   beta        [1]  the stream dtype, read by the kernel; may be empty where no term has a gate
///   norms       1 to 3 gains [D] and biases [D] (empty in an RMS norm), the stream dtype
///   returns     r [..., D] in the stream dtype, and y_i [..., D] in the compute dtype; arithmetic, mean and rstd are
///   in
///               the stream dtype
/// `keep_residual` = false is for the last norm of a network: r is not returned, and in inference not written.
/// A single term of constant 1 without a gate is r itself where it has the stream dtype: it is returned, not copied.
/// Saves r, gains, mean and rstd, and the terms that have a gate if beta needs a gradient. Backward, with
/// d = dr + sum_i (norm's gradient of dy_i), gives w_k d to t_k in the dtype of t_k (terms of the same weight and dtype
/// share one tensor), and (1 - tanh^2(beta)) sum_k gate_k <d, t_k> to beta. Any of dr and dy_i may be absent. Gradients
/// of gains, biases and beta are sums over fixed blocks of rows. At beta = 0 a term with constant 0 gets a zero
/// gradient, beta does not.
/// Throws ArgumentError if there are too many terms or norms or none, if terms differ in shape, if a gain or bias is
/// not [D] or is used by two norms, if a term has a gate and beta is empty or not [1], if an RMS norm has a bias, if a
/// dtype does not fit the precision, or if D is too wide.
/// Source: Ba, Kiros & Hinton 2016, equations 3-4; Zhang & Sennrich 2019, equation 4; tanh gates: Alayrac et al. 2022,
/// section 2.2.
ResidualNorm residual_norm(const Context& ctx, const std::vector<ResidualTerm>& terms, const Tensor& beta,
                           NormKind kind, const std::vector<NormWeights>& norms, bool keep_residual = true,
                           double eps = 1e-5);

}  // namespace graft
