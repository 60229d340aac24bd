#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/partial_sums.cuh"
#include "cuda/ssd.cuh"
#include "engine/error.h"

// The state-space dual: which kernels a call takes, states from chunk to chunk, and the last stage of sums.

namespace graft::cuda::ssd {
namespace {

constexpr int kThreads = 256;
constexpr int kGroupOfChunks = 32;  // whose decays are in shared memory at a time

/// The walk over chunks. Forward: states holds what each chunk adds and gets the state before it. Backward, from the
/// last chunk to the first: it holds what each chunk adds to the gradient of the state before it and gets the
/// gradient of the state after it.
template <class T>
struct Walk {
  Source<T> in;
  float* states;       // [B, chunks, H, P, N]
  const float* start;  // [B, H, P, N]; null: zero
  float* end;          // [B, H, P, N]; null: not wanted
  bool backward;
  bool accumulate;  // end
};

/// A thread has four consecutive elements of a state, kVector = 1: one. The next chunk's are loaded ahead.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) walk_kernel(const Walk<T> p) {
  __shared__ float kept[kGroupOfChunks];
  const Source<T>& in = p.in;
  const int elements = in.head_dim * in.state;
  const int blocks = (elements + kThreads * kVector - 1) / (kThreads * kVector);
  const int element = (static_cast<int>(blockIdx.x) % blocks * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  const int head = static_cast<int>(blockIdx.x) / blocks % in.heads;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / blocks / in.heads;
  const bool inside = element < elements;
  const std::int64_t ends = (sequence * in.heads + head) * elements + element;
  const std::int64_t first = (sequence * in.chunks * in.heads + head) * elements + element;
  const std::int64_t advance = std::int64_t{in.heads} * elements;
  const float rate = in.rate(head);
  const float bias = in.bias == nullptr ? 0.F : in.bias[head];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto chunk_at = [&](int i) { return p.backward ? in.chunks - 1 - i : i; };  // i-th of the walk
  const auto wanted = [&](int i) { return inside && (i + 1 < in.chunks || p.end != nullptr); };

  float state[kVector] = {}, ahead[kVector] = {};
  if (inside && p.start != nullptr) load(p.start + ends, state);
  if (wanted(0)) load(p.states + first + chunk_at(0) * advance, ahead);
  for (int i0 = 0; i0 < in.chunks; i0 += kGroupOfChunks) {
    __syncthreads();
    for (int k = warp; k < kGroupOfChunks && i0 + k < in.chunks; k += kThreads / kWarp) {
      float sum = 0.F;
      for (int step = lane; step < in.valid(chunk_at(i0 + k)); step += kWarp) {
        const std::int64_t token = sequence * in.tokens + std::int64_t{chunk_at(i0 + k)} * kChunk + step;
        const float size = softplus(to_float(in.dt[token * in.dt_row + head]) + bias);
        sum += clamped(size, in.dt_min, in.dt_max);
      }
      sum = warp_sum(sum);
      if (lane == 0) kept[k] = fast_exp2(sum * rate);
    }
    __syncthreads();
    for (int i = i0; i < min(i0 + kGroupOfChunks, in.chunks); ++i) {
      float added[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) added[e] = ahead[e];
      if (i + 1 < in.chunks && wanted(i + 1)) load(p.states + first + chunk_at(i + 1) * advance, ahead);
      if (inside) store(p.states + first + chunk_at(i) * advance, state);
      const float factor = kept[i - i0];
#pragma unroll
      for (int e = 0; e < kVector; ++e) state[e] = factor * state[e] + added[e];
    }
  }
  if (inside && p.end != nullptr) {
    float old[kVector] = {};
    if (p.accumulate) load(p.end + ends, old);
#pragma unroll
    for (int e = 0; e < kVector; ++e) state[e] += old[e];
    store(p.end + ends, state);
  }
}

template <class T>
void walk(cudaStream_t stream, const Walk<T>& p, std::int64_t batch) {
  const std::int64_t elements = std::int64_t{p.in.head_dim} * p.in.state;
  const bool vector = elements % 4 == 0 && is_aligned16(p.states) && is_aligned16(p.start) && is_aligned16(p.end);
  const std::int64_t units = vector ? elements / 4 : elements;
  const std::int64_t blocks = batch * p.in.heads * ((units + kThreads - 1) / kThreads);
  launch(vector ? walk_kernel<T, 4> : walk_kernel<T, 1>, stream, blocks, kThreads, 0, p);
}

// ---- the path: tensor cores where they can, else float32 arithmetic

template <class T>
void sum_states(cudaStream_t stream, const StateSums<T>& p, std::int64_t batch) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (states_bf16(stream, p, batch)) return;
  }
  states_plain(stream, p, batch);
}
template <class T>
void compute_outputs(cudaStream_t stream, const Outputs<T>& p, std::int64_t batch) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (outputs_bf16(stream, p, batch)) return;
  }
  outputs_plain(stream, p, batch);
}
template <class T>
void compute_gradients(cudaStream_t stream, const Gradients<T>& p, std::int64_t batch) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (gradients_bf16(stream, p, batch)) return;
  }
  gradients_plain(stream, p, batch);
}

// ---- the last stage of sums

template <class T>
struct Columns {
  T* to;  // column 0 of row 0; null: not wanted
  std::int64_t row;
  bool accumulate;
};
template <class T>
struct FinishColumns {
  const float* partial;  // [rows, blocks, 2, N]
  std::int64_t rows;
  int groups, blocks_of_group, state;
  Columns<T> db, dc;
};

/// dB and dC: sums over the head blocks of a group, one element a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_columns_kernel(const FinishColumns<T> p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int columns = 2 * p.groups * p.state;
  const std::int64_t row = i / columns;
  if (row >= p.rows) return;
  const int group = static_cast<int>(i % columns) / (2 * p.state);
  const int column = static_cast<int>(i % columns) % (2 * p.state);
  const bool of_b = column < p.state;
  T* const to = of_b ? p.db.to : p.dc.to;
  if (to == nullptr) return;
  const float* const from = p.partial + (row * p.groups + group) * p.blocks_of_group * 2 * p.state + column;
  float sum = 0.F;
#pragma unroll 8
  for (int block = 0; block < p.blocks_of_group; ++block) sum += from[std::int64_t{block} * 2 * p.state];
  store_or_add(to + row * (of_b ? p.db.row : p.dc.row) + std::int64_t{group} * p.state + column % p.state,
               of_b ? p.db.accumulate : p.dc.accumulate, sum);
}

/// Sums over sequences and chunks: da_log (times A) and ddt_bias, or dskip.
struct FinishParameters {
  const float* partial;  // [parts, columns]
  int parts;
  std::int64_t columns;
  const float* a_log;  // null: not of heads
  ParameterGradient of_a, of_bias, of_skip;
};
__global__ void __launch_bounds__(kWarp* kWarp) finish_parameters_kernel(const FinishParameters p) {
  const ColumnTotal sum = column_total(p.partial, p.parts, p.columns);
  if (sum.column < 0) return;
  if (p.a_log == nullptr) {
    p.of_skip.put(sum.column, sum.total);
  } else if (sum.column < p.columns / 2) {
    p.of_a.put(sum.column, -expf(p.a_log[sum.column]) * sum.total);
  } else {
    p.of_bias.put(sum.column - p.columns / 2, sum.total);
  }
}
void finish_parameters(cudaStream_t stream, const FinishParameters& p) {
  finish_parameters_kernel<<<blocks_for(p.columns, kWarp), dim3(kWarp, kWarp), 0, stream>>>(p);
  check(cudaGetLastError());
}

// ---- launchers

template <class T>
void forward(cudaStream_t stream, const SsdForward& args) {
  const std::int64_t batch = args.in.xbc.shape[0];
  Outputs<T> outputs{};
  outputs.in = source_of<T>(args.in);
  outputs.y = args.y.as<T>();
  const bool several = outputs.in.chunks > 1;
  const auto* const initial = args.in.initial.as<float>();
  auto* const final_state = args.final_state.as<float>();
  if (several || final_state != nullptr) {
    StateSums<T> sums{};
    sums.in = outputs.in;
    sums.to = several ? args.states.as<float>() : final_state;
    sums.carried = initial;
    sums.whole = !several;
    sums.unused = several && final_state == nullptr ? outputs.in.chunks - 1 : -1;
    sum_states(stream, sums, batch);
  }
  if (several) walk(stream, Walk<T>{outputs.in, args.states.as<float>(), initial, final_state, false, false}, batch);
  outputs.ends.before = several ? args.states.as<float>() : initial;
  outputs.ends.first = initial != nullptr;
  compute_outputs(stream, outputs, batch);
}

void launch_forward(Stream& stream, const SsdForward& args) {
  with_type(args.in.xbc.dtype, "ssd_forward",
            [&](auto type) { forward<typename decltype(type)::type>(handle(stream), args); });
}

void require_dtype(const GradTarget& target, DType dtype, const char* name) {
  if (target && target.view.dtype != dtype) {
    throw DeviceError(std::string("ssd_backward: ") + name + " is " + name_of(target.view.dtype) + ", expected " +
                      name_of(dtype));
  }
}

template <class T>
Columns<T> columns_of(const GradTarget& target, std::int64_t offset) {
  if (!target) return {nullptr, 0, false};
  return {target.view.as<T>() + offset, target.view.shape[2], target.accumulate};
}

template <class T>
void backward(cudaStream_t stream, const SsdBackward& args) {
  const std::int64_t batch = args.in.xbc.shape[0];
  Gradients<T> p{};
  p.in = source_of<T>(args.in);
  p.dy = args.dy.as<T>();
  p.partial_bc = args.partial_bc.as<float>();
  p.partial_heads = args.partial_heads.as<float>();
  p.partial_skip = args.dskip ? args.partial_skip.as<float>() : nullptr;
  p.dx = columns_of<T>(args.dx, args.in.x_offset).to;
  p.ddt = columns_of<T>(args.ddt, args.in.dt_offset).to;
  p.dz = columns_of<T>(args.dz, args.in.z_offset).to;
  p.add_dx = args.dx.accumulate;
  p.add_ddt = args.ddt.accumulate;
  p.add_dz = args.dz.accumulate;
  p.head_block = static_cast<int>(ssd_head_block(args.in.heads, args.in.groups));

  const bool several = p.in.chunks > 1;
  const auto* const initial = args.in.initial.as<float>();
  const auto* const dfinal = args.dfinal.as<float>();
  auto* const dinitial = args.dinitial.view.as<float>();
  auto* const dstates = args.dstates.as<float>();
  if (several || dinitial != nullptr) {
    StateSums<T> sums{};
    sums.in = p.in;
    sums.dy = p.dy;
    sums.to = several ? dstates : dinitial;
    sums.carried = dfinal;
    sums.backward = true;
    sums.whole = !several;
    sums.accumulate = !several && args.dinitial.accumulate;
    sums.unused = several && dinitial == nullptr ? 0 : -1;
    sum_states(stream, sums, batch);
  }
  if (several) walk(stream, Walk<T>{p.in, dstates, dfinal, dinitial, true, args.dinitial.accumulate}, batch);
  p.ends.before = several ? args.states.as<float>() : initial;
  p.ends.first = initial != nullptr;
  p.ends.after = several ? dstates : dfinal;
  p.ends.last = dfinal != nullptr;
  compute_gradients(stream, p, batch);

  FinishColumns<T> columns{};
  columns.partial = p.partial_bc;
  columns.rows = batch * p.in.tokens;
  columns.groups = static_cast<int>(args.in.groups);
  columns.blocks_of_group = p.in.together / p.head_block;
  columns.state = p.in.state;
  columns.db = columns_of<T>(args.db, args.in.b_offset);
  columns.dc = columns_of<T>(args.dc, args.in.c_offset);
  launch(finish_columns_kernel<T>, stream, blocks_for(columns.rows * 2 * columns.groups * columns.state, kThreads),
         kThreads, 0, columns);

  FinishParameters parameters{};
  parameters.partial = p.partial_heads;
  parameters.parts = static_cast<int>(batch) * p.in.chunks;
  parameters.columns = 2 * args.in.heads;
  parameters.a_log = p.in.a_log;
  parameters.of_a = parameter_gradient(args.da_log, "ssd_backward");
  parameters.of_bias = parameter_gradient(args.ddt_bias, "ssd_backward");
  finish_parameters(stream, parameters);
  if (args.dskip) {
    parameters.partial = p.partial_skip;
    parameters.columns = args.dskip.view.shape.elements();
    parameters.a_log = nullptr;
    parameters.of_skip = parameter_gradient(args.dskip, "ssd_backward");
    finish_parameters(stream, parameters);
  }
}

void launch_backward(Stream& stream, const SsdBackward& args) {
  const DType dtype = args.in.xbc.dtype;
  require_dtype(args.dx, dtype, "dx");
  require_dtype(args.db, dtype, "dB");
  require_dtype(args.dc, dtype, "dC");
  require_dtype(args.ddt, dtype, "ddt");
  require_dtype(args.dz, dtype, "dz");
  require_dtype(args.dinitial, DType::F32, "dinitial_state");
  with_type(dtype, "ssd_backward", [&](auto type) { backward<typename decltype(type)::type>(handle(stream), args); });
}

const Register register_forward{ssd_forward, Backend::Cuda, launch_forward};
const Register register_backward{ssd_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda::ssd
