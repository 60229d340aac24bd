#pragma once

#include <cstdint>

#include "engine/philox.h"
#include "tasks/token_sampler.h"

namespace graft {

/// One n-gram retrieval sequence: which `target` symbols follow the n-gram q in a string where q occurs once?
///
///   length L ~ U{length_min .. length_max}                (eval_length outside of training)
///   string x_0 .. x_{L-1} i.i.d. uniform over the alphabet
///   start  p ~ U{0 .. L - query - target},  q = x_p .. x_{p+query-1},  answer t = the `target` symbols after q
///   all of it, the length too, is drawn again until q is unique among the L - query + 1 overlapping n-grams
///
///   suffix  <bos> x_0 .. x_{L-1} <bos> <query> q <query> t
///   prefix  <query> q <bos> x_0 .. x_{L-1} <bos> <query> t
///
/// T = L + query + target + 4 tokens. Predictions are made at T - target - 1 (the last <query>) .. T - 2, each of the
/// token that follows. Symbol s has id 3 + s. Redrawing the length favours short strings a little (a mean of 74.76 for
/// 50 .. 100, alphabet 30 and query 2). An attempt is part of the counter of its random numbers. After kMaxAttempts,
/// the labels are kImpossibleLabel; the task refuses settings with less than kLeastAcceptance an attempt, so that this
/// has a probability below 0.98^4096 = 1e-36. Source: Pantazopoulos et al. 2026, section 3 (n = 2, k = 3).
struct NgramRetrieval {
  enum : std::uint32_t { kShape, kSymbols };  // purposes: separate random streams
  using Scratch = std::int32_t;
  static constexpr std::uint32_t kMaxAttempts = 4096;
  static constexpr std::uint32_t kBlockBits = 20;  // of the counter within an attempt; the attempt takes the other 12
  static constexpr double kLeastAcceptance = 0.02;

  int length_min = 50;
  int length_max = 100;
  int eval_length = 100;
  int alphabet = 30;
  int query = 2;
  int target = 3;
  bool prefix = false;

  [[nodiscard]] GRAFT_HD int longest(RandomDomain domain) const {
    return domain == RandomDomain::Train ? length_max : eval_length;
  }
  [[nodiscard]] GRAFT_HD std::int64_t scratch(RandomDomain domain) const { return round_up(longest(domain), 4); }
  [[nodiscard]] GRAFT_HD std::int64_t tokens(RandomDomain domain) const { return longest(domain) + query + target + 4; }
  [[nodiscard]] GRAFT_HD int predictions() const { return target; }
  [[nodiscard]] GRAFT_HD int vocabulary() const { return kFirstSymbol + alphabet; }

  [[nodiscard]] GRAFT_HD TokenExample draw(const Threads& threads, const Draw& draw, std::int32_t* string,
                                           const TokenRow& row) const {
    TokenExample example;
    example.found = false;
    for (std::uint32_t attempt = 0; attempt < kMaxAttempts && !example.found; ++attempt) {
      example = draw_shape(draw, attempt);
      for (int block = threads.rank; 4 * block < example.length; block += threads.count) {
        draw_symbols4(draw, attempt, static_cast<std::uint32_t>(block), string + 4 * block);
      }
      threads.sync();
      bool again = false;
      for (int i = threads.rank; i + query <= example.length; i += threads.count) {
        again = again || (i != example.start && is_query(string, i, example.start));
      }
      example.found = !threads.any(again);
    }
    write(threads, example, string, row);
    return example;
  }

 private:
  [[nodiscard]] GRAFT_HD TokenExample draw_shape(const Draw& draw, std::uint32_t attempt) const {
    const Words4 words = draw.words(kShape, attempt);
    const int shortest = draw.domain == RandomDomain::Train ? length_min : eval_length;
    TokenExample example;
    example.length = shortest + below(longest(draw.domain) - shortest + 1, words.x);
    example.start = below(example.length - query - target + 1, words.y);
    example.tokens = example.length + query + target + 4;
    return example;
  }
  GRAFT_HD void draw_symbols4(const Draw& draw, std::uint32_t attempt, std::uint32_t block, std::int32_t* out) const {
    const Words4 words = draw.words(kSymbols, (attempt << kBlockBits) + block);
    out[0] = kFirstSymbol + below(alphabet, words.x);
    out[1] = kFirstSymbol + below(alphabet, words.y);
    out[2] = kFirstSymbol + below(alphabet, words.z);
    out[3] = kFirstSymbol + below(alphabet, words.w);
  }
  [[nodiscard]] GRAFT_HD static int below(int n, std::uint32_t word) {
    return static_cast<int>(scaled_below(static_cast<std::uint32_t>(n), word));
  }
  [[nodiscard]] GRAFT_HD bool is_query(const std::int32_t* string, int i, int start) const {
    for (int j = 0; j < query; ++j) {
      if (string[i + j] != string[start + j]) return false;
    }
    return true;
  }

  GRAFT_HD void write(const Threads& threads, const TokenExample& example, const std::int32_t* string,
                      const TokenRow& row) const {
    const int length = example.length;
    const int answer = example.tokens - target;  // index of its first symbol
    const int string_at = prefix ? query + 2 : 1;
    const int query_at = prefix ? 1 : length + 3;
    for (int i = threads.rank; i < length; i += threads.count) row.ids[string_at + i] = string[i];
    for (int i = threads.rank; i < query; i += threads.count) row.ids[query_at + i] = string[example.start + i];
    for (int i = threads.rank; i < target; i += threads.count) {
      const std::int32_t symbol = string[example.start + query + i];
      row.ids[answer + i] = symbol;
      row.positions[i] = answer - 1 + i;
      row.labels[i] = example.found ? symbol : std::int32_t{kImpossibleLabel};
    }
    for (std::int64_t i = example.tokens + threads.rank; i < row.stored; i += threads.count) row.ids[i] = kPadToken;
    if (threads.rank != 0) return;
    row.ids[string_at - 1] = kBosToken;
    row.ids[string_at + length] = kBosToken;
    row.ids[query_at - 1] = kQueryToken;
    row.ids[answer - 1] = kQueryToken;
  }
};

inline constinit Kernel<SampleTokens<NgramRetrieval>> sample_ngram_retrieval{"sample_ngram_retrieval"};

}  // namespace graft
