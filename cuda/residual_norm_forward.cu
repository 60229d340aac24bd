#include <cstdint>

#include "cuda/residual_norm.cuh"

namespace graft::cuda::residual_norm {
namespace {

struct Weights {
  float constant[kTerms];
  float gate[kTerms];
  const float* beta;  // null: no term has a gate

  [[nodiscard]] __device__ __forceinline__ float of(int k, float tanh_beta) const {
    return constant[k] + gate[k] * tanh_beta;
  }
};

struct Forward {
  Source terms[kTerms];
  Weights weights;
  const float* gain[kNorms];
  const float* bias[kNorms];  // null in an RMS norm
  void* normed[kNorms];
  bool normed_bf16;
  float* sum;
  float* mean;
  float* rstd;
  std::int64_t rows;
  int width;
  int term_count;
  int norm_count;
  float eps;
  bool centred;  // layer norm
};

/// Small rows wait for memory and little else: all terms are asked for at once.
template <class L>
inline constexpr int kTermsAtOnce = L::kVectors <= 2 ? kTerms : 2;

template <class L>
__global__ void __launch_bounds__(L::kThreads) forward_kernel(const Forward p) {
  constexpr int kAtOnce = kTermsAtOnce<L>;
  const std::int64_t row = std::int64_t{blockIdx.x} * L::kRows + L::row();
  if (row >= p.rows) return;  // whole warps, or nobody where a block has one row
  const std::int64_t start = row * p.width;

  const float tanh_beta = tanh_or_zero(p.weights.beta);
  float x[L::kVectors][kGroup] = {};  // columns beyond the row stay zero
#pragma unroll
  for (int k = 0; k < kTerms; k += kAtOnce) {
    if (k >= p.term_count) break;
    RawTerms<L, kAtOnce> terms;
    terms.fetch(p.terms, k, p.term_count, start, p.width);
    terms.add(p.terms, k, p.term_count, x, [&](int term) { return p.weights.of(term, tanh_beta); });
  }
  if (p.sum != nullptr) store_row<L>(p.sum + start, p.width, x);

  // small rows: ask for the first gain and bias before the reductions, whose latency then hides theirs
  constexpr bool kEarly = L::kVectors <= 4;
  float gain[kEarly ? L::kVectors : 1][kGroup], bias[kEarly ? L::kVectors : 1][kGroup] = {};
  const auto load_weights = [&](int i) {
    if constexpr (kEarly) {
      L::load(p.gain[i], p.width, gain);
      if (p.centred) L::load(p.bias[i], p.width, bias);
    }
  };
  load_weights(0);

  const float inverse_width = 1.F / static_cast<float>(p.width);
  float mean = 0.F;
  if (p.centred) {
    float total = 0.F;
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) total += (x[v][0] + x[v][1]) + (x[v][2] + x[v][3]);
    mean = L::sum(total) * inverse_width;
  }
  float squares = 0.F;
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float centred = x[v][j] - mean;
      if (L::column(v) + j < p.width) squares += centred * centred;
    }
  }
  const float rstd = rsqrtf(L::sum(squares) * inverse_width + p.eps);
  if (L::lane() == 0 && p.rstd != nullptr) {
    p.rstd[row] = rstd;
    if (p.mean != nullptr) p.mean[row] = mean;
  }

#pragma unroll
  for (int i = 0; i < kNorms; ++i) {
    if (i >= p.norm_count) break;
    if (i > 0) load_weights(i);
    const auto store = [&](auto* row) {
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        const int column = L::column(v);
        if constexpr (!kEarly) {
          load_group<L::kAligned>(p.gain[i], column, p.width, gain[0]);
          if (p.centred) load_group<L::kAligned>(p.bias[i], column, p.width, bias[0]);
        }
        constexpr int kLast = kEarly ? L::kVectors - 1 : 0;
        float y[kGroup];
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          y[j] = (x[v][j] - mean) * rstd * gain[v < kLast ? v : kLast][j] + bias[v < kLast ? v : kLast][j];
        }
        store_group<L::kAligned>(row, column, p.width, y);
      }
    };
    if (p.normed_bf16) {
      store(static_cast<bf16*>(p.normed[i]) + start);
    } else {
      store(static_cast<float*>(p.normed[i]) + start);
    }
  }
}

void launch_forward(Stream& stream, const ResidualNormForward& args) {
  constexpr const char* kName = "residual_norm_forward";
  Forward p{};
  p.rows = args.term[0].shape.rows();
  p.width = static_cast<int>(args.term[0].shape.columns());
  p.weights.beta = args.beta.as<float>();
  p.sum = args.sum.as<float>();
  p.mean = args.mean.as<float>();
  p.rstd = args.rstd.as<float>();
  p.term_count = args.terms;
  p.norm_count = args.norms;
  p.eps = static_cast<float>(args.eps);
  p.centred = args.kind == NormKind::LayerNorm;
  bool aligned = groups_aligned(p.width, args.sum.data);
  for (int k = 0; k < args.terms; ++k) {
    p.terms[k] = source_of(args.term[k], kName, "a term");
    p.weights.constant[k] = static_cast<float>(args.weight[k].constant);
    p.weights.gate[k] = static_cast<float>(args.weight[k].gate);
    aligned = aligned && is_aligned16(args.term[k].data);
  }
  for (int i = 0; i < args.norms; ++i) {
    p.gain[i] = args.gain[i].as<float>();
    p.bias[i] = args.bias[i].as<float>();
    p.normed[i] = args.normed[i].data;
    p.normed_bf16 = is_bf16(args.normed[i].dtype, kName, "a norm");
    aligned = aligned && groups_aligned(p.width, args.gain[i].data, args.bias[i].data, args.normed[i].data);
  }
  with_row_layout<128, 1024>(p.width, aligned, [&](auto layout) {
    using L = decltype(layout);
    forward_kernel<L><<<blocks_for(p.rows, L::kRows), L::kThreads, 0, handle(stream)>>>(p);
  });
  check(cudaGetLastError());
}

const Register forward{residual_norm_forward, Backend::Cuda, launch_forward};

}  // namespace
}  // namespace graft::cuda::residual_norm
