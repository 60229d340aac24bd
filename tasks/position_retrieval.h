#pragma once

#include <cstdint>

#include "engine/philox.h"
#include "tasks/token_sampler.h"

namespace graft {

/// One position retrieval sequence: where in a permutation of all symbols is the symbol q?
///
///   string x_0 .. x_{L-1}: a uniform permutation of the L symbols (in the order of 64-bit random keys)
///   p ~ U{0 .. L-1},  q = x_p,  answer <p_p>
///
///   suffix  <bos> x_0 .. x_{L-1} <query> q <p_p> <bos>
///   prefix  <query> q <bos> x_0 .. x_{L-1} <p_p> <bos>
///
/// T = L + 5 tokens. Predictions are made at T - 3 (of the answer) and T - 2 (of the end token, which is <bos>). Symbol
/// s has id 3 + s, position p has id 3 + L + p; positions count from 0.
/// Source: Pantazopoulos et al. 2026, section 3 (L = 200; suffix).
struct PositionRetrieval {
  enum : std::uint32_t { kKeys, kPosition };  // purposes: separate random streams
  using Scratch = std::uint64_t;

  int length = 200;
  bool prefix = false;

  [[nodiscard]] GRAFT_HD std::int64_t scratch(RandomDomain /*domain*/) const { return round_up(length, 2); }
  [[nodiscard]] GRAFT_HD std::int64_t tokens(RandomDomain /*domain*/) const { return length + 5; }
  [[nodiscard]] GRAFT_HD int predictions() const { return 2; }
  [[nodiscard]] GRAFT_HD int vocabulary() const { return kFirstSymbol + 2 * length; }

  [[nodiscard]] GRAFT_HD TokenExample draw(const Threads& threads, const Draw& draw, std::uint64_t* keys,
                                           const TokenRow& row) const {
    for (int block = threads.rank; 2 * block < length; block += threads.count) {
      const Words4 words = draw.words(kKeys, static_cast<std::uint32_t>(block));
      keys[2 * block] = std::uint64_t{words.x} << 32U | words.y;
      keys[2 * block + 1] = std::uint64_t{words.z} << 32U | words.w;
    }
    threads.sync();
    const auto start = static_cast<int>(draw.below(static_cast<std::uint32_t>(length), kPosition, 0));
    const int string_at = prefix ? 3 : 1;
    const int query_at = prefix ? 1 : length + 2;
    for (int symbol = threads.rank; symbol < length; symbol += threads.count) {
      const int place = rank_of(keys, symbol);
      row.ids[string_at + place] = kFirstSymbol + symbol;
      if (place == start) row.ids[query_at] = kFirstSymbol + symbol;
    }
    const int tokens = length + 5;
    for (std::int64_t i = tokens + threads.rank; i < row.stored; i += threads.count) row.ids[i] = kPadToken;
    if (threads.rank == 0) {
      row.ids[string_at - 1] = kBosToken;
      row.ids[query_at - 1] = kQueryToken;
      const std::int32_t labels[] = {kFirstSymbol + length + start, kBosToken};
      for (int i = 0; i < 2; ++i) {
        row.ids[tokens - 2 + i] = labels[i];
        row.labels[i] = labels[i];
        row.positions[i] = tokens - 3 + i;
      }
    }
    return {tokens, length, start, true};
  }

 private:
  /// How many keys come before that of `symbol`; equal keys, by symbol. Quadratic, but without a serial chain.
  [[nodiscard]] GRAFT_HD int rank_of(const std::uint64_t* keys, int symbol) const {
    const std::uint64_t key = keys[symbol];
    int before = 0;
    for (int i = 0; i < symbol; ++i) before += keys[i] <= key ? 1 : 0;
    for (int i = symbol + 1; i < length; ++i) before += keys[i] < key ? 1 : 0;
    return before;
  }
};

inline constinit Kernel<SampleTokens<PositionRetrieval>> sample_position_retrieval{"sample_position_retrieval"};

}  // namespace graft
