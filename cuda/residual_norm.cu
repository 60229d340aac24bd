#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/row_layout.cuh"
#include "ops/residual_norm.h"

// Every tensor but the stream's own float32 may be of either dtype. Rows are therefore fetched as raw words and told
// apart when they are used: all loads of a row are under way before the first is waited for, and the kernels are
// instantiated for layouts alone.

namespace graft::cuda {
namespace {

static_assert(kResidualNormMaxWidth <= kWidestRow);

constexpr int kTerms = kResidualNormMaxTerms;
constexpr int kNorms = kResidualNormMaxNorms;

/// A tensor that is read, and whether it is bfloat16 (float32 otherwise).
struct Source {
  const void* data;
  bool is_bf16;
};

/// Four columns as they lie in memory.
template <bool kAligned>
struct RawGroup {
  uint4 word;  // float32: all of it; bfloat16: x and y

  __device__ __forceinline__ void fetch(const Source& from, std::int64_t start, int column, int width) {
    word = make_uint4(0, 0, 0, 0);
    if constexpr (kAligned) {
      if (column >= width) return;
      if (from.is_bf16) {
        const uint2 half = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(from.data) + start + column);
        word.x = half.x;
        word.y = half.y;
      } else {
        word = *reinterpret_cast<const uint4*>(static_cast<const float*>(from.data) + start + column);
      }
    } else {  // always as floats
      float values[kGroup];
      AnyRows{const_cast<void*>(from.data), from.is_bf16}.load<false>(start, column, width, values);
      word = make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                        __float_as_uint(values[3]));
    }
  }
  __device__ __forceinline__ void unpack(bool is_bf16, float (&to)[kGroup]) const {
    const bool halves = kAligned && is_bf16;
    to[0] = __uint_as_float(halves ? word.x << 16U : word.x);
    to[1] = __uint_as_float(halves ? word.x & 0xffff0000U : word.y);
    to[2] = __uint_as_float(halves ? word.y << 16U : word.z);
    to[3] = __uint_as_float(halves ? word.y & 0xffff0000U : word.w);
  }
};

template <class L>
using RawRow = RawGroup<L::kAligned>[L::kVectors];

template <class L>
__device__ __forceinline__ void fetch_row(const Source& from, std::int64_t start, int width, RawRow<L>& to) {
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) to[v].fetch(from, start, L::column(v), width);
}

struct Weights {
  float constant[kTerms];
  float gate[kTerms];
  const float* beta;  // null: no term has a gate

  [[nodiscard]] __device__ __forceinline__ float tanh_beta() const { return beta == nullptr ? 0.F : tanhf(*beta); }
  [[nodiscard]] __device__ __forceinline__ float of(int k, float tanh_beta) const {
    return constant[k] + gate[k] * tanh_beta;
  }
};

/// Rows of two terms on their way.
template <class L>
struct TermPair {
  RawRow<L> raw[2];

  /// Terms first and first + 1, those of them that there are.
  __device__ __forceinline__ void fetch(const Source (&terms)[kTerms], int first, int count, std::int64_t start,
                                        int width) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (first + i < count) fetch_row<L>(terms[first + i], start, width, raw[i]);
    }
  }
  /// to += sum over the two of factor(k) * term k.
  template <class Factor>
  __device__ __forceinline__ void add(const Source (&terms)[kTerms], int first, int count,
                                      float (&to)[L::kVectors][kGroup], Factor&& factor) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (first + i >= count) break;
      const float scale = factor(first + i);
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        float value[kGroup];
        raw[i][v].unpack(terms[first + i].is_bf16, value);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) to[v][j] += scale * value[j];
      }
    }
  }
};

template <class L>
__device__ __forceinline__ float2 sum_of_pairs(float2 value) {
  if constexpr (L::kLanes == kWarp) {
    return warp_sum(value);
  } else {
    return block_sum<L::kLanes>(value);
  }
}

// ---- forward

struct Forward {
  Source terms[kTerms];
  Weights weights;
  const float* gain[kNorms];
  const float* bias[kNorms];  // null in an RMS norm
  AnyRows normed[kNorms];
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

template <class L>
__global__ void __launch_bounds__(L::kThreads) forward_kernel(const Forward p) {
  const std::int64_t row = std::int64_t{blockIdx.x} * L::kRows + L::row();
  if (row >= p.rows) return;  // whole warps, or nobody where a block has one row
  const std::int64_t start = row * p.width;

  const float tanh_beta = p.weights.tanh_beta();
  float x[L::kVectors][kGroup] = {};  // columns beyond the row stay zero
#pragma unroll
  for (int k = 0; k < kTerms; k += 2) {
    if (k >= p.term_count) break;
    TermPair<L> pair;
    pair.fetch(p.terms, k, p.term_count, start, p.width);
    pair.add(p.terms, k, p.term_count, x, [&](int term) { return p.weights.of(term, tanh_beta); });
  }
  if (p.sum != nullptr) {
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) store_group<L::kAligned>(p.sum + start, L::column(v), p.width, x[v]);
  }

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
      p.normed[i].template store_or_add<L::kAligned>(false, start, column, p.width, y);
    }
  }
}

// ---- backward

struct Target {
  AnyRows to;
  bool accumulate;
};

struct Backward {
  const float* dsum;
  Source dy[kNorms];
  Source x;
  const float* gain[kNorms];
  const float* mean;
  const float* rstd;
  Weights weights;
  Source gated[kTerms];  // terms that beta's gradient is a sum of, and their gates
  float gates[kTerms];
  Target dterm[kTerms];
  float* partial;       // [row blocks, norms, 1 or 2, D], or null
  float* beta_partial;  // [row blocks], or null
  std::int64_t rows;
  std::int64_t rows_a_block;
  int width;
  int norm_count;
  int gated_count;
  bool centred;
};

/// How a block works with up to kSlots norms that have a gradient. Sums over rows are in registers where these are
/// enough, else in the block's own row of partial sums, every thread adding to its columns.
template <class L, int kSlots>
struct BackwardPlan {
  static constexpr bool kSumsInRegisters = L::kVectors * kSlots <= 12;
  static constexpr bool kFetchAll = L::kVectors * kSlots <= 8;  // of a row's gradients at once
  // a block of one row at a time waits for its reduction: terms for beta and the next row are fetched meanwhile
  static constexpr bool kAhead = L::kLanes == kWideLanes && L::kVectors <= 2;
  static constexpr int kBlocks =
      L::kVectors <= 2 && !(kAhead && L::kVectors * kSlots > 3) ? 2 : 1;  // of a multiprocessor
};

template <class L, int kSlots>
struct RawInputs {
  using Plan = BackwardPlan<L, kSlots>;
  RawRow<L> x;
  RawRow<L> dsum;
  RawRow<L> dy[Plan::kFetchAll && kSlots > 1 ? kSlots : 1];
  float mean, rstd;

  __device__ __forceinline__ void fetch(const Backward& p, std::int64_t row) {
    const std::int64_t start = row * p.width;
    if constexpr (kSlots > 0) {
      mean = p.centred ? p.mean[row] : 0.F;
      rstd = p.rstd[row];
      fetch_row<L>(p.x, start, p.width, x);
      if constexpr (Plan::kFetchAll) {
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          if (kSlots == 1 || p.dy[i].data != nullptr) fetch_row<L>(p.dy[i], start, p.width, dy[i]);
        }
      }
    }
    if (p.dsum != nullptr) fetch_row<L>({p.dsum, false}, start, p.width, dsum);
  }
};

template <class L, int kSlots, bool kBeta>
__global__ void __launch_bounds__(L::kThreads, BackwardPlan<L, kSlots>::kBlocks) backward_kernel(const Backward p) {
  using Plan = BackwardPlan<L, kSlots>;
  constexpr int kV = L::kVectors;
  const std::int64_t first = std::int64_t{blockIdx.x} * p.rows_a_block;
  const std::int64_t last = min(p.rows, first + p.rows_a_block);
  const float inverse_width = 1.F / static_cast<float>(p.width);
  const int sums_a_norm = p.centred ? 2 : 1;
  const float tanh_beta = p.weights.tanh_beta();
  // [norms, 1 or 2, D] of this block
  const auto partial = [&] { return p.partial + std::int64_t{blockIdx.x} * p.norm_count * sums_a_norm * p.width; };

  // of this thread's columns, over its rows
  constexpr int kSums = Plan::kSumsInRegisters && kSlots > 1 ? kSlots : 1;
  float dgain[kSums][kV][kGroup] = {};
  float dbias[kSums][kV][kGroup] = {};
  float beta_sum = 0.F;
  if (!Plan::kSumsInRegisters && p.partial != nullptr) {
    static_assert(Plan::kSumsInRegisters || L::kRows == 1);
    for (int i = 0; i < p.norm_count * sums_a_norm; ++i) {
#pragma unroll
      for (int v = 0; v < kV; ++v)
        store_group<L::kAligned>(partial() + i * p.width, L::column(v), p.width, dgain[0][v]);
    }
  }

  RawInputs<L, kSlots> raw;
  if (Plan::kAhead && first + L::row() < last) raw.fetch(p, first + L::row());
  for (std::int64_t row = first + L::row(); row < last; row += L::kRows) {
    const std::int64_t start = row * p.width;
    if constexpr (!Plan::kAhead) raw.fetch(p, row);

    float xhat[kV][kGroup], dxhat[kV][kGroup] = {}, d[kV][kGroup] = {};
    float rstd = 0.F;
    float2 along{0.F, 0.F};  // dxhat along the constant vector and along xhat
    if constexpr (kSlots > 0) {
      const float mean = raw.mean;
      rstd = raw.rstd;
#pragma unroll
      for (int v = 0; v < kV; ++v) {
        raw.x[v].unpack(p.x.is_bf16, xhat[v]);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) xhat[v][j] = (xhat[v][j] - mean) * rstd;
      }
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        if (kSlots > 1 && p.dy[i].data == nullptr) continue;
        auto& rows = raw.dy[Plan::kFetchAll ? i : 0];
        if constexpr (!Plan::kFetchAll) fetch_row<L>(p.dy[i], start, p.width, rows);
#pragma unroll
        for (int v = 0; v < kV; ++v) {
          const int column = L::column(v);
          float gain[kGroup], dy[kGroup];
          load_group<L::kAligned>(p.gain[i], column, p.width, gain);
          rows[v].unpack(p.dy[i].is_bf16, dy);
#pragma unroll
          for (int j = 0; j < kGroup; ++j) dxhat[v][j] += dy[j] * gain[j];  // zero beyond the row
          if constexpr (Plan::kSumsInRegisters) {
#pragma unroll
            for (int j = 0; j < kGroup; ++j) {
              dgain[i][v][j] += dy[j] * xhat[v][j];
              dbias[i][v][j] += dy[j];
            }
          } else if (p.partial != nullptr) {
            float* const to = partial() + i * sums_a_norm * p.width;
            float product[kGroup];
#pragma unroll
            for (int j = 0; j < kGroup; ++j) product[j] = dy[j] * xhat[v][j];
            store_or_add_group<L::kAligned>(to, true, column, p.width, product);
            if (p.centred) store_or_add_group<L::kAligned>(to + p.width, true, column, p.width, dy);
          }
        }
      }
#pragma unroll
      for (int v = 0; v < kV; ++v) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          along.x += dxhat[v][j];
          along.y += dxhat[v][j] * xhat[v][j];
        }
      }
    }
    if (p.dsum != nullptr) {
#pragma unroll
      for (int v = 0; v < kV; ++v) raw.dsum[v].unpack(false, d[v]);
    }
    TermPair<L> pair;
    if constexpr (kBeta && Plan::kAhead) pair.fetch(p.gated, 0, p.gated_count, start, p.width);
    if (Plan::kAhead && row + L::kRows < last) raw.fetch(p, row + L::kRows);

    if constexpr (kSlots > 0) {
      along = sum_of_pairs<L>(along);
      along.x = p.centred ? along.x * inverse_width : 0.F;
      along.y *= inverse_width;
#pragma unroll
      for (int v = 0; v < kV; ++v) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) d[v][j] += rstd * (dxhat[v][j] - along.x - xhat[v][j] * along.y);
      }
    }
    if constexpr (kBeta) {
      float gated[kV][kGroup] = {};  // sum_k gate_k t_k
      const auto gate = [&](int k) { return p.gates[k]; };
      if constexpr (!Plan::kAhead) pair.fetch(p.gated, 0, p.gated_count, start, p.width);
      pair.add(p.gated, 0, p.gated_count, gated, gate);
      if (p.gated_count > 2) {
        pair.fetch(p.gated, 2, p.gated_count, start, p.width);
        pair.add(p.gated, 2, p.gated_count, gated, gate);
      }
#pragma unroll
      for (int v = 0; v < kV; ++v) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          if (L::column(v) + j < p.width) beta_sum += d[v][j] * gated[v][j];
        }
      }
    }
#pragma unroll 1  // the kernels with registers to spare would gain nothing, the others spill
    for (int k = 0; k < kTerms; ++k) {
      if (p.dterm[k].to.data == nullptr) continue;
      const float weight = p.weights.of(k, tanh_beta);
#pragma unroll
      for (int v = 0; v < kV; ++v) {
        float value[kGroup];
#pragma unroll
        for (int j = 0; j < kGroup; ++j) value[j] = weight * d[v][j];
        p.dterm[k].to.template store_or_add<L::kAligned>(p.dterm[k].accumulate, start, L::column(v), p.width, value);
      }
    }
  }

  if (kSlots > 0 && Plan::kSumsInRegisters && p.partial != nullptr) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (i >= p.norm_count) break;
      float* const to = partial() + i * sums_a_norm * p.width;
      __syncthreads();  // the rows' sums go through shared memory that the previous ones used
      L::store_sum_of_rows(dgain[kSums > 1 ? i : 0], to, p.width);
      if (!p.centred) continue;
      __syncthreads();
      L::store_sum_of_rows(dbias[kSums > 1 ? i : 0], to + p.width, p.width);
    }
  }
  if constexpr (kBeta) {
    const float total = block_sum<L::kThreads>(beta_sum);
    if (threadIdx.x == 0) p.beta_partial[blockIdx.x] = total;
  }
}

struct Finish {
  const float* partial;  // [row blocks, sums, D]
  const float* beta_partial;
  const float* beta;
  ParameterGradient sums[2 * kNorms];  // of gains, or of gains and biases in turn
  ParameterGradient dbeta;
  int row_blocks;
  int columns;        // sums * D; 0 if only beta's gradient is wanted
  int column_blocks;  // the block after them is beta's
  int width;
};

__global__ void __launch_bounds__(kWarp* kWarp) finish_kernel(const Finish p) {
  if (static_cast<int>(blockIdx.x) >= p.column_blocks) {
    if (threadIdx.y != 0) return;
    float total = 0.F;
    for (int part = static_cast<int>(threadIdx.x); part < p.row_blocks; part += kWarp) total += p.beta_partial[part];
    total = warp_sum(total);
    const float gate = tanhf(*p.beta);
    if (threadIdx.x == 0) p.dbeta.put(0, (1.F - gate * gate) * total);
    return;
  }
  const auto [column, total] = column_total(p.partial, p.row_blocks, p.columns);
  if (column < 0) return;
  const int which = static_cast<int>(column) / p.width;
#pragma unroll
  for (int i = 0; i < 2 * kNorms; ++i) {
    if (which == i) p.sums[i].put(column - std::int64_t{i} * p.width, total);
  }
}

// ---- launchers

/// Throws DeviceError, naming the kernel, for a tensor of another dtype.
bool is_bf16(DType dtype, const char* kernel, const char* what) {
  if (dtype == DType::F32 || dtype == DType::BF16) return dtype == DType::BF16;
  throw DeviceError(std::string(kernel) + ": " + what + " is " + name_of(dtype) +
                    ", expected float32 or bfloat16 (float64 runs on the CPU only)");
}

Source source(const ConstView& view, const char* kernel, const char* what) {
  if (!view) return {nullptr, false};
  return {view.data, is_bf16(view.dtype, kernel, what)};
}

Weights weights_of(const TermWeight (&weight)[kTerms], const ConstView& beta) {
  Weights result{};
  for (int k = 0; k < kTerms; ++k) {
    result.constant[k] = static_cast<float>(weight[k].constant);
    result.gate[k] = static_cast<float>(weight[k].gate);
  }
  result.beta = beta.as<float>();
  return result;
}

void launch_forward(Stream& stream, const ResidualNormForward& args) {
  constexpr const char* kName = "residual_norm_forward";
  Forward p{};
  p.rows = args.term[0].shape.rows();
  p.width = static_cast<int>(args.term[0].shape.columns());
  p.weights = weights_of(args.weight, args.beta);
  p.sum = args.sum.as<float>();
  p.mean = args.mean.as<float>();
  p.rstd = args.rstd.as<float>();
  p.term_count = args.terms;
  p.norm_count = args.norms;
  p.eps = static_cast<float>(args.eps);
  p.centred = args.kind == NormKind::LayerNorm;
  bool aligned = groups_aligned(p.width, args.sum.data);
  for (int k = 0; k < args.terms; ++k) {
    p.terms[k] = source(args.term[k], kName, "a term");
    aligned = aligned && is_aligned16(args.term[k].data);
  }
  for (int i = 0; i < args.norms; ++i) {
    p.gain[i] = args.gain[i].as<float>();
    p.bias[i] = args.bias[i].as<float>();
    p.normed[i] = {args.normed[i].data, is_bf16(args.normed[i].dtype, kName, "a norm")};
    aligned = aligned && groups_aligned(p.width, args.gain[i].data, args.bias[i].data, args.normed[i].data);
  }
  with_row_layout<128, 1024>(p.width, aligned, [&](auto layout) {
    using L = decltype(layout);
    forward_kernel<L><<<blocks_for(p.rows, L::kRows), L::kThreads, 0, handle(stream)>>>(p);
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const ResidualNormBackward& args) {
  constexpr const char* kName = "residual_norm_backward";
  const std::int64_t blocks = residual_norm_row_blocks(args.x.shape.rows());
  Backward p{};
  p.rows = args.x.shape.rows();
  p.rows_a_block = ceil_div(p.rows, blocks);
  p.width = static_cast<int>(args.x.shape.columns());
  p.norm_count = args.norms;
  p.centred = args.kind == NormKind::LayerNorm;
  p.dsum = args.dsum.as<float>();
  p.x = source(args.x, kName, "x");
  p.mean = args.mean.as<float>();
  p.rstd = args.rstd.as<float>();
  p.weights = weights_of(args.weight, args.beta);
  bool aligned = groups_aligned(p.width, args.dsum.data, args.x.data, args.partial.data);
  Finish finish{};
  bool sums_wanted = false;
  bool has_normed = false;
  for (int i = 0; i < args.norms; ++i) {
    p.dy[i] = source(args.dy[i], kName, "dy");
    p.gain[i] = args.gain[i].as<float>();
    has_normed = has_normed || args.dy[i];
    aligned = aligned && groups_aligned(p.width, args.dy[i].data, args.gain[i].data);
    sums_wanted = sums_wanted || args.dgain[i] || args.dbias[i];
    const int at = p.centred ? 2 * i : i;
    finish.sums[at] = parameter_gradient(args.dgain[i], kName);
    if (p.centred) finish.sums[at + 1] = parameter_gradient(args.dbias[i], kName);
  }
  for (int k = 0; k < args.terms; ++k) {
    if (args.dterm[k]) {
      p.dterm[k] = {{args.dterm[k].view.data, is_bf16(args.dterm[k].view.dtype, kName, "a term's gradient")},
                    args.dterm[k].accumulate};
    }
    aligned = aligned && groups_aligned(p.width, args.dterm[k].view.data, args.term[k].data);
    if (!args.dbeta || !args.term[k]) continue;
    p.gates[p.gated_count] = p.weights.gate[k];
    p.gated[p.gated_count++] = source(args.term[k], kName, "a term");
  }
  finish.row_blocks = static_cast<int>(blocks);
  finish.width = p.width;
  const std::int64_t columns = residual_norm_columns(args.kind, args.norms, p.width);
  if (sums_wanted) {
    p.partial = args.partial.as<float>();
    finish.partial = p.partial;
    finish.columns = static_cast<int>(columns);
    finish.column_blocks = static_cast<int>(blocks_for(columns, kWarp));
  }
  if (args.dbeta) {
    p.beta_partial = args.partial.as<float>() + blocks * columns;
    finish.beta_partial = p.beta_partial;
    finish.beta = args.beta.as<float>();
    finish.dbeta = parameter_gradient(args.dbeta, kName);
  }

  const auto run = [&](auto layout, auto slots, auto beta) {
    using L = decltype(layout);
    backward_kernel<L, decltype(slots)::value, decltype(beta)::value>
        <<<static_cast<unsigned>(blocks), L::kThreads, 0, handle(stream)>>>(p);
  };
  using None = std::integral_constant<int, 0>;
  using One = std::integral_constant<int, 1>;
  using All = std::integral_constant<int, kNorms>;
  constexpr std::bool_constant<true> kBeta;
  constexpr std::bool_constant<false> kNoBeta;
  // threads where a warp has a row: what two blocks a multiprocessor have registers for
  if (!has_normed && args.dbeta) {
    with_row_layout<256, 512>(p.width, aligned, [&](auto layout) { run(layout, None{}, kBeta); });
  } else if (!has_normed) {
    with_row_layout<256, 512>(p.width, aligned, [&](auto layout) { run(layout, None{}, kNoBeta); });
  } else if (args.dbeta) {
    with_row_layout<256, 512>(p.width, aligned, [&](auto layout) { run(layout, All{}, kBeta); });
  } else if (args.norms > 1) {
    with_row_layout<256, 512>(p.width, aligned, [&](auto layout) { run(layout, All{}, kNoBeta); });
  } else {
    with_row_layout<384, 512>(p.width, aligned, [&](auto layout) { run(layout, One{}, kNoBeta); });
  }
  check(cudaGetLastError());
  const int finish_blocks = finish.column_blocks + (args.dbeta ? 1 : 0);
  if (finish_blocks == 0) return;
  finish_kernel<<<static_cast<unsigned>(finish_blocks), dim3(kWarp, kWarp), 0, handle(stream)>>>(finish);
  check(cudaGetLastError());
}

const Register forward{residual_norm_forward, Backend::Cuda, launch_forward};
const Register backward{residual_norm_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
