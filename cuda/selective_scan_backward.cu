#include <cstdint>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/selective_scan.cuh"

// A block has one sequence and kBlock channels and walks the tiles of kTile steps from the last to the first. A thread
// has kChannels channels and kStates states of each: kLanes neighbouring threads have all states of a channel. In a
// tile, a first pass runs from the checkpoint to the last span of kSpan steps and leaves the state before each span in
// shared memory. Then the spans are taken from the last to the first: the span's states and decays are computed into
// registers, and the span is walked back. So an exponential is evaluated 7/4 times, and no barrier is needed but two a
// tile, around what the threads of a channel share.
//
// Sums over states (for du, ddelta, dz) are formed in registers, then by reduce_scatter over the lanes of the channels,
// which leaves each thread with channels and steps of its own; sums over channels (for dB, dC) in registers, by
// reduce_scatter over the warp, and over warps and blocks in a fixed order.

namespace graft::cuda::scan {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int kSpan = 4;  // steps whose states and decays are in registers
constexpr int kSpans = kTile / kSpan;

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

constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

/// What a step has once a channel, in shared memory: dt, dt u, dy silu(z), dy silu'(z), d dt / d delta, u. When the
/// step has been walked back, kInput, kStepSlope and kGateSlope hold its du, ddelta and dz.
enum Field : int { kStep, kInput, kGradient, kGateSlope, kStepSlope, kRawInput, kFields };

template <int kLanes_, int kStates_, int kChannels_>
struct Layout {
  static constexpr int kLanes = kLanes_;        // threads a channel
  static constexpr int kStates = kStates_;      // states a thread
  static constexpr int kChannels = kChannels_;  // channels a thread
  static constexpr int kPadded = kLanes * kStates;
  static constexpr int kGroups = kWarp / kLanes;  // of kChannels channels in a warp
  static constexpr int kBlock = kWarps * kGroups * kChannels;
  static constexpr int kPairs = kChannels * kStates;
  static_assert(kLanes >= kChannels && kThreads % kBlock == 0 && kTile % kSpan == 0);
  static constexpr int kMinimumBlocks = kPairs <= 8 ? 3 : 2;  // that a multiprocessor shall hold

  // sums over states: kSharers lanes get the same channel and deal out the steps of a span
  static constexpr int kSharers = kLanes / kChannels;
  static constexpr int kOwnSteps = kSharers < kSpan ? kSpan / kSharers : 1;  // steps a lane ends up with
  static constexpr int kCopies = kSharers > kSpan ? kSharers / kSpan : 1;    // lanes that end up with the same step

  // sums over channels: the first kStateLevels halvings of a warp's groups also halve a thread's states. The registers
  // of a group hold its states in an order of its own, state s ^ flip in register s, so that what a group keeps lies in
  // the same registers everywhere; B and C are there in each order.
  static constexpr int kStateLevels = log2_of(kGroups < kStates ? kGroups : kStates);
  static constexpr int kFlips = 1 << kStateLevels;
  static constexpr int kLeft = kStates / kFlips;    // states of dB and dC a group ends up with
  static constexpr bool kSplit = kGroups > kFlips;  // a group ends up with one of dB and dC
  static_assert(!kSplit || kLeft == 1);

  // steps whose dB and dC are kept for each warp, until the warps are added up: what the 99 KiB that every GPU from 8.0
  // on has leave room for
  static constexpr int kPartSteps = kPadded <= 64 ? kTile : kSpan;

  // shared memory, in floats
  static constexpr int kFieldSize = kTile * kFields * kBlock;
  static constexpr int kColumnSize = kTile * kFlips * 2 * kPadded;
  static constexpr int kPartSize = kWarps * kPartSteps * 2 * kPadded;
  static constexpr int kStartSize = kSpans * kThreads * kPairs;
  static constexpr std::size_t kSharedBytes = sizeof(float) * (kFieldSize + kColumnSize + kPartSize + kStartSize);
  static_assert(kSharedBytes <= 99 * 1024 && kFieldSize >= 2 * kThreads);
};

template <class T>
__device__ __forceinline__ void store_or_add(T* to, bool accumulate, float value) {
  *to = from_float<T>(accumulate ? to_float(*to) + value : value);
}

/// threadIdx.x, read anew: what is computed from it once a tile does not live in registers while the spans need them.
__device__ __forceinline__ int fresh_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// Asks for the line at `at`. Only a hint: nothing depends on it.
__device__ __forceinline__ void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

/// Asks for what the tile from step `start` on, a whole one, reads of the block's channels from `first` on.
template <class T, class L>
__device__ __forceinline__ void prefetch_tile(const Backward<T>& p, std::int64_t sequence, int start, int first) {
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  constexpr int kLines = (L::kBlock + kLine - 1) / kLine;
  const Source<T>& in = p.in;
  const int thread = fresh_thread();
#pragma unroll
  for (int i = 0; i < (kTile * 4 * kLines + kThreads - 1) / kThreads; ++i) {
    const int line = i * kThreads + thread;
    const int channel = first + line % kLines * kLine;
    const int tensor = line / kLines % 4;
    const std::int64_t row = sequence * in.tokens + start + line / (4 * kLines);
    if (channel >= in.width || line >= kTile * 4 * kLines) continue;
    const T* const base = tensor == 0 ? in.u : (tensor == 1 ? in.delta : (tensor == 2 ? p.dy : in.z));
    if (base != nullptr) prefetch(base + row * (tensor == 3 ? in.z_row : in.width) + channel);
  }
  const int checkpoint = start / kTile - 1;
  const int count = min(L::kBlock, in.width - first) * in.state;
  const int at = thread * 32;
  if (checkpoint >= 0 && at < count) {
    const std::int64_t row = sequence * ((in.tokens - 1) / kTile) + checkpoint;
    prefetch(p.checkpoints + (row * in.width + first) * in.state + at);
  }
}

/// Four consecutive elements, of which `count` are there; kVectors: all or none, and they can be moved at once.
template <class T, bool kVectors>
struct Four {
  using Word = typename detail::Access<T, 4>::Word;
  Word word;

  __device__ __forceinline__ void load(const T* from, int count) {
    word = Word{};
    if constexpr (kVectors) {
      if (count > 0) word = *reinterpret_cast<const Word*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) reinterpret_cast<T*>(&word)[i] = i < count ? from[i] : from_float<T>(0.F);
    }
  }
  [[nodiscard]] __device__ __forceinline__ float operator[](int i) const {
    return to_float(reinterpret_cast<const T*>(&word)[i]);
  }
};

template <bool kVectors, class T>
__device__ __forceinline__ void store_or_add(T* to, bool accumulate, float (&values)[4], int count) {
  if (accumulate) {
    Four<T, kVectors> old;
    old.load(to, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] += old[i];
  }
  if constexpr (kVectors) {
    if (count > 0) store(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) to[i] = from_float<T>(values[i]);
    }
  }
}

/// The part of a thread in what is done once a channel and step: four channels of every kStride-th step of a tile.
template <class L>
struct Share {
  static constexpr int kQuads = L::kBlock / 4;
  static constexpr int kStride = kThreads / kQuads < kTile ? kThreads / kQuads : kTile;
  static constexpr int kSteps = kTile / kStride;
  int channel, step;  // the first ones, in the block and in the tile
  __device__ __forceinline__ Share() : channel(fresh_thread() % kQuads * 4), step(fresh_thread() / kQuads) {}
  /// Channels that there are at step i of the share.
  template <class T>
  [[nodiscard]] __device__ __forceinline__ int count(const Source<T>& in, int start, int first, int i) const {
    const int at = step + i * kStride;
    return at < kTile && start + at < in.tokens ? in.width - first - channel : 0;
  }
};

/// What a thread reads of a tile from device memory: asked for by load() while the tile before is being finished, put
/// into shared memory by store().
template <class T, class L, bool kVectors>
struct Staging {
  static constexpr int kSteps = Share<L>::kSteps;
  Four<T, kVectors> u[kSteps], delta[kSteps], dy[kSteps], z[kSteps];
  ColumnTile<T, L::kPadded> columns;

  /// Zeros where there is no channel or no step: no gradient comes from there, and none goes.
  __device__ __forceinline__ void load(const Backward<T>& p, std::int64_t sequence, int start, int first) {
    const Source<T>& in = p.in;
    const Share<L> share;
    const std::int64_t row = sequence * in.tokens + start + share.step;
    const std::int64_t at = row * in.width + first + share.channel;
    const std::int64_t z_at = row * in.z_row + first + share.channel;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int count = share.count(in, start, first, i);
      const std::int64_t here = at + i * (Share<L>::kStride * in.width);
      u[i].load(in.u + here, count);
      delta[i].load(in.delta + here, count);
      dy[i].load(p.dy + here, count);
      z[i].load(in.z + z_at + i * (Share<L>::kStride * in.z_row), in.z != nullptr ? count : 0);
    }
    columns.load(in, sequence, start, fresh_thread());
  }

  /// to_fields [kTile, kFields, kBlock], to_columns [kTile, 2, kFlips, kPadded].
  __device__ __forceinline__ void store(const Source<T>& in, const float (&bias)[4], float* to_fields,
                                        float* to_columns) const {
    const Share<L> share;
    if (share.step < kTile) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        float* const to = to_fields + (share.step + i * Share<L>::kStride) * kFields * L::kBlock + share.channel;
        float dt[4], slope[4], raw[4], input[4], gradient[4], gate_slope[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          dt[c] = delta[i][c] + bias[c];
          slope[c] = 1.F;
          gradient[c] = dy[i][c];
          gate_slope[c] = 0.F;
        }
        if (in.softplus) {
#pragma unroll
          for (int c = 0; c < 4; ++c) dt[c] = softplus(dt[c], slope[c]);
        }
        if (in.z != nullptr) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const float gate = sigmoid(z[i][c]);
            gate_slope[c] = gradient[c] * gate * (1.F + z[i][c] * (1.F - gate));
            gradient[c] *= z[i][c] * gate;
          }
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          raw[c] = u[i][c];
          input[c] = dt[c] * raw[c];
        }
        cuda::store(to + kStep * L::kBlock, dt);
        cuda::store(to + kInput * L::kBlock, input);
        cuda::store(to + kGradient * L::kBlock, gradient);
        cuda::store(to + kGateSlope * L::kBlock, gate_slope);
        cuda::store(to + kStepSlope * L::kBlock, slope);
        cuda::store(to + kRawInput * L::kBlock, raw);
      }
    }
    const int thread = fresh_thread();
#pragma unroll
    for (int i = 0; i < columns.kCount; ++i) {
      const int element = i * kThreads + thread;
      const float value = to_float(columns.values[i]);
#pragma unroll
      for (int f = 0; f < L::kFlips; ++f) {
        to_columns[(element / L::kPadded * L::kFlips + f) * L::kPadded + (element % L::kPadded ^ f * L::kLeft)] = value;
      }
    }
  }
};

/// Writes du, ddelta and dz of a tile. A thread reads the fields that it staged, and no others.
template <class T, class L, bool kVectors>
__device__ __forceinline__ void write_gradients(const Backward<T>& p, std::int64_t row0, int start, int first,
                                                const float* fields) {
  const Source<T>& in = p.in;
  const Share<L> share;
  const std::int64_t row = row0 + start + share.step;
  const std::int64_t at = row * in.width + first + share.channel;
  const std::int64_t z_at = row * in.z_row + first + share.channel;
#pragma unroll
  for (int i = 0; i < Share<L>::kSteps; ++i) {
    const int count = share.count(in, start, first, i);
    if (count <= 0) continue;
    const float* const from = fields + (share.step + i * Share<L>::kStride) * kFields * L::kBlock + share.channel;
    const std::int64_t here = at + i * (Share<L>::kStride * in.width);
    float values[4];
    if (p.du != nullptr) {
      load(from + kInput * L::kBlock, values);
      store_or_add<kVectors>(p.du + here, p.add_du, values, count);
    }
    if (p.ddelta != nullptr) {
      load(from + kStepSlope * L::kBlock, values);
      store_or_add<kVectors>(p.ddelta + here, p.add_ddelta, values, count);
    }
    if (p.dz != nullptr) {
      load(from + kGateSlope * L::kBlock, values);
      store_or_add<kVectors>(p.dz + z_at + i * (Share<L>::kStride * in.z_row), p.add_dz, values, count);
    }
  }
}

/// Adds up dB and dC of kSteps steps from step t on over the warps, parts[kWarps, kSteps, 2, kPadded].
template <class T, class L, int kSteps>
__device__ __forceinline__ void write_partial_columns(const Backward<T>& p, std::int64_t row0, int t, int block,
                                                      const float* parts) {
  constexpr int kPadded = L::kPadded;
  constexpr int kSize = kSteps * 2 * kPadded;
  const Source<T>& in = p.in;
  float* const to = p.partial_bc + ((row0 + t) * in.channel_blocks + block) * 2 * in.state;
  const int row = in.channel_blocks * 2 * in.state;
  for (int i = fresh_thread() * 4; i < kSize; i += kThreads * 4) {
    const int step = i / (2 * kPadded);
    const int n = i % kPadded;
    if (t + step >= in.tokens || n >= in.state) continue;
    float sum[4];
    load(parts + i, sum);
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      float more[4];
      load(parts + warp * kSize + i, more);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += more[j];
    }
    float* const at = to + step * static_cast<std::int64_t>(row) + i / kPadded % 2 * in.state + n;
    if (in.state % 4 == 0) {
      store(at, sum);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (n + j < in.state) at[j] = sum[j];
      }
    }
  }
}

template <class T, class L, bool kVectors>
__global__ void __launch_bounds__(kThreads, L::kMinimumBlocks) backward_kernel(const Backward<T> p) {
  constexpr int kLanes = L::kLanes, kStates = L::kStates, kChannels = L::kChannels;
  constexpr int kPadded = L::kPadded, kBlock = L::kBlock;
  extern __shared__ float4 shared_memory[];
  float* const fields = reinterpret_cast<float*>(shared_memory);  // [kTile, kFields, kBlock]
  float* const columns = fields + L::kFieldSize;                  // [kTile, 2, kFlips, kPadded]: B, C
  float* const parts = columns + L::kColumnSize;                  // [kWarps, kPartSteps, 2, kPadded]: dB, dC
  float* const starts = parts + L::kPartSize;                     // [kSpans, kChannels, kThreads, kStates]

  const Source<T>& in = p.in;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes;              // of a channel
  const int warp_lane = thread % kWarp;          // of the warp
  const int group = warp_lane / kLanes;          // of channels in the warp
  const int mine = thread / kLanes * kChannels;  // first channel of this thread, in the block
  const int flip = group / (L::kGroups / L::kFlips) * L::kLeft;
  const std::int64_t sequence = blockIdx.x / static_cast<unsigned>(in.channel_blocks);
  const int block = static_cast<int>(blockIdx.x) % in.channel_blocks;
  const int first = block * kBlock;
  const std::int64_t row0 = sequence * in.tokens;
  const int tiles = (in.tokens - 1) / kTile;  // with a checkpoint

  float rate[kChannels][kStates], dstate[kChannels][kStates], da[kChannels][kStates];
#pragma unroll
  for (int q = 0; q < kChannels; ++q) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      rate[q][s] = decay_rate(in, first + mine + q, lane * kStates + (s ^ flip));
      dstate[q][s] = 0.F;  // gradient of the state before the step, as it comes from later steps
      da[q][s] = 0.F;
    }
  }

  float bias[4];  // of the channels that this thread stages
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int staged = first + Share<L>().channel + c;
    bias[c] = staged < in.width && in.bias != nullptr ? in.bias[staged] : 0.F;
  }

  // the channel and steps whose sums over states end up in this thread
  const int own = mine + lane / L::kSharers;
  const int own_step = lane % L::kSharers / L::kCopies * L::kOwnSteps;
  const int channel = first + own;
  const bool present = channel < in.width;
  const float skip = present && in.skip != nullptr ? in.skip[channel] : 0.F;
  float dskip = 0.F, dbias = 0.F;

  const float* const my_columns = columns + flip / L::kLeft * kPadded + lane * kStates;
  constexpr int kColumnRow = L::kFlips * 2 * kPadded;

  Staging<T, L, kVectors> staging;
  float h[kChannels][kStates];
  const auto load_tile = [&](int tile) {
    // no tile before the first: nothing is read then, but that all is assigned keeps its registers free for the spans
    staging.load(p, sequence, tile >= 0 ? tile * kTile : in.tokens, first);
    if (tile <= 0) {
#pragma unroll
      for (int q = 0; q < kChannels; ++q) {
#pragma unroll
        for (int s = 0; s < kStates; ++s) h[q][s] = 0.F;
      }
      return;
    }
    // the neighbour's where there is no channel or no state: padding only has to stay finite
    const float* const from = p.checkpoints + (sequence * tiles + tile - 1) * in.width * in.state;
    const int at = fresh_thread();
    const int turn = at % kWarp / kLanes / (L::kGroups / L::kFlips) * L::kLeft;
#pragma unroll
    for (int q = 0; q < kChannels; ++q) {
      const int c = min(first + at / kLanes * kChannels + q, in.width - 1) * in.state;
#pragma unroll
      for (int s = 0; s < kStates; ++s) h[q][s] = from[c + min(at % kLanes * kStates + (s ^ turn), in.state - 1)];
    }
  };

  load_tile(tiles);
  for (int tile = tiles; tile >= 0; --tile) {
    const int start = tile * kTile;
    staging.store(in, bias, fields, columns);
    __syncthreads();
    if (tile > 0) prefetch_tile<T, L>(p, sequence, start - kTile, first);

    // the state before each span
    const int spans = min(kSpans, (in.tokens - start + kSpan - 1) / kSpan);
    for (int span = 0;; ++span) {
#pragma unroll
      for (int q = 0; q < kChannels; ++q) {
        store(starts + ((span * kChannels + q) * kThreads + thread) * kStates, h[q]);
      }
      if (span + 1 == spans) break;
#pragma unroll
      for (int k = 0; k < kSpan; ++k) {
        const int step = span * kSpan + k;
        float dt[kChannels], input[kChannels], b[kStates];
        load(fields + (step * kFields + kStep) * kBlock + mine, dt);
        load(fields + (step * kFields + kInput) * kBlock + mine, input);
        load(my_columns + step * kColumnRow, b);
#pragma unroll
        for (int q = 0; q < kChannels; ++q) {
#pragma unroll
          for (int s = 0; s < kStates; ++s) h[q][s] = fast_exp2(dt[q] * rate[q][s]) * h[q][s] + input[q] * b[s];
        }
      }
    }

    for (int span = spans - 1; span >= 0; --span) {
      const int begin = span * kSpan;
      float decay[kSpan][kChannels][kStates], after[kSpan][kChannels][kStates];  // after: the state after a step
#pragma unroll
      for (int q = 0; q < kChannels; ++q) {
        load(starts + ((span * kChannels + q) * kThreads + thread) * kStates, h[q]);
      }
#pragma unroll
      for (int k = 0; k < kSpan; ++k) {
        const int step = begin + k;
        float dt[kChannels], input[kChannels], b[kStates];
        load(fields + (step * kFields + kStep) * kBlock + mine, dt);
        load(fields + (step * kFields + kInput) * kBlock + mine, input);
        load(my_columns + step * kColumnRow, b);
#pragma unroll
        for (int q = 0; q < kChannels; ++q) {
#pragma unroll
          for (int s = 0; s < kStates; ++s) {
            decay[k][q][s] = fast_exp2(dt[q] * rate[q][s]);
            h[q][s] = decay[k][q][s] * h[q][s] + input[q] * b[s];
            after[k][q][s] = h[q][s];
          }
        }
      }

      float columns_left[kSpan][L::kSplit ? 1 : 2 * L::kLeft];  // dB, dC of the warp, stored when no loads wait behind
      float sums[3][kSpan];  // over states, of this thread's channel: g B; rate g e, e what is left of the state; C h
#pragma unroll
      for (int k = kSpan - 1; k >= 0; --k) {
        const int step = begin + k;
        float dt[kChannels], input[kChannels], dy[kChannels], b[kStates], c[kStates];
        const float* const at = fields + step * kFields * kBlock + mine;
        load(at + kStep * kBlock, dt);
        load(at + kInput * kBlock, input);
        load(at + kGradient * kBlock, dy);
        load(my_columns + step * kColumnRow, b);
        load(my_columns + step * kColumnRow + kColumnRow / 2, c);
        float over_states[3][kChannels] = {};
        float over_channels[2][kStates] = {};  // dB; dC
#pragma unroll
        for (int q = 0; q < kChannels; ++q) {
          float before[kStates];
          if (k == 0) {  // from where it is: that many registers fewer
            load(starts + ((span * kChannels + q) * kThreads + thread) * kStates, before);
          } else {
#pragma unroll
            for (int s = 0; s < kStates; ++s) before[s] = after[k > 0 ? k - 1 : 0][q][s];
          }
#pragma unroll
          for (int s = 0; s < kStates; ++s) {
            const float g = dy[q] * c[s] + dstate[q][s];
            dstate[q][s] = decay[k][q][s] * g;
            const float decayed = dstate[q][s] * before[s];  // g e
            over_states[0][q] += g * b[s];
            over_states[1][q] += rate[q][s] * decayed;
            over_states[2][q] += c[s] * after[k][q][s];
            over_channels[0][s] += input[q] * g;
            over_channels[1][s] += dy[q] * after[k][q][s];
            da[q][s] += dt[q] * decayed;
          }
        }

#pragma unroll
        for (int i = 0; i < 3; ++i) {
          reduce_scatter<kChannels, kLanes / 2, L::kSharers>(over_states[i], warp_lane);
          sums[i][k] = over_states[i][0];
        }

        // over the channels of the warp
#pragma unroll
        for (int half = kStates / 2; half >= L::kLeft; half /= 2) {
#pragma unroll
          for (int i = 0; i < 2 * half; ++i) {
            float(&values)[kStates] = over_channels[i / half];
            values[i % half] += shuffle_xor(values[i % half + half], kWarp * half / kStates);
          }
        }
        if constexpr (L::kSplit) {
          float left[2] = {over_channels[0][0], over_channels[1][0]};
          constexpr int kBit = kWarp / 2 / L::kFlips;  // of the lane's number, the next one to halve
          reduce_scatter<2, kBit, kLanes>(left, warp_lane);
          columns_left[k][0] = left[0];
        } else {
#pragma unroll
          for (int i = 0; i < 2 * L::kLeft; ++i) columns_left[k][i] = over_channels[i / L::kLeft][i % L::kLeft];
        }
      }

      float* const to =
          parts + ((thread / kWarp) * L::kPartSteps + begin % L::kPartSteps) * 2 * kPadded + lane * kStates + flip;
      if constexpr (L::kSplit) {
        constexpr int kBit = kWarp / 2 / L::kFlips;
        if (warp_lane % kBit < kLanes) {
#pragma unroll
          for (int k = 0; k < kSpan; ++k) to[(k * 2 + warp_lane / kBit % 2) * kPadded] = columns_left[k][0];
        }
      } else {
#pragma unroll
        for (int k = 0; k < kSpan; ++k) {
#pragma unroll
          for (int i = 0; i < 2 * L::kLeft; ++i) {
            to[(k * 2 + i / L::kLeft) * kPadded + i % L::kLeft] = columns_left[k][i];
          }
        }
      }

#pragma unroll
      for (int i = 0; i < 3; ++i) reduce_scatter<kSpan, L::kSharers / 2, 1>(sums[i], warp_lane);
      __syncwarp();                  // all lanes of a channel have read its fields
      if (lane % L::kCopies == 0) {  // one of the lanes with the same step: it writes where the others would read
#pragma unroll
        for (int j = 0; j < L::kOwnSteps; ++j) {
          float* const field = fields + (begin + own_step + j) * kFields * kBlock + own;
          const float u = field[kRawInput * kBlock], dy = field[kGradient * kBlock];
          const float draw = (u * sums[0][j] + kLn2 * sums[1][j]) * field[kStepSlope * kBlock];
          const float dz = field[kGateSlope * kBlock] * (sums[2][j] + skip * u);
          const float du = skip * dy + field[kStep * kBlock] * sums[0][j];
          dskip += dy * u;
          dbias += draw;
          field[kInput * kBlock] = du;
          field[kStepSlope * kBlock] = draw;
          field[kGateSlope * kBlock] = dz;
        }
      }
      if constexpr (L::kPartSteps == kSpan) {
        __syncthreads();
        write_partial_columns<T, L, kSpan>(p, row0, start + begin, block, parts);
        __syncthreads();
      }
    }
    load_tile(tile - 1);
    __syncthreads();
    write_gradients<T, L, kVectors>(p, row0, start, first, fields);
    if constexpr (L::kPartSteps == kTile) write_partial_columns<T, L, kTile>(p, row0, start, block, parts);
  }

#pragma unroll
  for (int q = 0; q < kChannels; ++q) {
    const int c = first + mine + q;
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      const int n = lane * kStates + (s ^ flip);
      if (c < in.width && n < in.state) {  // d a_log = A dA
        p.partial_a[(sequence * in.width + c) * in.state + n] = kLn2 * rate[q][s] * da[q][s];
      }
    }
  }
  // over the lanes that have steps of the same channel
#pragma unroll
  for (int mask = L::kSharers / 2; mask >= L::kCopies && mask > 0; mask /= 2) {
    dskip += shuffle_xor(dskip, mask);
    dbias += shuffle_xor(dbias, mask);
  }
  if (present && lane % L::kSharers == 0) {
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
  if (p.in.channel_blocks != args.partial_bc.shape[2]) {
    throw DeviceError("selective_scan_backward: partial_bc is " + args.partial_bc.shape.str() + ", expected " +
                      std::to_string(p.in.channel_blocks) + " channel blocks");
  }
  p.dy = args.dy.as<T>();
  p.checkpoints = args.checkpoints.as<float>();
  p.partial_bc = args.partial_bc.as<float>();
  p.partial_a = args.partial_a.as<float>();
  p.partial_channels = args.partial_channels.as<float>();
  p.du = args.du.view.as<T>();
  p.ddelta = args.ddelta.view.as<T>();
  p.dz = args.dz ? args.dz.view.as<T>() + args.in.z_offset : nullptr;
  const auto four = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % (4 * sizeof(T)) == 0; };
  const bool vectors = p.in.width % 4 == 0 && p.in.z_row % 4 == 0 && four(p.in.u) && four(p.in.delta) && four(p.dy) &&
                       four(p.in.z) && four(p.du) && four(p.ddelta) && four(p.dz);
  p.add_du = args.du.accumulate;
  p.add_ddelta = args.ddelta.accumulate;
  p.add_dz = args.dz.accumulate;
  auto* const kernel = vectors ? backward_kernel<T, L, true> : backward_kernel<T, L, false>;
  allow_shared_memory(kernel, L::kSharedBytes);
  const unsigned blocks = blocks_for(args.in.u.shape[0] * p.in.channel_blocks, 1);
  kernel<<<blocks, kThreads, L::kSharedBytes, stream>>>(p);
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
      run_backward<T, Layout<4, 1, 4>>(to, args);
    } else if (state <= 16 && selective_scan_channel_block(sequences, width, state) == 64) {
      run_backward<T, Layout<4, 4, 2>>(to, args);
    } else if (state <= 16) {
      run_backward<T, Layout<4, 4, 4>>(to, args);
    } else if (state <= 32) {
      run_backward<T, Layout<8, 4, 4>>(to, args);
    } else if (state <= 64) {
      run_backward<T, Layout<16, 4, 4>>(to, args);
    } else {
      run_backward<T, Layout<32, 8, 2>>(to, args);
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
