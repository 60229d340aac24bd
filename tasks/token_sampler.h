#pragma once
// Sampling of sequences of token ids: one law, drawn by the same code on both backends. Integers only, so both give the
// same bits. Free of fmt.

#include <cstdint>

#include "engine/kernel.h"
#include "engine/philox.h"
#include "engine/step_state.h"
#include "engine/tensor.h"
#include "tasks/prompt_sampler.h"

namespace graft {

/// Ids that mean the same in all retrieval tasks; the symbols of a task come after them.
/// Source: Pantazopoulos et al. 2026, section 3.
enum SpecialToken : std::int32_t { kPadToken = 0, kBosToken = 1, kQueryToken = 2, kFirstSymbol = 3 };

/// The label of an example that could not be drawn: no id, so the loss of its batch is NaN.
inline constexpr std::int32_t kImpossibleLabel = -1;

/// The threads that draw one example together: a block of a CUDA kernel, or one thread of the host.
struct Threads {
  int rank = 0;
  int count = 1;

  GRAFT_HD void sync() const {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
  /// Whether `value` is true in any of them; also a barrier.
  [[nodiscard]] GRAFT_HD bool any(bool value) const {
#if defined(__CUDA_ARCH__)
    return __syncthreads_or(value ? 1 : 0) != 0;
#else
    return value;
#endif
  }
};

/// Where the ids of one example go.
struct TokenRow {
  std::int32_t* ids;        // [stored]
  std::int64_t stored;      // ids beyond the example's own are kPadToken
  std::int32_t* positions;  // [predictions]
  std::int32_t* labels;     // [predictions]
};

/// What was drawn; the same in all threads.
struct TokenExample {
  int tokens = 0;  // of the example, without padding
  int length = 0;  // of its string
  int start = 0;   // where in the string the answer is found
  bool found = true;
};

/// What a sampler kernel of one law gets. A law is a plain struct:
///
///   using Scratch                                              element of the memory its threads share
///   GRAFT_HD std::int64_t scratch(RandomDomain) const          elements of that
///   GRAFT_HD std::int64_t tokens(RandomDomain) const           ids of the longest example
///   GRAFT_HD int predictions() const                           scored positions of an example
///   GRAFT_HD TokenExample draw(const Threads&, const Draw&, Scratch*, const TokenRow&) const
template <class Law>
struct SampleTokens {
  Law law;
  Selection selection;
  const StepState* state;  // device memory
  View ids;                // [B, T] int32
  View positions;          // [B, N] int32
  View labels;             // [B, N] int32
  View targets;            // [B, N, 1] float32 or float64: the labels as numbers
};

/// The part of a batch that belongs to example `i`.
template <class Law>
[[nodiscard]] GRAFT_HD TokenRow row_of(const SampleTokens<Law>& args, std::int64_t i) {
  const std::int64_t stored = args.ids.shape.columns();
  const std::int64_t count = args.positions.shape.columns();
  return {args.ids.template as<std::int32_t>() + i * stored, stored,
          args.positions.template as<std::int32_t>() + i * count, args.labels.template as<std::int32_t>() + i * count};
}

/// A 32-bit word as one of 0 .. n-1, as Draw::below.
[[nodiscard]] GRAFT_HD inline std::uint32_t scaled_below(std::uint32_t n, std::uint32_t word) {
  return static_cast<std::uint32_t>((std::uint64_t{word} * n) >> 32U);
}

}  // namespace graft
