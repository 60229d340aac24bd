#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/causal_conv1d.h"
#include "ops/silu_formula.h"

// A thread has kChannels neighbouring channels and walks over the tokens of a piece of a sequence, with the tokens that
// it still needs in registers. A warp has 32 * kChannels channels of one piece; the warps of a block have different
// pieces of the same channels and share the taps, turned around to [width, channels], in shared memory.

namespace graft::cuda {
namespace {

constexpr int kUnroll = 4;         // tokens whose loads are under way together
constexpr int kForwardWarps = 4;   // of a block
constexpr int kBackwardWarps = 8;  // of a block
constexpr std::int64_t kForwardSteps =
    16;  // tokens of a piece at most; shorter than in backward, which has more to repeat

struct Parameters {
  const void* weight;  // [channels, width]
  const void* bias;    // [channels] or null
  bool weight_is_bf16, bias_is_bf16;

  [[nodiscard]] __device__ __forceinline__ static float read(const void* data, bool is_bf16, std::int64_t i) {
    return is_bf16 ? to_float(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
};

/// Taps and bias of `kSpan` channels from `first` on, to shared memory: row j is tap j, the last row the bias.
template <int kWidth, int kSpan>
__device__ __forceinline__ void stage_taps(const Parameters& p, int first, int channels,
                                           float (&taps)[kWidth + 1][kSpan]) {
  const int count = min(kSpan, channels - first);
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < count * kWidth; i += threads) {
    taps[i % kWidth][i / kWidth] = Parameters::read(p.weight, p.weight_is_bf16, std::int64_t{first} * kWidth + i);
  }
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    taps[kWidth][i] = p.bias == nullptr ? 0.F : Parameters::read(p.bias, p.bias_is_bf16, first + i);
  }
  __syncthreads();
}

template <int kChannels>
__device__ __forceinline__ void clear(float (&values)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) values[c] = 0.F;
}

/// The kBefore tokens before `first`, zeros before the sequence. All rows are read, so that no load waits for a branch.
template <int kBefore, class T, int kRows, int kChannels>
__device__ __forceinline__ void load_history(const T* column, std::int64_t row, int first,
                                             float (&window)[kRows][kChannels]) {
#pragma unroll
  for (int i = 0; i < kBefore; ++i) {
    const int t = first - kBefore + i;
    load(column + max(t, 0) * row, window[i]);
    if (t < 0) clear(window[i]);
  }
}

/// Tokens t ... t + kUnroll - 1 into the end of the window; beyond `last` the last one again.
template <class T, int kRows, int kChannels>
__device__ __forceinline__ void load_tokens(const T* column, std::int64_t row, int t, int last,
                                            float (&window)[kRows][kChannels]) {
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    load(column + min(t + u, last - 1) * row, window[kRows - kUnroll + u]);
  }
}

/// The last tokens become the history of the next ones.
template <int kRows, int kChannels>
__device__ __forceinline__ void shift(float (&window)[kRows][kChannels]) {
#pragma unroll
  for (int i = 0; i < kRows - kUnroll; ++i) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) window[i][c] = window[i + kUnroll][c];
  }
}

// ---- forward

template <class T>
struct Forward {
  const T* x;  // at the first of the channels
  T* y;
  Parameters parameters;
  CausalConvSplit split;
  std::int64_t row;  // of x
  int channels;
  int column_blocks;
  bool silu;
};

template <class T, int kWidth, int kChannels>
__global__ void __launch_bounds__(kForwardWarps* kWarp, 4) forward_kernel(const Forward<T> p) {
  constexpr int kSpan = kWarp * kChannels;
  __shared__ __align__(16) float taps[kWidth + 1][kSpan];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_channel = static_cast<int>(blockIdx.x) % p.column_blocks * kSpan;
  stage_taps<kWidth>(p.parameters, first_channel, p.channels, taps);
  const std::int64_t index = std::int64_t{blockIdx.x / p.column_blocks} * kForwardWarps + threadIdx.x / kWarp;
  const int channel = first_channel + lane * kChannels;
  if (index >= p.split.pieces || channel >= p.channels) return;

  float weight[kWidth][kChannels], bias[kChannels];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) load(&taps[j][lane * kChannels], weight[j]);
  load(&taps[kWidth][lane * kChannels], bias);

  const CausalConvPiece piece = p.split.piece(index);
  const int first = static_cast<int>(piece.first);
  const int last = static_cast<int>(piece.last);
  const T* const x = p.x + piece.sequence * p.split.tokens * p.row + channel;
  T* const y = p.y + piece.sequence * p.split.tokens * p.channels + channel;
  float window[kWidth - 1 + kUnroll][kChannels];  // tokens t - (width - 1) ... t + kUnroll - 1
  load_history<kWidth - 1>(x, p.row, first, window);
  for (int t = first; t < last; t += kUnroll) {
    load_tokens(x, p.row, t, last, window);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float v[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        v[c] = bias[c];
#pragma unroll
        for (int j = 0; j < kWidth; ++j) v[c] += weight[j][c] * window[u + j][c];
        if (p.silu) v[c] = silu(v[c]);
      }
      if (t + u < last) store(y + std::int64_t{t + u} * p.channels, v);
    }
    shift(window);
  }
}

// ---- backward

template <class T>
struct Backward {
  const T* dy;
  const T* x;  // at the first of the channels
  T* dx;       // likewise, or null
  float* partial;
  Parameters parameters;
  CausalConvSplit split;
  std::int64_t pieces_a_part;
  std::int64_t row;  // of x and dx
  int channels;
  int column_blocks;
  bool silu;
  bool accumulate_dx;
};

template <class T, int kWidth, int kChannels>
__global__ void __launch_bounds__(kBackwardWarps* kWarp, 2) backward_kernel(const Backward<T> p) {
  constexpr int kSpan = kWarp * kChannels;
  constexpr int kReach = kWidth - 1;  // so many later outputs see a token
  __shared__ __align__(16) float taps[kWidth + 1][kSpan];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_channel = static_cast<int>(blockIdx.x) % p.column_blocks * kSpan;
  const std::int64_t part = blockIdx.x / p.column_blocks;
  stage_taps<kWidth>(p.parameters, first_channel, p.channels, taps);
  const int channel = first_channel + lane * kChannels;

  float sums[kWidth + 1][kChannels] = {};  // of the gradients of taps and bias
  if (channel < p.channels) {
    float weight[kWidth][kChannels], bias[kChannels];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) load(&taps[j][lane * kChannels], weight[j]);
    load(&taps[kWidth][lane * kChannels], bias);

    const int tokens = static_cast<int>(p.split.tokens);
    const std::int64_t stop = min(p.split.pieces, (part + 1) * p.pieces_a_part);
    for (std::int64_t index = part * p.pieces_a_part + warp; index < stop; index += kBackwardWarps) {
      const CausalConvPiece piece = p.split.piece(index);
      const int first = static_cast<int>(piece.first);
      const int last = static_cast<int>(piece.last);
      const std::int64_t start = piece.sequence * p.split.tokens;
      const T* const x = p.x + start * p.row + channel;
      const T* const dy = p.dy + start * p.channels + channel;
      T* const dx = p.dx == nullptr ? nullptr : p.dx + start * p.row + channel;
      float seen[kReach + kUnroll][kChannels];  // x of tokens t - reach ... t + kUnroll - 1
      float dv[kReach + kUnroll][kChannels];    // gradients of the outputs of the same tokens
      load_history<kReach>(x, p.row, first, seen);
#pragma unroll
      for (int i = 0; i < kReach; ++i) clear(dv[i]);
      // an input of the piece is seen by outputs up to `reach` tokens later
      for (int t = first; t < last + kReach; t += kUnroll) {
        load_tokens(x, p.row, t, tokens, seen);
        load_tokens(dy, p.channels, t, tokens, dv);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const bool exists = t + u < tokens;
          const bool mine = t + u < last;  // else the next piece counts it
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            float& d = dv[kReach + u][c];
            if (p.silu) {
              float v = bias[c];
#pragma unroll
              for (int j = 0; j < kWidth; ++j) v += weight[j][c] * seen[u + j][c];
              d *= silu_slope(v);
            }
            d = exists ? d : 0.F;
            const float counted = mine ? d : 0.F;
#pragma unroll
            for (int j = 0; j < kWidth; ++j) sums[j][c] += counted * seen[u + j][c];
            sums[kWidth][c] += counted;
          }
          const int token = t + u - kReach;  // its last output is the one at hand
          if (dx == nullptr || token < first || token >= last) continue;
          float gradient[kChannels];
          clear(gradient);
          if (p.accumulate_dx) load(dx + token * p.row, gradient);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
#pragma unroll
            for (int c = 0; c < kChannels; ++c) gradient[c] += weight[j][c] * dv[u + kReach - j][c];
          }
          store(dx + token * p.row, gradient);
        }
        shift(seen);
        shift(dv);
      }
    }
  }
  if (p.partial == nullptr) return;

  __shared__ __align__(16) float parts[kBackwardWarps][kWidth + 1][kSpan];
#pragma unroll
  for (int j = 0; j <= kWidth; ++j) store(&parts[warp][j][lane * kChannels], sums[j]);
  __syncthreads();
  float* const partial = p.partial + part * (kWidth + 1) * p.channels;
  for (int i = static_cast<int>(threadIdx.x); i < (kWidth + 1) * kSpan; i += kBackwardWarps * kWarp) {
    const int j = i / kSpan;
    const int c = i % kSpan;
    if (first_channel + c >= p.channels) continue;
    float total = 0.F;
#pragma unroll
    for (int w = 0; w < kBackwardWarps; ++w) total += parts[w][j][c];
    partial[std::int64_t{j} * p.channels + first_channel + c] = total;
  }
}

/// Adds the partial sums [parts, width + 1, channels] and turns the taps back to [channels, width].
__global__ void __launch_bounds__(kWarp* kWarp) finish_kernel(const float* partial, int parts, int channels, int width,
                                                              ParameterGradient dweight, ParameterGradient dbias) {
  const auto [column, total] = column_total(partial, parts, std::int64_t{width + 1} * channels);
  if (column < 0) return;
  const std::int64_t tap = column / channels;
  const std::int64_t channel = column - tap * channels;
  if (tap < width) {
    dweight.put(channel * width + tap, total);
  } else {
    dbias.put(channel, total);
  }
}

// ---- launchers

Parameters parameters_of(const ConstView& weight, const ConstView& bias) {
  return {weight.data, bias.data, weight.dtype == DType::BF16, bias.dtype == DType::BF16};
}

/// Whether kChannels neighbouring channels can be moved by aligned accesses.
template <class T, int kChannels, class... Pointers>
bool vectors_fit(std::int64_t row, std::int64_t offset, std::int64_t channels, Pointers... pointers) {
  static_assert(kChannels * sizeof(T) <= 16);
  return row % kChannels == 0 && offset % kChannels == 0 && channels % kChannels == 0 &&
         (is_aligned16(pointers) && ...);
}

/// Calls body(width, channels of a thread) as integral constants.
template <int kChannels, class Body>
void with_layout(std::int64_t width, bool vectors, Body&& body) {
  const auto with_width = [&](auto channels) {
    if (width == 2) return body(std::integral_constant<int, 2>{}, channels);
    if (width == 3) return body(std::integral_constant<int, 3>{}, channels);
    return body(std::integral_constant<int, 4>{}, channels);
  };
  if (vectors) return with_width(std::integral_constant<int, kChannels>{});
  return with_width(std::integral_constant<int, 1>{});
}

void launch_forward(Stream& stream, const CausalConv1dForward& args) {
  const std::int64_t row = args.x.shape[2];
  const std::int64_t channels = args.weight.shape[0];
  const CausalConvSplit split = causal_conv1d_split(args.x.shape[0], args.x.shape[1], channels, kForwardSteps);
  with_type(args.x.dtype, "causal_conv1d_forward", [&](auto type) {
    using T = typename decltype(type)::type;
    const bool vectors = vectors_fit<T, kVector<T>>(row, args.offset, channels, args.x.data, args.y.data);
    with_layout<kVector<T>>(args.weight.shape[1], vectors, [&](auto width, auto each) {
      const auto column_blocks = static_cast<int>(ceil_div(channels, kWarp * each()));
      const Forward<T> p{args.x.as<T>() + args.offset,
                         args.y.as<T>(),
                         parameters_of(args.weight, args.bias),
                         split,
                         row,
                         static_cast<int>(channels),
                         column_blocks,
                         args.silu};
      forward_kernel<T, width(), each()><<<blocks_for(ceil_div(split.pieces, kForwardWarps) * column_blocks, 1),
                                           kForwardWarps * kWarp, 0, handle(stream)>>>(p);
    });
  });
  check(cudaGetLastError());
}

void launch_backward(Stream& stream, const CausalConv1dBackward& args) {
  constexpr int kChannels = 4;  // two windows and the sums of the taps: more would not fit into registers
  const std::int64_t row = args.x.shape[2];
  const std::int64_t channels = args.weight.shape[0];
  const std::int64_t width = args.weight.shape[1];
  if (args.dx && args.dx.view.dtype != args.x.dtype) {
    throw DeviceError(std::string("causal_conv1d_backward: dx is ") + name_of(args.dx.view.dtype) + ", expected " +
                      name_of(args.x.dtype) + ", the dtype of x");
  }
  const CausalConvSplit split = causal_conv1d_split(args.x.shape[0], args.x.shape[1], channels);
  with_type(args.x.dtype, "causal_conv1d_backward", [&](auto type) {
    using T = typename decltype(type)::type;
    const bool vectors =
        vectors_fit<T, kChannels>(row, args.offset, channels, args.x.data, args.dy.data, args.dx.view.data);
    with_layout<kChannels>(width, vectors, [&](auto taps, auto each) {
      const auto column_blocks = static_cast<int>(ceil_div(channels, kWarp * each()));
      const Backward<T> p{args.dy.as<T>(),
                          args.x.as<T>() + args.offset,
                          args.dx ? args.dx.view.as<T>() + args.offset : nullptr,
                          args.partial.as<float>(),
                          parameters_of(args.weight, args.bias),
                          split,
                          ceil_div(split.pieces, split.parts),
                          row,
                          static_cast<int>(channels),
                          column_blocks,
                          args.silu,
                          args.dx.accumulate};
      backward_kernel<T, taps(), each()>
          <<<blocks_for(split.parts * column_blocks, 1), kBackwardWarps * kWarp, 0, handle(stream)>>>(p);
    });
  });
  check(cudaGetLastError());
  if (!args.partial) return;
  finish_kernel<<<blocks_for((width + 1) * channels, kWarp), dim3(kWarp, kWarp), 0, handle(stream)>>>(
      args.partial.as<float>(), static_cast<int>(split.parts), static_cast<int>(channels), static_cast<int>(width),
      parameter_gradient(args.dweight, "causal_conv1d_backward"),
      parameter_gradient(args.dbias, "causal_conv1d_backward"));
  check(cudaGetLastError());
}

const Register forward{causal_conv1d_forward, Backend::Cuda, launch_forward};
const Register backward{causal_conv1d_backward, Backend::Cuda, launch_backward};

}  // namespace
}  // namespace graft::cuda
