#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/partial_sums.cuh"
#include "cuda/residual_norm.cuh"

// Gradients of the norms have one dtype, which the backward kernel is instantiated for.

namespace graft::cuda::residual_norm {
namespace {

template <class L>
__device__ __forceinline__ float2 sum_of_pairs(float2 value) {
  if constexpr (L::kLanes == kWarp) {
    return warp_sum(value);
  } else {
    return block_sum<L::kLanes>(value);
  }
}

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
      p.gated[p.gated_count++] = source_of(args.term[k], kernel, "a term");
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

const Register backward{residual_norm_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda::residual_norm
