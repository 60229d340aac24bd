#pragma once
// Retrieval of vectors from a list of key-value pairs. Free of fmt.

#include <cmath>
#include <cstdint>

#include "engine/kernel.h"
#include "engine/philox.h"
#include "engine/tensor.h"
#include "tasks/epoch_order.h"
#include "tasks/prompt_sampler.h"
#include "tasks/token_sampler.h"

namespace graft {

/// Vectors k_1, v_1, ..., k_n, v_n, independent and uniform on the sphere of radius `norm` in R^dim (a normalised
/// Gaussian), then queries. A query is one of the keys and asks for its value; the pairs asked for are distinct,
/// uniformly chosen, in random order. Two layouts of the queries:
///   slots = 0: one after the other, 2 pairs + queries tokens in all. Point i is query i.
///   slots > 0: after the pairs come `slots` slots of two tokens. A query stands in the first token of its slot, all
///     other tokens there are zero vectors. Slots are drawn one after the other without replacement, the s-th (from 1)
///     with probability proportional to s^-0.99. Point i is slot i, scored if it holds a query.
/// With `unmatched` the choice includes one pair more, which is not in the list: with probability 1 / (pairs + 1) a
/// single query matches no key, and its target can only be guessed.
/// Source: Park et al. 2024, section 3.2 (multi-query associative recall of vectors); Arora et al. 2023, "Zoology" (the
/// layout with slots); krafton-ai/mambaformer-icl, vector retrieval (one query, norm sqrt(dim), unmatched).
struct VectorRetrieval {
  enum : std::uint32_t { kKeys, kValues, kQueries, kSlots };  // purposes: separate random streams
  int dim = 20;
  int pairs = 32;
  int queries = 16;
  int slots = 0;
  float norm = 1.F;
  bool unmatched = false;

  /// Memory that the threads of one example share.
  struct Scratch {
    double* order;  // [scratch_doubles()]: a key for each candidate, then from slot_keys_at() on one for each slot
    std::int32_t* asked;  // [points() + queries]; of which asked[i] is the pair that point i asks for, -1: none
  };

  [[nodiscard]] GRAFT_HD int candidates() const { return pairs + (unmatched ? 1 : 0); }
  [[nodiscard]] GRAFT_HD int points() const { return slots > 0 ? slots : queries; }
  [[nodiscard]] GRAFT_HD int tokens() const { return 2 * pairs + (slots > 0 ? 2 * slots : queries); }
  /// Point i is predicted at token first_point() + point_stride() * i.
  [[nodiscard]] GRAFT_HD int first_point() const { return 2 * pairs; }
  [[nodiscard]] GRAFT_HD int point_stride() const { return slots > 0 ? 2 : 1; }
  /// Both parts have an even length: compilers load two keys at once, the last of an odd number with what follows it.
  [[nodiscard]] GRAFT_HD int slot_keys_at() const { return candidates() + candidates() % 2; }
  [[nodiscard]] GRAFT_HD std::int64_t scratch_doubles() const { return slot_keys_at() + slots + slots % 2; }
  [[nodiscard]] GRAFT_HD std::int64_t scratch_integers() const { return points() + queries; }

  /// Fills scratch.asked; a barrier stands at the end. Ranks of random numbers are a random order of what they belong
  /// to, and ranks of exponential variables with rates w_s the order of draws with probabilities proportional to w_s.
  GRAFT_HD void choose(const Threads& threads, const Draw& draw, const Scratch& scratch) const {
    double* pair_keys = scratch.order;
    double* slot_keys = scratch.order + slot_keys_at();
    std::int32_t* pair_of_query = scratch.asked + points();
    for (int p = threads.rank; p < candidates(); p += threads.count) {
      pair_keys[p] = static_cast<double>(draw.bits(kQueries, static_cast<std::uint32_t>(p)));
    }
    for (int s = threads.rank; s < slots; s += threads.count) {
      const double uniform = (static_cast<double>(draw.bits(kSlots, static_cast<std::uint32_t>(s))) + 0.5) * 0x1p-32;
      slot_keys[s] = -log(uniform) * pow(static_cast<double>(s + 1), 0.99);
    }
    for (int i = threads.rank; i < points(); i += threads.count) scratch.asked[i] = -1;
    threads.sync();
    for (int p = threads.rank; p < candidates(); p += threads.count) {
      const int rank = rank_of(pair_keys, candidates(), p);
      if (rank < queries) pair_of_query[rank] = p;
    }
    threads.sync();
    for (int i = threads.rank; i < points(); i += threads.count) {
      const int query = slots > 0 ? rank_of(slot_keys, slots, i) : i;
      if (query < queries) scratch.asked[i] = pair_of_query[query];
    }
    threads.sync();
  }

  /// A vector of the example: put(j, value) for each coordinate, in order. Drawn twice rather than kept.
  template <class Put>
  GRAFT_HD void vector(const Draw& draw, std::uint32_t purpose, int number, const Put& put) const {
    const int blocks = (dim + 3) / 4;
    float normals[4];
    float squares = 0.F;
    for (int block = 0; block < blocks; ++block) {
      draw.normal4(purpose, static_cast<std::uint32_t>(number * blocks + block), normals);
      for (int c = 0; c < 4 && 4 * block + c < dim; ++c) squares += normals[c] * normals[c];
    }
    // In one dimension a normal can be exactly 0.
    const float scale = squares > 0.F ? norm / sqrtf(squares) : 0.F;
    for (int block = 0; block < blocks; ++block) {
      draw.normal4(purpose, static_cast<std::uint32_t>(number * blocks + block), normals);
      for (int c = 0; c < 4 && 4 * block + c < dim; ++c) {
        put(4 * block + c, squares > 0.F || block + c > 0 ? normals[c] * scale : norm);
      }
    }
  }

  /// Writes the example: token(t, j, value) and target(i, j, value) for every token, point and coordinate j below dim.
  /// Targets of points that ask for nothing are 0.
  template <class Token, class Target>
  GRAFT_HD void write(const Threads& threads, const Draw& draw, const std::int32_t* asked, const Token& token,
                      const Target& target) const {
    for (int item = threads.rank; item < tokens() + points(); item += threads.count) {
      if (item >= tokens()) {
        const int i = item - tokens();
        write_vector(draw, kValues, asked[i], [&](int j, float value) { target(i, j, value); });
      } else if (item < first_point()) {
        write_vector(draw, item % 2 == 0 ? kKeys : kValues, item / 2,
                     [&](int j, float value) { token(item, j, value); });
      } else {
        const int distance = item - first_point();
        const bool query = distance % point_stride() == 0;
        write_vector(draw, kKeys, query ? asked[distance / point_stride()] : -1,
                     [&](int j, float value) { token(item, j, value); });
      }
    }
  }

 private:
  /// How many of `count` keys come before that of element `i`.
  [[nodiscard]] GRAFT_HD static int rank_of(const double* keys, int count, int i) {
    int rank = 0;
    for (int other = 0; other < count; ++other) {
      rank += keys[other] < keys[i] || (keys[other] == keys[i] && other < i) ? 1 : 0;
    }
    return rank;
  }
  template <class Put>
  GRAFT_HD void write_vector(const Draw& draw, std::uint32_t purpose, int number, const Put& put) const {
    if (number >= 0) {
      vector(draw, purpose, number, put);
    } else {
      for (int j = 0; j < dim; ++j) put(j, 0.F);
    }
  }
};

struct SampleVectors {
  VectorRetrieval law;
  EpochOrder order;  // of the training set
  Selection selection;
  const StepState* state;  // device memory
  View tokens;             // [B, T, stored width] float32, bfloat16 or float64; columns beyond dim are zero
  View targets;            // [B, N, dim] float32 or float64
  View mask;               // [B, N] uint8, or null: every point counts
};

inline constinit Kernel<SampleVectors> sample_vectors{"sample_vectors"};

/// One example of a batch.
struct VectorExample {
  Draw draw;
  bool missing = false;  // nothing of it counts
};

/// Example `i` of a batch: one of the training set where there is one.
[[nodiscard]] GRAFT_HD inline VectorExample vector_example(const EpochOrder& order, const Selection& selection,
                                                           const StepState& state, std::int64_t i) {
  if (order.examples == 0 || selection.domain != RandomDomain::Train) return {draw_of(selection, state, i), false};
  const EpochOrder::Place place = order.at(state.seed, state.step, selection.first + i);
  return {{state.seed, selection.domain, 0, static_cast<std::uint32_t>(place.example)}, place.missing};
}

}  // namespace graft
