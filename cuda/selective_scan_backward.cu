#include <cstdint>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/selective_scan.cuh"

// A block has one sequence and kBlock channels and walks the tiles of kTile steps from the last to the first. A thread
// has kChannels channels and kStates states of each: kLanes neighbouring threads have all states of a channel. Within a
// tile, spans of kHistory steps are taken from the last to the first: states are recomputed from the tile's checkpoint
// and those of the span kept in shared memory, then the span is walked back.
//
// Sums over states (for du, ddelta, dz) and over the channels of a warp (for dB, dC) are first formed in registers,
// then by reduce_scatter; the sums over warps and blocks follow in a fixed order.

namespace graft::cuda::scan {
namespace {

constexpr int kWarps = kThreads / kWarp;

template <class T>
struct Backward {
  Source<T> in;
  const T* dy;
  const float* checkpoints;
  float* partial_bc;        // [B, T, channel blocks, 2, N]
  float* partial_a;         // [B, D, N]
  float* partial_channels;  // [B, 2, D]
  T* du;
  T* ddelta;
  T* dz;  // column z_offset of row 0
  bool add_du, add_ddelta, add_dz;
};

template <int kLanes_, int kStates_, int kChannels_, int kHistory_>
struct Layout {
  static constexpr int kLanes = kLanes_;        // threads a channel
  static constexpr int kStates = kStates_;      // states a thread
  static constexpr int kChannels = kChannels_;  // channels a thread
  static constexpr int kHistory = kHistory_;    // steps whose states are kept
  static constexpr int kPadded = kLanes * kStates;
  static constexpr int kGroups = kWarp / kLanes;  // of kChannels channels in a warp
  static constexpr int kBlock = kWarps * kGroups * kChannels;
  static constexpr int kPairs = kChannels * kStates;
  static_assert(kLanes >= kChannels && kThreads % kBlock == 0 && kTile % kHistory == 0);
  static_assert(kBlock == selective_scan_channel_block(kPadded));

  // shared memory, in floats
  static constexpr int kHistorySize = kHistory * kThreads * kPairs;
  static constexpr int kStageSize = kTile * 3 * kBlock;
  static constexpr int kColumnSize = kTile * 2 * kPadded;
  static constexpr int kPartSize = kWarps * kHistory * 2 * kPadded;
  static constexpr std::size_t kSharedBytes = sizeof(float) * (kHistorySize + kStageSize + kColumnSize + kPartSize);
};

template <class T>
__device__ __forceinline__ void store_or_add(T* to, bool accumulate, float value) {
  *to = from_float<T>(accumulate ? to_float(*to) + value : value);
}

template <class T, class L>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const Backward<T> p) {
  constexpr int kLanes = L::kLanes, kStates = L::kStates, kChannels = L::kChannels, kHistory = L::kHistory;
  constexpr int kPadded = L::kPadded, kBlock = L::kBlock;
  extern __shared__ float4 shared_memory[];
  float* const history = reinterpret_cast<float*>(shared_memory);  // [kHistory, kChannels, kThreads, kStates]
  float* const stage = history + L::kHistorySize;                  // [kTile, 3, kBlock]: dt, dt u, dy; then sums
  float* const columns = stage + L::kStageSize;                    // [kTile, 2, kPadded]: B, C
  float* const parts = columns + L::kColumnSize;                   // [kWarps, kHistory, 2, kPadded]: dB, dC

  const Source<T>& in = p.in;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes;              // of a channel
  const int warp_lane = thread % kWarp;          // of the warp
  const int group = warp_lane / kLanes;          // of channels in the warp
  const int mine = thread / kLanes * kChannels;  // first channel of this thread, in the block
  const std::int64_t sequence = blockIdx.x / static_cast<unsigned>(in.channel_blocks);
  const int block = static_cast<int>(blockIdx.x) % in.channel_blocks;
  const std::int64_t row0 = sequence * in.tokens;
  const int tiles = (in.tokens - 1) / kTile;  // with a checkpoint

  float rate[kChannels][kStates], dstate[kChannels][kStates], da[kChannels][kStates];
#pragma unroll
  for (int q = 0; q < kChannels; ++q) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      rate[q][s] = decay_rate(in, block * kBlock + mine + q, lane * kStates + s);
      dstate[q][s] = 0.F;  // gradient of the state before the step, as it comes from later steps
      da[q][s] = 0.F;
    }
  }

  // what is done once a channel and step: thread i has channel i mod kBlock, and every kStride-th step from i / kBlock
  // on
  constexpr int kStride = kThreads / kBlock;
  const int own = thread % kBlock;
  const int channel = block * kBlock + own;
  const bool present = channel < in.width;
  const float skip = present && in.skip != nullptr ? in.skip[channel] : 0.F;
  const float bias = present && in.bias != nullptr ? in.bias[channel] : 0.F;
  float dskip = 0.F, dbias = 0.F;

  for (int tile = tiles; tile >= 0; --tile) {
    const int start = tile * kTile;
    {
      ColumnTile<T, kPadded> tile_columns;
      tile_columns.load(in, sequence, start);
#pragma unroll 4
      for (int step = thread / kBlock; step < kTile; step += kStride) {
        const std::int64_t row = row0 + start + step;
        float dt = 0.F, u = 0.F, dy = 0.F;  // steps after the last change nothing
        if (present && start + step < in.tokens) {
          u = to_float(in.u[row * in.width + channel]);
          dy = to_float(p.dy[row * in.width + channel]);
          dt = step_size(in, to_float(in.delta[row * in.width + channel]) + bias);
          if (in.z != nullptr) {
            const float z = to_float(in.z[row * in.z_row + channel]);
            dy *= z * sigmoid(z);
          }
        }
        float* const to = stage + step * 3 * kBlock + own;
        to[0] = dt;
        to[kBlock] = dt * u;
        to[2 * kBlock] = dy;
      }
      tile_columns.store(columns);
    }
    __syncthreads();

    for (int begin = kTile - kHistory; begin >= 0; begin -= kHistory) {
      if (start + begin >= in.tokens) continue;
      // states again, from the checkpoint to the last step of the span
      float h[kChannels][kStates];
#pragma unroll
      for (int q = 0; q < kChannels; ++q) {
        const int c = block * kBlock + mine + q;
        const float* const from =
            p.checkpoints + ((sequence * tiles + tile - 1) * in.width + c) * in.state + lane * kStates;
#pragma unroll
        for (int s = 0; s < kStates; ++s) {
          h[q][s] = tile > 0 && c < in.width && lane * kStates + s < in.state ? from[s] : 0.F;
        }
      }
      for (int step = 0; step < begin + kHistory; ++step) {
        if (step >= begin) {
#pragma unroll
          for (int q = 0; q < kChannels; ++q) {
            store(history + (((step - begin) * kChannels + q) * kThreads + thread) * kStates, h[q]);
          }
        }
        float dt[kChannels], input[kChannels], b[kStates];
        load(stage + step * 3 * kBlock + mine, dt);
        load(stage + (step * 3 + 1) * kBlock + mine, input);
        load(columns + step * 2 * kPadded + lane * kStates, b);
#pragma unroll
        for (int q = 0; q < kChannels; ++q) {
#pragma unroll
          for (int s = 0; s < kStates; ++s) h[q][s] = fast_exp2(dt[q] * rate[q][s]) * h[q][s] + input[q] * b[s];
        }
      }

      for (int step = begin + kHistory - 1; step >= begin; --step) {
        float dt[kChannels], input[kChannels], dy[kChannels], b[kStates], c[kStates];
        float* const staged = stage + step * 3 * kBlock;
        load(staged + mine, dt);
        load(staged + kBlock + mine, input);
        load(staged + 2 * kBlock + mine, dy);
        load(columns + step * 2 * kPadded + lane * kStates, b);
        load(columns + (step * 2 + 1) * kPadded + lane * kStates, c);
        float over_states[3][kChannels] = {};   // g B; rate g e; C h
        float over_channels[2 * kStates] = {};  // dB; dC
#pragma unroll
        for (int q = 0; q < kChannels; ++q) {
          float before[kStates];
          load(history + (((step - begin) * kChannels + q) * kThreads + thread) * kStates, before);
#pragma unroll
          for (int s = 0; s < kStates; ++s) {
            const float decay = fast_exp2(dt[q] * rate[q][s]);
            const float kept = decay * before[s];  // e: what is left of the state before
            const float state = kept + input[q] * b[s];
            const float g = dy[q] * c[s] + dstate[q][s];
            const float decayed = g * kept;
            over_states[0][q] += g * b[s];
            over_states[1][q] += rate[q][s] * decayed;
            over_states[2][q] += c[s] * state;
            over_channels[s] += input[q] * g;
            over_channels[kStates + s] += dy[q] * state;
            da[q][s] += dt[q] * decayed;
            dstate[q][s] = decay * g;
          }
        }

        // over states: the kLanes / kChannels lanes from lane k * kLanes / kChannels on get channel k
        constexpr int kSharers = kLanes / kChannels;
#pragma unroll
        for (int i = 0; i < 3; ++i) reduce_scatter<kChannels, kLanes / 2, 1>(over_states[i], warp_lane);
        __syncwarp();  // the step's stage has been read by all lanes of its channels
        if (lane % kSharers == 0) {
#pragma unroll
          for (int i = 0; i < 3; ++i) staged[i * kBlock + mine + lane / kSharers] = over_states[i][0];
        }

        // over the channels of the warp
        constexpr int kValues = 2 * kStates;
        reduce_scatter<kValues, kWarp / 2, kLanes>(over_channels, warp_lane);
        constexpr int kLeft = kValues > L::kGroups ? kValues / L::kGroups : 1;    // values a group ends up with
        constexpr int kCopies = kValues > L::kGroups ? 1 : L::kGroups / kValues;  // groups that have the same one
        if (group % kCopies == 0) {
          float* const to = parts + ((thread / kWarp) * kHistory + step - begin) * 2 * kPadded + lane * kStates;
#pragma unroll
          for (int i = 0; i < kLeft; ++i) {
            const int value = group / kCopies * kLeft + i;
            to[value / kStates * kPadded + value % kStates] = over_channels[i];
          }
        }
      }

      __syncthreads();
      for (int i = thread; i < kHistory * 2 * kPadded; i += kThreads) {
        const int t = start + begin + i / (2 * kPadded);
        const int n = i % kPadded;
        if (t >= in.tokens || n >= in.state) continue;
        float sum = parts[i];
#pragma unroll
        for (int warp = 1; warp < kWarps; ++warp) sum += parts[warp * kHistory * 2 * kPadded + i];
        p.partial_bc[(((row0 + t) * in.channel_blocks + block) * 2 + i / kPadded % 2) * in.state + n] = sum;
      }
      __syncthreads();
    }

#pragma unroll 4
    for (int step = thread / kBlock; step < kTile; step += kStride) {
      if (!present || start + step >= in.tokens) continue;
      const std::int64_t at = (row0 + start + step) * in.width + channel;
      const float* const sums = stage + step * 3 * kBlock + own;
      const float u = to_float(in.u[at]);
      const float raw = to_float(in.delta[at]) + bias;
      float dy = to_float(p.dy[at]);
      if (in.z != nullptr) {
        const std::int64_t z_row = (row0 + start + step) * in.z_row + channel;
        const float z = to_float(in.z[z_row]);
        const float gate = sigmoid(z);
        const float y = sums[2 * kBlock] + skip * u;
        if (p.dz != nullptr) store_or_add(p.dz + z_row, p.add_dz, dy * y * gate * (1.F + z * (1.F - gate)));
        dy *= z * gate;
      }
      float draw = u * sums[0] + kLn2 * sums[kBlock];
      if (in.softplus) draw *= sigmoid(raw);
      if (p.ddelta != nullptr) store_or_add(p.ddelta + at, p.add_ddelta, draw);
      if (p.du != nullptr) store_or_add(p.du + at, p.add_du, skip * dy + step_size(in, raw) * sums[0]);
      dskip += dy * u;
      dbias += draw;
    }
    __syncthreads();  // before the next tile is staged
  }

#pragma unroll
  for (int q = 0; q < kChannels; ++q) {
    const int c = block * kBlock + mine + q;
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      const int n = lane * kStates + s;
      if (c < in.width && n < in.state) {  // d a_log = A dA
        p.partial_a[(sequence * in.width + c) * in.state + n] = kLn2 * rate[q][s] * da[q][s];
      }
    }
  }
  stage[thread] = dskip;
  stage[kThreads + thread] = dbias;
  __syncthreads();
  if (thread < kBlock && present) {
#pragma unroll
    for (int i = 1; i < kStride; ++i) {
      dskip += stage[i * kBlock + thread];
      dbias += stage[kThreads + i * kBlock + thread];
    }
    p.partial_channels[sequence * 2 * in.width + channel] = dskip;
    p.partial_channels[(sequence * 2 + 1) * in.width + channel] = dbias;
  }
}

template <class T>
struct Columns {
  T* to;  // column 0 of row 0; null: not wanted
  std::int64_t row;
  bool accumulate;
};

/// dB and dC: sums over the blocks of channels, one element a thread.
template <class T>
__global__ void __launch_bounds__(256) finish_columns_kernel(const float* partial, std::int64_t rows, int blocks,
                                                             int state, Columns<T> db, Columns<T> dc) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t row = i / (2 * state);
  const int column = static_cast<int>(i % (2 * state));
  if (row >= rows) return;
  const bool of_b = column < state;
  T* const to = of_b ? db.to : dc.to;
  if (to == nullptr) return;
  const float* const from = partial + row * blocks * 2 * state + column;
  float sum = 0.F;
#pragma unroll 8
  for (int block = 0; block < blocks; ++block) sum += from[std::int64_t{block} * 2 * state];
  store_or_add(to + row * (of_b ? db.row : dc.row) + column % state, of_b ? db.accumulate : dc.accumulate, sum);
}

struct Sums {
  float* to;  // null: not wanted
  bool accumulate;
};

/// da_log, dskip and dbias: sums over the sequences, one element a thread.
__global__ void __launch_bounds__(256)
    finish_parameters_kernel(const float* partial_a, const float* partial_channels, std::int64_t sequences,
                             std::int64_t width, std::int64_t state, Sums da_log, Sums dskip, Sums dbias) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t pairs = width * state;
  if (i >= pairs + 2 * width) return;
  const bool of_a = i < pairs;
  const bool of_skip = !of_a && i < pairs + width;
  float* const to = of_a ? da_log.to : (of_skip ? dskip.to : dbias.to);
  const bool accumulate = of_a ? da_log.accumulate : (of_skip ? dskip.accumulate : dbias.accumulate);
  if (to == nullptr) return;
  const float* const from = of_a ? partial_a + i : partial_channels + (i - pairs);
  const std::int64_t stride = of_a ? pairs : 2 * width;
  float sum = 0.F;
#pragma unroll 8
  for (std::int64_t k = 0; k < sequences; ++k) sum += from[k * stride];
  store_or_add(to + (of_a ? i : (i - pairs) % width), accumulate, sum);
}

// ---- launchers

template <class T, class L>
void run_backward(cudaStream_t stream, const SelectiveScanBackward& args) {
  Backward<T> p{};
  p.in = source_of<T>(args.in, L::kBlock);
  p.dy = args.dy.as<T>();
  p.checkpoints = args.checkpoints.as<float>();
  p.partial_bc = args.partial_bc.as<float>();
  p.partial_a = args.partial_a.as<float>();
  p.partial_channels = args.partial_channels.as<float>();
  p.du = args.du.view.as<T>();
  p.ddelta = args.ddelta.view.as<T>();
  p.dz = args.dz ? args.dz.view.as<T>() + args.in.z_offset : nullptr;
  p.add_du = args.du.accumulate;
  p.add_ddelta = args.ddelta.accumulate;
  p.add_dz = args.dz.accumulate;
  allow_shared_memory(backward_kernel<T, L>, L::kSharedBytes);
  const unsigned blocks = blocks_for(args.in.u.shape[0] * p.in.channel_blocks, 1);
  backward_kernel<T, L><<<blocks, kThreads, L::kSharedBytes, stream>>>(p);
}

template <class T>
Columns<T> columns_of(const GradTarget& target, std::int64_t offset) {
  if (!target) return {nullptr, 0, false};
  return {target.view.as<T>() + offset, target.view.shape[2], target.accumulate};
}

void require_dtype(const GradTarget& target, DType dtype, const char* name) {
  if (target && target.view.dtype != dtype) {
    throw DeviceError(std::string("selective_scan_backward: ") + name + " is " + name_of(target.view.dtype) +
                      ", expected " + name_of(dtype));
  }
}

void launch_backward(Stream& stream, const SelectiveScanBackward& args) {
  const DType dtype = args.in.u.dtype;
  require_dtype(args.du, dtype, "du");
  require_dtype(args.ddelta, dtype, "ddelta");
  require_dtype(args.db, dtype, "dB");
  require_dtype(args.dc, dtype, "dC");
  require_dtype(args.dz, dtype, "dz");
  require_dtype(args.da_log, DType::F32, "da_log");
  require_dtype(args.dskip, DType::F32, "dskip");
  require_dtype(args.dbias, DType::F32, "ddelta_bias");
  const std::int64_t sequences = args.in.u.shape[0], tokens = args.in.u.shape[1], width = args.in.u.shape[2];
  const std::int64_t state = args.in.a_log.shape[1];
  const cudaStream_t to = handle(stream);
  with_type(dtype, "selective_scan_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    if (state <= 4) {
      run_backward<T, Layout<4, 1, 4, 8>>(to, args);
    } else if (state <= 16) {
      run_backward<T, Layout<4, 4, 4, 8>>(to, args);
    } else if (state <= 32) {
      run_backward<T, Layout<8, 4, 4, 8>>(to, args);
    } else if (state <= 64) {
      run_backward<T, Layout<16, 4, 4, 8>>(to, args);
    } else {
      run_backward<T, Layout<32, 8, 2, 4>>(to, args);  // within the 99 KiB that every GPU from 8.0 on has
    }
    check(cudaGetLastError());
    finish_columns_kernel<T><<<blocks_for(sequences * tokens * 2 * state, 256), 256, 0, to>>>(
        args.partial_bc.as<float>(), sequences * tokens, static_cast<int>(args.partial_bc.shape[2]),
        static_cast<int>(state), columns_of<T>(args.db, args.in.b_offset), columns_of<T>(args.dc, args.in.c_offset));
  });
  check(cudaGetLastError());
  finish_parameters_kernel<<<blocks_for(width * (state + 2), 256), 256, 0, to>>>(
      args.partial_a.as<float>(), args.partial_channels.as<float>(), sequences, width, state,
      Sums{args.da_log.view.as<float>(), args.da_log.accumulate},
      Sums{args.dskip.view.as<float>(), args.dskip.accumulate},
      Sums{args.dbias.view.as<float>(), args.dbias.accumulate});
  check(cudaGetLastError());
}

const Register backward{selective_scan_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda::scan
