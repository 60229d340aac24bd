#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/row_layout.cuh"
#include "ops/residual_norm.h"

// Gradients of the norms have one dtype, which the backward kernel is instantiated for. Terms and their gradients may
// be of either, each its own. Rows are fetched as raw words and converted when they are used: all loads of a row are
// under way before the first is waited for.

namespace graft::cuda {
namespace {

static_assert(kResidualNormMaxWidth <= kWidestRow);

constexpr int kTerms = kResidualNormMaxTerms;
constexpr int kNorms = kResidualNormMaxNorms;

__device__ __forceinline__ void unpack_floats(const uint4& word, float (&to)[kGroup]) {
  to[0] = __uint_as_float(word.x);
  to[1] = __uint_as_float(word.y);
  to[2] = __uint_as_float(word.z);
  to[3] = __uint_as_float(word.w);
}
__device__ __forceinline__ void unpack_halves(const uint2& word, float (&to)[kGroup]) {
  to[0] = __uint_as_float(word.x << 16U);
  to[1] = __uint_as_float(word.x & 0xffff0000U);
  to[2] = __uint_as_float(word.y << 16U);
  to[3] = __uint_as_float(word.y & 0xffff0000U);
}

/// Four columns of a row of T as they lie in memory; floats where rows are read element by element.
template <class T, bool kAligned>
struct RawGroup {
  static constexpr bool kHalves = kAligned && std::is_same_v<T, bf16>;
  std::conditional_t<kHalves, uint2, uint4> word;

  __device__ __forceinline__ void fetch(const T* row, int column, int width) {
    word = {};
    if constexpr (kAligned) {
      if (column < width) word = *reinterpret_cast<const decltype(word)*>(row + column);
    } else {
      float values[kGroup];
      load_group<false>(row, column, width, values);
      word = {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
              __float_as_uint(values[3])};
    }
  }
  __device__ __forceinline__ void unpack(float (&to)[kGroup]) const {
    if constexpr (kHalves) {
      unpack_halves(word, to);
    } else {
      unpack_floats(word, to);
    }
  }
};

template <class T, class L>
using RawRow = RawGroup<T, L::kAligned>[L::kVectors];

template <class T, class L>
__device__ __forceinline__ void fetch_row(const T* row, int width, RawRow<T, L>& to) {
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) to[v].fetch(row, L::column(v), width);
}

/// A tensor that is read, and whether it is bfloat16 (float32 otherwise).
struct Source {
  const void* data;
  bool is_bf16;
};

/// A row of a Source.
template <class L>
struct RawAnyRow {
  RawGroup<float, L::kAligned> groups[L::kVectors];  // an aligned group of bfloat16 in x and y

  __device__ __forceinline__ void fetch(const Source& from, std::int64_t start, int width) {
    if (from.is_bf16) {
      RawRow<bf16, L> halves;
      fetch_row<bf16, L>(static_cast<const bf16*>(from.data) + start, width, halves);
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        groups[v].word.x = halves[v].word.x;
        groups[v].word.y = halves[v].word.y;
        if constexpr (!L::kAligned) {
          groups[v].word.z = halves[v].word.z;
          groups[v].word.w = halves[v].word.w;
        }
      }
    } else {
      fetch_row<float, L>(static_cast<const float*>(from.data) + start, width, groups);
    }
  }
  /// to += scale * row.
  __device__ __forceinline__ void add(const Source& from, float scale, float (&to)[L::kVectors][kGroup]) const {
    if (L::kAligned && from.is_bf16) {
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        float value[kGroup];
        unpack_halves({groups[v].word.x, groups[v].word.y}, value);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) to[v][j] += scale * value[j];
      }
    } else {
#pragma unroll
      for (int v = 0; v < L::kVectors; ++v) {
        float value[kGroup];
        groups[v].unpack(value);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) to[v][j] += scale * value[j];
      }
    }
  }
};

template <class L, class T>
__device__ __forceinline__ void store_row(T* row, int width, const float (&from)[L::kVectors][kGroup]) {
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) store_group<L::kAligned>(row, L::column(v), width, from[v]);
}

[[nodiscard]] __device__ __forceinline__ float tanh_or_zero(const float* beta) {
  return beta == nullptr ? 0.F : tanhf(*beta);
}

struct Weights {
  float constant[kTerms];
  float gate[kTerms];
  const float* beta;  // null: no term has a gate

  [[nodiscard]] __device__ __forceinline__ float of(int k, float tanh_beta) const {
    return constant[k] + gate[k] * tanh_beta;
  }
};

/// Rows of up to kCount terms on their way.
template <class L, int kCount>
struct RawTerms {
  RawAnyRow<L> rows[kCount];

  /// Terms first ... first + kCount - 1, those of them that there are.
  __device__ __forceinline__ void fetch(const Source (&terms)[kTerms], int first, int count, std::int64_t start,
                                        int width) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (first + i < count) rows[i].fetch(terms[first + i], start, width);
    }
  }
  /// to += sum over them of factor(k) * term k.
  template <class Factor>
  __device__ __forceinline__ void add(const Source (&terms)[kTerms], int first, int count,
                                      float (&to)[L::kVectors][kGroup], Factor&& factor) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (first + i < count) rows[i].add(terms[first + i], factor(first + i), to);
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

// ---- backward

/// The gradient of a term.
struct Target {
  void* data;
  float constant, gate;  // of the term's weight
  bool is_bf16;
  bool accumulate;
};

/// Adds weight * d to a row, or stores it.
template <class L, class T>
__device__ __forceinline__ void put_row(T* row, bool accumulate, int width, float weight,
                                        const float (&d)[L::kVectors][kGroup]) {
  if constexpr (!L::kAligned) {
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      float value[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) value[j] = weight * d[v][j];
      store_or_add_group<false>(row, accumulate, L::column(v), width, value);
    }
  } else if (accumulate) {
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      float value[kGroup];
      load_group<L::kAligned>(row, L::column(v), width, value);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) value[j] += weight * d[v][j];
      store_group<L::kAligned>(row, L::column(v), width, value);
    }
  } else {
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      float value[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) value[j] = weight * d[v][j];
      store_group<L::kAligned>(row, L::column(v), width, value);
    }
  }
}

template <class Y>
struct Backward {
  const float* dsum;
  const Y* dy[kNorms];
  const float* x;
  const float* gain[kNorms];
  const float* mean;
  const float* rstd;
  const float* beta;     // null: no term has a gate
  Source gated[kTerms];  // terms that beta's gradient is a sum of, and their gates
  float gates[kTerms];
  Target targets[kTerms];
  float* partial;       // [row blocks, norms, 1 or 2, D], or null
  float* beta_partial;  // [row blocks], or null
  std::int64_t rows;
  std::int64_t rows_a_block;
  int width;
  int norm_count;
  int gated_count;
  int target_count;
  bool centred;
};

/// How a block works with up to kSlots norms that have a gradient. Sums over rows are in registers where these are
/// enough, else in the block's own row of partial sums, every thread adding to its columns.
template <class L, int kSlots>
struct BackwardPlan {
  static constexpr bool kSumsInRegisters = L::kVectors * kSlots <= 12;
  static constexpr bool kFetchAll = L::kVectors * kSlots <= 8;  // of a row's gradients at once
  // few columns a thread: it keeps the gain of its columns, and writes gradients of terms without a loop
  static constexpr bool kSmall = kSlots == 1 && L::kVectors <= 2;
  // a block of one row at a time waits for its reduction: terms for beta and the next row are fetched meanwhile
  static constexpr bool kAhead = L::kLanes == kWideLanes && L::kVectors <= 2;
  static constexpr int kBlocks =
      L::kVectors <= 2 && !(kAhead && L::kVectors * kSlots > 3) ? 2 : 1;  // of a multiprocessor
};

template <class L, int kSlots, class Y>
struct RawInputs {
  using Plan = BackwardPlan<L, kSlots>;
  RawRow<float, L> x;
  RawRow<float, L> dsum;
  RawRow<Y, L> dy[Plan::kFetchAll && kSlots > 1 ? kSlots : 1];
  float mean, rstd;

  __device__ __forceinline__ void fetch(const Backward<Y>& p, std::int64_t row) {
    const std::int64_t start = row * p.width;
    if constexpr (kSlots > 0) {
      mean = p.centred ? p.mean[row] : 0.F;
      rstd = p.rstd[row];
      fetch_row<float, L>(p.x + start, p.width, x);
      if constexpr (Plan::kFetchAll) {
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          if (kSlots == 1 || p.dy[i] != nullptr) fetch_row<Y, L>(p.dy[i] + start, p.width, dy[i]);
        }
      }
    }
    fetch_row<float, L>(p.dsum + start, p.dsum == nullptr ? 0 : p.width, dsum);  // zeros where there is none
  }
};

template <class L, int kSlots, bool kBeta, class Y>
__global__ void __launch_bounds__(L::kThreads, BackwardPlan<L, kSlots>::kBlocks) backward_kernel(const Backward<Y> p) {
  using Plan = BackwardPlan<L, kSlots>;
  constexpr int kV = L::kVectors;
  const std::int64_t first = std::int64_t{blockIdx.x} * p.rows_a_block;
  const std::int64_t last = min(p.rows, first + p.rows_a_block);
  const float inverse_width = 1.F / static_cast<float>(p.width);
  const int sums_a_norm = p.centred ? 2 : 1;
  const float tanh_beta = tanh_or_zero(p.beta);
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
      store_row<L>(partial() + i * p.width, p.width, dgain[0]);
    }
  }

  constexpr bool kKeepGain = Plan::kSmall && kSlots == 1;
  float kept_gain[kKeepGain ? kV : 1][kGroup];
  if constexpr (kKeepGain) L::load(p.gain[0], p.width, kept_gain);
  RawInputs<L, kSlots, Y> raw;
  if (Plan::kAhead && first + L::row() < last) raw.fetch(p, first + L::row());
  for (std::int64_t row = first + L::row(); row < last; row += L::kRows) {
    const std::int64_t start = row * p.width;
    if constexpr (!Plan::kAhead) raw.fetch(p, row);

    float xhat[kV][kGroup], dxhat[kV][kGroup] = {}, d[kV][kGroup];
    float rstd = 0.F;
    float2 along{0.F, 0.F};  // dxhat along the constant vector and along xhat
    if constexpr (kSlots > 0) {
      const float mean = raw.mean;
      rstd = raw.rstd;
#pragma unroll
      for (int v = 0; v < kV; ++v) {
        raw.x[v].unpack(xhat[v]);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) xhat[v][j] = (xhat[v][j] - mean) * rstd;
      }
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        if (kSlots > 1 && p.dy[i] == nullptr) continue;
        auto& rows = raw.dy[Plan::kFetchAll ? i : 0];
        if constexpr (!Plan::kFetchAll) fetch_row<Y, L>(p.dy[i] + start, p.width, rows);
#pragma unroll
        for (int v = 0; v < kV; ++v) {
          const int column = L::column(v);
          float gain[kGroup], dy[kGroup];
          if constexpr (!kKeepGain) load_group<L::kAligned>(p.gain[i], column, p.width, gain);
          rows[v].unpack(dy);
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {  // zero beyond the row
            dxhat[v][j] += dy[j] * (kKeepGain ? kept_gain[kKeepGain ? v : 0][j] : gain[j]);
          }
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
#pragma unroll
    for (int v = 0; v < kV; ++v) raw.dsum[v].unpack(d[v]);
    RawTerms<L, 2> pair;
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
    constexpr bool kUnrolled = Plan::kSmall && !kBeta;  // the others would spill
    const int turns = kUnrolled ? kTerms : p.target_count;
#pragma unroll(kUnrolled ? kTerms : 1)
    for (int k = 0; k < turns; ++k) {
      if (k >= p.target_count) continue;  // not the loop's bound, so that unrolled turns find targets at known places
      const Target& target = p.targets[k];
      const float weight = target.constant + target.gate * tanh_beta;
      if (target.is_bf16) {
        put_row<L>(static_cast<bf16*>(target.data) + start, target.accumulate, p.width, weight, d);
      } else {
        put_row<L>(static_cast<float*>(target.data) + start, target.accumulate, p.width, weight, d);
      }
    }
  }

  if (kSlots > 0 && Plan::kSumsInRegisters && p.partial != nullptr) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (i >= p.norm_count) break;
      float* const to = partial() + i * sums_a_norm * p.width;
      if (i > 0) __syncthreads();  // the rows' sums go through shared memory that the previous ones used
      L::store_sums_of_rows(dgain[kSums > 1 ? i : 0], to, dbias[kSums > 1 ? i : 0], p.centred ? to + p.width : nullptr,
                            p.width);
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
    p.terms[k] = source(args.term[k], kName, "a term");
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

/// The launch of finish_kernel that belongs to `args`, and where the kernel before it leaves its sums.
struct Sums {
  Finish finish{};
  int blocks = 0;  // of finish_kernel; 0: no sum is wanted
  float* partial = nullptr;
  float* beta_partial = nullptr;
};

Sums sums_of(const ResidualNormBackward& args, const char* kernel) {
  const std::int64_t width = args.x.shape.columns();
  const std::int64_t row_blocks = residual_norm_row_blocks(args.x.shape.rows());
  const std::int64_t columns = residual_norm_columns(args.kind, args.norms, width);
  const bool centred = args.kind == NormKind::LayerNorm;
  Sums sums;
  Finish& finish = sums.finish;
  finish.row_blocks = static_cast<int>(row_blocks);
  finish.width = static_cast<int>(width);
  bool wanted = false;
  for (int i = 0; i < args.norms; ++i) {
    wanted = wanted || args.dgain[i] || args.dbias[i];
    const int at = centred ? 2 * i : i;
    finish.sums[at] = parameter_gradient(args.dgain[i], kernel);
    if (centred) finish.sums[at + 1] = parameter_gradient(args.dbias[i], kernel);
  }
  if (wanted) {
    sums.partial = args.partial.as<float>();
    finish.partial = sums.partial;
    finish.columns = static_cast<int>(columns);
    finish.column_blocks = static_cast<int>(blocks_for(columns, kWarp));
  }
  if (args.dbeta) {
    sums.beta_partial = args.partial.as<float>() + row_blocks * columns;
    finish.beta_partial = sums.beta_partial;
    finish.beta = args.beta.as<float>();
    finish.dbeta = parameter_gradient(args.dbeta, kernel);
  }
  sums.blocks = finish.column_blocks + (args.dbeta ? 1 : 0);
  return sums;
}

/// The first kernel for gradients of norms in Y.
template <class Y>
void launch_rows(Stream& stream, const ResidualNormBackward& args, const Sums& sums, bool has_normed,
                 const char* kernel) {
  Backward<Y> p{};
  p.rows = args.x.shape.rows();
  const std::int64_t blocks = residual_norm_row_blocks(p.rows);
  p.rows_a_block = ceil_div(p.rows, blocks);
  p.width = static_cast<int>(args.x.shape.columns());
  p.norm_count = args.norms;
  p.centred = args.kind == NormKind::LayerNorm;
  p.dsum = args.dsum.as<float>();
  p.x = args.x.as<float>();
  p.mean = args.mean.as<float>();
  p.rstd = args.rstd.as<float>();
  p.beta = args.beta.as<float>();
  p.partial = sums.partial;
  p.beta_partial = sums.beta_partial;
  bool aligned = groups_aligned(p.width, args.dsum.data, args.x.data, args.partial.data);
  for (int i = 0; i < args.norms; ++i) {
    p.dy[i] = args.dy[i].as<Y>();
    p.gain[i] = args.gain[i].as<float>();
    aligned = aligned && groups_aligned(p.width, args.dy[i].data, args.gain[i].data);
  }
  for (int k = 0; k < args.terms; ++k) {
    const auto gate = static_cast<float>(args.weight[k].gate);
    if (const GradTarget& target = args.dterm[k]) {
      p.targets[p.target_count++] = {target.view.data, static_cast<float>(args.weight[k].constant), gate,
                                     is_bf16(target.view.dtype, kernel, "a term's gradient"), target.accumulate};
      aligned = aligned && is_aligned16(target.view.data);
    }
    if (args.dbeta && args.term[k]) {
      p.gates[p.gated_count] = gate;
      p.gated[p.gated_count++] = source(args.term[k], kernel, "a term");
      aligned = aligned && is_aligned16(args.term[k].data);
    }
  }

  const auto run = [&](auto layout, auto slots, auto beta) {
    using L = decltype(layout);
    backward_kernel<L, decltype(slots)::value, decltype(beta)::value, Y>
        <<<static_cast<unsigned>(blocks), L::kThreads, 0, handle(stream)>>>(p);
  };
  using One = std::integral_constant<int, 1>;
  using All = std::integral_constant<int, kNorms>;
  constexpr std::bool_constant<true> kBeta;
  constexpr std::bool_constant<false> kNoBeta;
  // threads where a warp has a row: what two blocks a multiprocessor have registers for
  if (!has_normed) {
    if constexpr (std::is_same_v<Y, float>) {  // the type of the gradients that there are not
      using None = std::integral_constant<int, 0>;
      with_row_layout<256, 512>(p.width, aligned, [&](auto layout) {
        if (args.dbeta) return run(layout, None{}, kBeta);
        run(layout, None{}, kNoBeta);
      });
    }
  } else if (args.dbeta) {
    with_row_layout<256, 512>(p.width, aligned, [&](auto layout) { run(layout, All{}, kBeta); });
  } else if (args.norms > 1) {
    with_row_layout<256, 512>(p.width, aligned, [&](auto layout) { run(layout, All{}, kNoBeta); });
  } else {
    with_row_layout<384, 512>(p.width, aligned, [&](auto layout) { run(layout, One{}, kNoBeta); });
  }
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const ResidualNormBackward& args) {
  constexpr const char* kName = "residual_norm_backward";
  DType dtype = DType::F32;  // of the gradients of the norms
  bool has_normed = false;
  for (const ConstView& dy : args.dy) {
    if (!dy) continue;
    if (has_normed && dy.dtype != dtype) {
      throw DeviceError(std::string(kName) + ": gradients of norms are " + name_of(dtype) + " and " +
                        name_of(dy.dtype) + ", expected one dtype");
    }
    dtype = dy.dtype;
    has_normed = true;
  }
  if (args.x.dtype != DType::F32) {
    throw DeviceError(std::string(kName) + ": x is " + name_of(args.x.dtype) + ", expected float32");
  }
  const Sums sums = sums_of(args, kName);
  with_type(dtype, kName,
            [&](auto type) { launch_rows<typename decltype(type)::type>(stream, args, sums, has_normed, kName); });
  if (sums.blocks == 0) return;
  finish_kernel<<<static_cast<unsigned>(sums.blocks), dim3(kWarp, kWarp), 0, handle(stream)>>>(sums.finish);
  check(cudaGetLastError());
}

const Register forward{residual_norm_forward, Backend::Cuda, launch_forward};
const Register backward{residual_norm_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
