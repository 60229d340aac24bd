#include <cstdint>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "ops/s4d.h"
#include "ops/s4d_formula.h"
#include "ops/silu_formula.h"

// Threads run over channels, so that a warp reads 32 neighbouring columns of each token. A thread carries kGroup modes
// of its channel in registers through a chunk of the sequence. Where a sequence is several chunks, a first kernel
// leaves every chunk's final state as if it had started from zero; from these a thread finds the state that its own
// chunk starts from. More modes than kGroup are taken group by group over a tile of tokens, states waiting in shared
// memory, or, where groups are independent, by different blocks.

namespace graft::cuda {
namespace {

constexpr int kModeGroup = 8;
constexpr int kThreads = 128;
constexpr int kTile = 8;  // tokens whose loads are in flight together
constexpr int kLanes = 32;

/// What drives the recurrence and which way it runs: u forward, or dv = dy * act(gate) from the last token back.
enum class Drive : std::uint8_t { Input, Gradient };

template <class T>
struct Sequences {
  const T* u;     // null: an impulse at token 0
  const T* dy;    // in backward
  const T* gate;  // null: none
  const float* table;
  const float* skip;  // null: zero
  float* states;      // null with one chunk
  S4dLayout layout;
};

/// One channel of one chunk: tokens [begin, end).
template <class T>
struct Walk {
  __device__ __forceinline__ Walk(const Sequences<T>& s_, std::int64_t part, int channel_) : s(s_), channel(channel_) {
    const int chunks = s.layout.chunks;
    prompt = part / chunks;
    chunk = static_cast<int>(part - prompt * chunks);
    begin = chunk * s.layout.chunk_tokens();
    end = min(begin + s.layout.chunk_tokens(), s.layout.tokens);
    first = s.layout.first(prompt, channel);
    gate_first = s.layout.gate_first(prompt, channel);
  }
  [[nodiscard]] __device__ __forceinline__ std::int64_t at(std::int64_t token) const {
    return first + token * s.layout.token_stride();
  }
  [[nodiscard]] __device__ __forceinline__ std::int64_t gate_at(std::int64_t token) const {
    return gate_first + token * s.layout.gate_row;
  }
  /// Token number `i` on the way: from the front for Input, from the back for Gradient.
  template <Drive kDrive>
  [[nodiscard]] __device__ __forceinline__ std::int64_t token(std::int64_t i) const {
    return kDrive == Drive::Input ? begin + i : end - 1 - i;
  }
  [[nodiscard]] __device__ __forceinline__ float table(int mode, int row) const {
    return s.table[(std::int64_t{mode} * kS4dTableRows + row) * s.layout.channels + channel];
  }
  /// Index of number `k` of `kValues` that a chunk leaves of a mode.
  template <int kValues>
  [[nodiscard]] __device__ __forceinline__ std::int64_t state(int of_chunk, int mode, int k) const {
    const std::int64_t part = prompt * s.layout.chunks + of_chunk;
    return ((part * s.layout.modes + mode) * kValues + k) * s.layout.channels + channel;
  }

  const Sequences<T>& s;
  int channel;
  std::int64_t prompt;
  int chunk;
  std::int64_t begin, end;
  std::int64_t first, gate_first;
};

/// What a thread reads of kTile tokens, as it lies in memory: a conversion would wait for the load, and tiles are asked
/// for one tile ahead. Beyond the end of the chunk all of it is zero. Arrays that nobody asks for take no registers.
template <class T>
struct Tile {
  T u_[kTile], dy_[kTile], gate_[kTile];

  template <Drive kDrive, bool kU, bool kDy, bool kGate>
  __device__ __forceinline__ void load(const Walk<T>& walk, std::int64_t tile) {
    const Sequences<T>& s = walk.s;
    const T zero = from_float<T>(0.F), one = from_float<T>(1.F);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const std::int64_t token = walk.template token<kDrive>(tile + j);
      const bool exists = token >= walk.begin && token < walk.end;
      if constexpr (kU) {
        u_[j] = s.u == nullptr ? (token == 0 ? one : zero) : (exists ? s.u[walk.at(token)] : zero);
      }
      if constexpr (kDy) dy_[j] = exists ? s.dy[walk.at(token)] : zero;
      if constexpr (kGate) gate_[j] = s.gate == nullptr ? one : (exists ? s.gate[walk.gate_at(token)] : zero);
    }
  }
  [[nodiscard]] __device__ __forceinline__ float u(int j) const { return to_float(u_[j]); }
  [[nodiscard]] __device__ __forceinline__ float dy(int j) const { return to_float(dy_[j]); }
  [[nodiscard]] __device__ __forceinline__ float gate(int j, const Walk<T>& walk) const {
    const float gate = to_float(gate_[j]);
    return walk.s.layout.activation == S4dGateActivation::Silu ? silu(gate) : gate;
  }
  [[nodiscard]] __device__ __forceinline__ float gate_slope(int j, const Walk<T>& walk) const {
    return walk.s.layout.activation == S4dGateActivation::Silu ? silu_slope(to_float(gate_[j])) : 1.F;
  }
  /// dy act(gate), the gradient of what the gate multiplies.
  [[nodiscard]] __device__ __forceinline__ float dv(int j, const Walk<T>& walk) const { return dy(j) * gate(j, walk); }
};

/// kModeGroup modes from mode `first_mode` on; those that do not exist have decay and output zero.
struct Decays {
  float re[kModeGroup], im[kModeGroup];

  template <class W>
  __device__ __forceinline__ void load(const W& walk, int first_mode) {
#pragma unroll
    for (int m = 0; m < kModeGroup; ++m) {
      const bool exists = first_mode + m < walk.s.layout.modes;
      re[m] = exists ? walk.table(first_mode + m, kS4dDecayRe) : 0.F;
      im[m] = exists ? walk.table(first_mode + m, kS4dDecayIm) : 0.F;
    }
  }
};

struct States {
  float re[kModeGroup], im[kModeGroup];

  /// x = decay x + input.
  __device__ __forceinline__ void step(const Decays& decay, int m, float input) {
    const float next = fmaf(-decay.im[m], im[m], fmaf(decay.re[m], re[m], input));
    im[m] = fmaf(decay.re[m], im[m], decay.im[m] * re[m]);
    re[m] = next;
  }
  /// The state that the chunks before this one (after it, for Gradient) leave.
  template <Drive kDrive, class W>
  __device__ __forceinline__ void start(const W& walk, int first_mode) {
#pragma unroll
    for (int m = 0; m < kModeGroup; ++m) re[m] = im[m] = 0.F;
    if (walk.s.states == nullptr) return;
    const int others = kDrive == Drive::Input ? walk.chunk : walk.s.layout.chunks - 1 - walk.chunk;
#pragma unroll
    for (int m = 0; m < kModeGroup; ++m) {
      const int mode = first_mode + m;
      if (mode >= walk.s.layout.modes) continue;
      const float chunk_re = walk.table(mode, kS4dChunkDecayRe);
      const float chunk_im = walk.table(mode, kS4dChunkDecayIm);
      for (int i = 0; i < others; ++i) {
        // a shorter last chunk is the first one on the way back, where the state is still zero
        const int other = kDrive == Drive::Input ? i : walk.s.layout.chunks - 1 - i;
        const float next = chunk_re * re[m] - chunk_im * im[m];
        im[m] = chunk_re * im[m] + chunk_im * re[m] + walk.s.states[walk.template state<2>(other, mode, 1)];
        re[m] = next + walk.s.states[walk.template state<2>(other, mode, 0)];
      }
    }
  }
};

/// Where a block of kThreads channels stands: blockIdx.x counts groups of channels, then chunks, then sequences.
struct Place {
  std::int64_t part;
  int channel;
};
template <int kChannels>
[[nodiscard]] __device__ __forceinline__ Place place(const S4dLayout& layout) {
  const auto groups = static_cast<unsigned>((layout.channels + kChannels - 1) / kChannels);
  const unsigned part = blockIdx.x / groups;
  return {part, static_cast<int>((blockIdx.x - part * groups) * kChannels + threadIdx.x)};
}

// ---- the table

__global__ void __launch_bounds__(kThreads) modes_kernel(const float* c, const float* log_dt, const float* log_a_real,
                                                         const float* a_imag, float* table, const S4dLayout layout) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int channels = static_cast<int>(layout.channels);
  if (i >= channels * layout.modes) return;
  const int mode = i / channels;
  const int channel = i - mode * channels;
  const int index = channel * layout.modes + mode;
  const S4dMode values = s4d_mode({{c[2 * index], c[2 * index + 1]}, log_dt[channel], log_a_real[index], a_imag[index]},
                                  layout.chunk_tokens());
  float* const to = table + std::int64_t{mode} * kS4dTableRows * channels + channel;
  to[kS4dDecayRe * channels] = static_cast<float>(values.decay.re);
  to[kS4dDecayIm * channels] = static_cast<float>(values.decay.im);
  to[kS4dOutputRe * channels] = static_cast<float>(values.output.re);
  to[kS4dOutputIm * channels] = static_cast<float>(values.output.im);
  to[kS4dChunkDecayRe * channels] = static_cast<float>(values.chunk_decay.re);
  to[kS4dChunkDecayIm * channels] = static_cast<float>(values.chunk_decay.im);
  to[kS4dChunkSlopeRe * channels] = static_cast<float>(values.chunk_slope.re);
  to[kS4dChunkSlopeIm * channels] = static_cast<float>(values.chunk_slope.im);
}

// ---- the layer, its gradient by u, its gradient by the gate

enum class Result : std::uint8_t { Output, InputGradient, GateGradient };

/// What a chunk leaves when it starts from zero. blockIdx.y is the group of modes.
template <class T, Drive kDrive>
__global__ void __launch_bounds__(kThreads) chunk_states_kernel(const Sequences<T> s) {
  const Place here = place<kThreads>(s.layout);
  if (here.channel >= s.layout.channels) return;
  const Walk<T> walk(s, here.part, here.channel);
  const int first_mode = static_cast<int>(blockIdx.y) * kModeGroup;
  Decays decay;
  decay.load(walk, first_mode);
  States x{};
  constexpr bool kBack = kDrive == Drive::Gradient;
  const std::int64_t tokens = walk.end - walk.begin;
  Tile<T> now;
  now.template load<kDrive, !kBack, kBack, kBack>(walk, 0);
  for (std::int64_t tile = 0; tile < tokens; tile += kTile) {
    Tile<T> next;
    next.template load<kDrive, !kBack, kBack, kBack>(walk, tile + kTile);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      if (tile + j < tokens) {
        float input;
        if constexpr (kBack) {
          input = now.dv(j, walk);
        } else {
          input = now.u(j);
        }
#pragma unroll
        for (int m = 0; m < kModeGroup; ++m) x.step(decay, m, input);
      }
    }
    now = next;
  }
#pragma unroll
  for (int m = 0; m < kModeGroup; ++m) {
    if (first_mode + m >= s.layout.modes) break;
    s.states[walk.template state<2>(walk.chunk, first_mode + m, 0)] = x.re[m];
    s.states[walk.template state<2>(walk.chunk, first_mode + m, 1)] = x.im[m];
  }
}

/// v = 2 Re sum (output x) + skip input along one chunk, and what is made of it. kSingle: no more than kModeGroup
/// modes.
template <class T, Result kResult, bool kSingle>
__global__ void __launch_bounds__(kThreads, 3) map_kernel(const Sequences<T> s, T* out, bool accumulate) {
  extern __shared__ float waiting[];  // states [groups * kModeGroup, 2, kThreads] of modes that are not at work
  constexpr Drive kDrive = kResult == Result::InputGradient ? Drive::Gradient : Drive::Input;
  const Place here = place<kThreads>(s.layout);
  if (here.channel >= s.layout.channels) return;
  const Walk<T> walk(s, here.part, here.channel);
  const int groups = kSingle ? 1 : (s.layout.modes + kModeGroup - 1) / kModeGroup;
  const float skip = s.skip == nullptr ? 0.F : s.skip[here.channel];

  Decays decay;
  States x;
  float output_re[kModeGroup], output_im[kModeGroup];
  const auto load_modes = [&](int first_mode) {
    decay.load(walk, first_mode);
#pragma unroll
    for (int m = 0; m < kModeGroup; ++m) {
      const bool exists = first_mode + m < s.layout.modes;
      output_re[m] = exists ? 2.F * walk.table(first_mode + m, kS4dOutputRe) : 0.F;
      output_im[m] = exists ? -2.F * walk.table(first_mode + m, kS4dOutputIm) : 0.F;
    }
  };
  float* const mine = waiting + threadIdx.x;
  const auto put_away = [&](int first_mode) {
#pragma unroll
    for (int m = 0; m < kModeGroup; ++m) {
      mine[(2 * (first_mode + m)) * kThreads] = x.re[m];
      mine[(2 * (first_mode + m) + 1) * kThreads] = x.im[m];
    }
  };
  if constexpr (kSingle) {
    load_modes(0);
    x.start<kDrive>(walk, 0);
  } else {
    for (int group = 0; group < groups; ++group) {
      x.start<kDrive>(walk, group * kModeGroup);
      put_away(group * kModeGroup);
    }
  }

  constexpr bool kBack = kResult == Result::InputGradient;
  constexpr bool kReadsDy = kResult != Result::Output;
  const std::int64_t tokens = walk.end - walk.begin;
  Tile<T> now;
  now.template load<kDrive, !kBack, kReadsDy, true>(walk, 0);
  for (std::int64_t tile = 0; tile < tokens; tile += kTile) {
    Tile<T> next;
    next.template load<kDrive, !kBack, kReadsDy, true>(walk, tile + kTile);
    float input[kTile], v[kTile];
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      if constexpr (kBack) {
        input[j] = now.dv(j, walk);
      } else {
        input[j] = now.u(j);
      }
      v[j] = skip * input[j];
    }
    for (int group = 0; group < groups; ++group) {
      if constexpr (!kSingle) {
        load_modes(group * kModeGroup);
#pragma unroll
        for (int m = 0; m < kModeGroup; ++m) {
          x.re[m] = mine[(2 * (group * kModeGroup + m)) * kThreads];
          x.im[m] = mine[(2 * (group * kModeGroup + m) + 1) * kThreads];
        }
      }
#pragma unroll
      for (int j = 0; j < kTile; ++j) {  // beyond the end nobody reads the states any more
        float other = 0.F;               // two chains of sums
#pragma unroll
        for (int m = 0; m < kModeGroup; ++m) {
          x.step(decay, m, input[j]);
          v[j] = fmaf(output_re[m], x.re[m], v[j]);
          other = fmaf(output_im[m], x.im[m], other);
        }
        v[j] += other;
      }
      if constexpr (!kSingle) put_away(group * kModeGroup);
    }
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      if (tile + j >= tokens) break;
      const std::int64_t token = walk.template token<kDrive>(tile + j);
      const std::int64_t at = kResult == Result::GateGradient ? walk.gate_at(token) : walk.at(token);
      float value = v[j];
      if constexpr (kResult == Result::Output) value *= now.gate(j, walk);
      if constexpr (kResult == Result::GateGradient) value *= now.dy(j) * now.gate_slope(j, walk);
      out[at] = from_float<T>(kResult != Result::Output && accumulate ? to_float(out[at]) + value : value);
    }
    now = next;
  }
}

// ---- gradients of the parameters

/// States x and their derivatives z by the decay.
struct Sensitive {
  States x, z;

  __device__ __forceinline__ void step(const Decays& decay, int m, float input) {
    const float next = fmaf(-decay.im[m], z.im[m], fmaf(decay.re[m], z.re[m], x.re[m]));
    z.im[m] = fmaf(decay.re[m], z.im[m], fmaf(decay.im[m], z.re[m], x.im[m]));
    z.re[m] = next;
    x.step(decay, m, input);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) chunk_sensitivities_kernel(const Sequences<T> s) {
  const Place here = place<kThreads>(s.layout);
  if (here.channel >= s.layout.channels) return;
  const Walk<T> walk(s, here.part, here.channel);
  const int first_mode = static_cast<int>(blockIdx.y) * kModeGroup;
  Decays decay;
  decay.load(walk, first_mode);
  Sensitive state{};
  const std::int64_t tokens = walk.end - walk.begin;
  Tile<T> now;
  now.template load<Drive::Input, true, false, false>(walk, 0);
  for (std::int64_t tile = 0; tile < tokens; tile += kTile) {
    Tile<T> next;
    next.template load<Drive::Input, true, false, false>(walk, tile + kTile);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      if (tile + j < tokens) {
#pragma unroll
        for (int m = 0; m < kModeGroup; ++m) state.step(decay, m, now.u(j));
      }
    }
    now = next;
  }
#pragma unroll
  for (int m = 0; m < kModeGroup; ++m) {
    const int mode = first_mode + m;
    if (mode >= s.layout.modes) break;
    s.states[walk.template state<4>(walk.chunk, mode, 0)] = state.x.re[m];
    s.states[walk.template state<4>(walk.chunk, mode, 1)] = state.x.im[m];
    s.states[walk.template state<4>(walk.chunk, mode, 2)] = state.z.re[m];
    s.states[walk.template state<4>(walk.chunk, mode, 3)] = state.z.im[m];
  }
}

/// Sums of dv x and dv z over kS4dRowParts chunks, one a warp. blockIdx.y is the group of modes.
template <class T>
__global__ void __launch_bounds__(kLanes* kS4dRowParts) parameter_sums_kernel(const Sequences<T> s, float* partial) {
  __shared__ float parts[kS4dRowParts][4 * kModeGroup + 1][kLanes];
  const Place here = place<kLanes>(s.layout);
  const std::int64_t row = here.part;
  const int warp = static_cast<int>(threadIdx.y);
  const std::int64_t part = row * kS4dRowParts + warp;
  const int first_mode = static_cast<int>(blockIdx.y) * kModeGroup;
  const bool exists = here.channel < s.layout.channels && part < s.layout.batch * s.layout.chunks;

  float x_re[kModeGroup] = {}, x_im[kModeGroup] = {}, z_re[kModeGroup] = {}, z_im[kModeGroup] = {};
  float dskip = 0.F;
  if (exists) {
    const Walk<T> walk(s, part, here.channel);
    Decays decay;
    decay.load(walk, first_mode);
    Sensitive state{};
    if (s.states != nullptr) {
#pragma unroll
      for (int m = 0; m < kModeGroup; ++m) {
        const int mode = first_mode + m;
        if (mode >= s.layout.modes) continue;
        const float decay_re = walk.table(mode, kS4dChunkDecayRe);
        const float decay_im = walk.table(mode, kS4dChunkDecayIm);
        const float slope_re = walk.table(mode, kS4dChunkSlopeRe);
        const float slope_im = walk.table(mode, kS4dChunkSlopeIm);
        float xr = 0.F, xi = 0.F, zr = 0.F, zi = 0.F;
        for (int other = 0; other < walk.chunk; ++other) {
          const float next_zr = decay_re * zr - decay_im * zi + (slope_re * xr - slope_im * xi);
          const float next_zi = decay_re * zi + decay_im * zr + (slope_re * xi + slope_im * xr);
          const float next_xr = decay_re * xr - decay_im * xi;
          const float next_xi = decay_re * xi + decay_im * xr;
          xr = next_xr + s.states[walk.template state<4>(other, mode, 0)];
          xi = next_xi + s.states[walk.template state<4>(other, mode, 1)];
          zr = next_zr + s.states[walk.template state<4>(other, mode, 2)];
          zi = next_zi + s.states[walk.template state<4>(other, mode, 3)];
        }
        state.x.re[m] = xr;
        state.x.im[m] = xi;
        state.z.re[m] = zr;
        state.z.im[m] = zi;
      }
    }
    const std::int64_t tokens = walk.end - walk.begin;
    Tile<T> now;
    now.template load<Drive::Input, true, true, true>(walk, 0);
    for (std::int64_t tile = 0; tile < tokens; tile += kTile) {
      Tile<T> next;
      next.template load<Drive::Input, true, true, true>(walk, tile + kTile);
#pragma unroll
      for (int j = 0; j < kTile; ++j) {  // beyond the end dv is zero
        const float u = now.u(j);
        const float dv = now.dv(j, walk);
        dskip = fmaf(dv, u, dskip);
#pragma unroll
        for (int m = 0; m < kModeGroup; ++m) {
          state.step(decay, m, u);
          x_re[m] = fmaf(dv, state.x.re[m], x_re[m]);
          x_im[m] = fmaf(dv, state.x.im[m], x_im[m]);
          z_re[m] = fmaf(dv, state.z.re[m], z_re[m]);
          z_im[m] = fmaf(dv, state.z.im[m], z_im[m]);
        }
      }
      now = next;
    }
  }
  const int lane = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int m = 0; m < kModeGroup; ++m) {
    parts[warp][4 * m][lane] = x_re[m];
    parts[warp][4 * m + 1][lane] = x_im[m];
    parts[warp][4 * m + 2][lane] = z_re[m];
    parts[warp][4 * m + 3][lane] = z_im[m];
  }
  parts[warp][4 * kModeGroup][lane] = dskip;
  __syncthreads();
  if (here.channel >= s.layout.channels) return;
  const int modes = min(kModeGroup, s.layout.modes - first_mode);
  float* const to = partial + row * s.layout.columns() * s.layout.channels + here.channel;
  for (int value = warp; value <= 4 * kModeGroup; value += static_cast<int>(kS4dRowParts)) {
    float total = 0.F;
#pragma unroll
    for (int i = 0; i < kS4dRowParts; ++i) total += parts[i][value][lane];
    if (value < 4 * modes) {
      to[(4 * first_mode + value) * s.layout.channels] = total;
    } else if (value == 4 * kModeGroup && first_mode == 0) {
      to[4 * s.layout.modes * s.layout.channels] = total;
    }
  }
}

/// Adds up the rows of the partial sums, into the first of them. A block has 32 of the columns * channels.
__global__ void __launch_bounds__(kLanes* kLanes)
    add_rows_kernel(float* partial, std::int64_t rows, std::int64_t width) {
  __shared__ float parts[kLanes][kLanes];
  const int lane = static_cast<int>(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.y);
  const std::int64_t mine = std::int64_t{blockIdx.x} * kLanes + lane;
  float total = 0.F;
  if (mine < width) {
#pragma unroll 4
    for (std::int64_t row = warp; row < rows; row += kLanes) total += partial[row * width + mine];
  }
  parts[warp][lane] = total;
  __syncthreads();
  if (warp != 0 || mine >= width) return;
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += parts[i][lane];
  partial[mine] = static_cast<float>(sum);
}

/// From a channel's sums to the gradients of its parameters: threads over channels and, in threadIdx.y, over modes.
__global__ void __launch_bounds__(kLanes* kModeGroup) parameter_gradients_kernel(const S4dBackward args) {
  __shared__ double parts[kModeGroup][kLanes];
  const S4dLayout& layout = args.layout;
  const std::int64_t channel = std::int64_t{blockIdx.x} * kLanes + threadIdx.x;
  const int warp = static_cast<int>(threadIdx.y);
  const auto sums = [&](int column) {
    return static_cast<double>(args.partial.as<float>()[column * layout.channels + channel]);
  };
  const auto store = [](const GradTarget& target, std::int64_t at, double value) {
    if (!target) return;
    float* const to = target.view.as<float>() + at;
    *to = static_cast<float>(target.accumulate ? *to + value : value);
  };
  double dlog_dt = 0;
  if (channel < layout.channels) {
    for (int mode = warp; mode < layout.modes; mode += kModeGroup) {
      const std::int64_t index = channel * layout.modes + mode;
      const S4dModeGradient d =
          s4d_mode_gradient({{args.c.as<float>()[2 * index], args.c.as<float>()[2 * index + 1]},
                             args.log_dt.as<float>()[channel],
                             args.log_a_real.as<float>()[index],
                             args.a_imag.as<float>()[index]},
                            {sums(4 * mode), sums(4 * mode + 1)}, {sums(4 * mode + 2), sums(4 * mode + 3)});
      store(args.dc, 2 * index, d.c.re);
      store(args.dc, 2 * index + 1, d.c.im);
      store(args.dlog_a_real, index, d.log_a_real);
      store(args.da_imag, index, d.a_imag);
      dlog_dt += d.log_dt;
    }
  }
  parts[warp][threadIdx.x] = dlog_dt;
  __syncthreads();
  if (warp != 0 || channel >= layout.channels) return;
  double total = 0;
#pragma unroll
  for (int i = 0; i < kModeGroup; ++i) total += parts[i][threadIdx.x];
  store(args.dlog_dt, channel, total);
  store(args.dskip, channel, sums(4 * layout.modes));
}

// ---- launchers

void launch_modes(Stream& stream, const S4dModes& args) {
  const S4dLayout& layout = args.layout;
  modes_kernel<<<blocks_for(layout.channels * layout.modes, kThreads), kThreads, 0, handle(stream)>>>(
      args.c.as<float>(), args.log_dt.as<float>(), args.log_a_real.as<float>(), args.a_imag.as<float>(),
      args.table.as<float>(), layout);
  check(cudaGetLastError());
}

/// A grid of `parts` pieces of `channels` channels each, times the groups of modes.
dim3 grid_for(const S4dLayout& layout, std::int64_t parts, int channels, bool mode_groups) {
  const unsigned groups = static_cast<unsigned>((layout.modes + kModeGroup - 1) / kModeGroup);
  return {blocks_for(parts * ceil_div(layout.channels, channels), 1), mode_groups ? groups : 1U, 1U};
}

template <class T, Result kResult>
void launch_map(Stream& stream, const Sequences<T>& s, T* out, bool accumulate) {
  constexpr Drive kDrive = kResult == Result::InputGradient ? Drive::Gradient : Drive::Input;
  const std::int64_t parts = s.layout.batch * s.layout.chunks;
  if (s.states != nullptr) {
    const dim3 grid = grid_for(s.layout, parts, kThreads, true);
    chunk_states_kernel<T, kDrive><<<grid, kThreads, 0, handle(stream)>>>(s);
    check(cudaGetLastError());
  }
  const dim3 grid = grid_for(s.layout, parts, kThreads, false);
  if (s.layout.modes <= kModeGroup) {
    map_kernel<T, kResult, true><<<grid, kThreads, 0, handle(stream)>>>(s, out, accumulate);
  } else {
    const auto groups = static_cast<std::size_t>((s.layout.modes + kModeGroup - 1) / kModeGroup);
    const std::size_t bytes = groups * kModeGroup * 2 * kThreads * sizeof(float);
    allow_shared_memory(map_kernel<T, kResult, false>, bytes);
    map_kernel<T, kResult, false><<<grid, kThreads, bytes, handle(stream)>>>(s, out, accumulate);
  }
  check(cudaGetLastError());
}

void launch_forward(Stream& stream, const S4dForward& args) {
  with_type(args.y.dtype, "s4d_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    const Sequences<T> s{
        args.u.as<T>(),          nullptr,    args.gate.as<T>(), args.table.as<float>(), args.skip.as<float>(),
        args.states.as<float>(), args.layout};
    launch_map<T, Result::Output>(stream, s, args.y.as<T>(), false);
  });
}

void launch_backward(Stream& stream, const S4dBackward& args) {
  const S4dLayout& layout = args.layout;
  with_type(args.dy.dtype, "s4d_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    const Sequences<T> s{
        args.u.as<T>(),          args.dy.as<T>(), args.gate.as<T>(), args.table.as<float>(), args.skip.as<float>(),
        args.states.as<float>(), layout};
    if (args.du) launch_map<T, Result::InputGradient>(stream, s, args.du.view.as<T>(), args.du.accumulate);
    if (args.dgate) launch_map<T, Result::GateGradient>(stream, s, args.dgate.view.as<T>(), args.dgate.accumulate);
    if (!args.partial) return;
    if (s.states != nullptr) {
      const dim3 grid = grid_for(layout, layout.batch * layout.chunks, kThreads, true);
      chunk_sensitivities_kernel<T><<<grid, kThreads, 0, handle(stream)>>>(s);
      check(cudaGetLastError());
    }
    const dim3 grid = grid_for(layout, layout.rows(), kLanes, true);
    const dim3 block(kLanes, static_cast<unsigned>(kS4dRowParts));
    parameter_sums_kernel<T><<<grid, block, 0, handle(stream)>>>(s, args.partial.as<float>());
    check(cudaGetLastError());
  });
  if (!args.partial) return;
  if (layout.rows() > 1) {
    const std::int64_t width = layout.columns() * layout.channels;
    const dim3 block(kLanes, kLanes);
    add_rows_kernel<<<blocks_for(width, kLanes), block, 0, handle(stream)>>>(args.partial.as<float>(), layout.rows(),
                                                                             width);
    check(cudaGetLastError());
  }
  const dim3 block(kLanes, kModeGroup);
  parameter_gradients_kernel<<<blocks_for(layout.channels, kLanes), block, 0, handle(stream)>>>(args);
  check(cudaGetLastError());
}

const Register modes{s4d_modes, Backend::Cuda, launch_modes};
const Register forward{s4d_forward, Backend::Cuda, launch_forward};
const Register backward{s4d_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
