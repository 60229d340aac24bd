#pragma once
// A fixed training set read in a new order each epoch, without a table of the order. Free of fmt.

#include <cstdint>

#include "engine/philox.h"

namespace graft {

/// Which example of a fixed training set each place of each step reads. An epoch reads every example once; its order is
/// a pseudo-random permutation of 0 .. examples-1, a pure function of (seed, epoch), evaluated at one place at a time.
/// The last step of an epoch is short where the batch does not divide the set: its last places are `missing`.
///
/// The permutation is a balanced Feistel network on the fewest even number of bits that hold the set, its round
/// function the counter-based generator, walked along its cycle until it is back inside the set (fewer than 4 times on
/// average). Source: Luby & Rackoff 1988 (the network); Black & Rogaway 2002, "Ciphers with arbitrary finite domains"
/// (the walk).
struct EpochOrder {
  std::int64_t examples = 0;  // of the set, below 2^32; 0: there is no set, each step draws new ones
  std::int64_t batch = 1;     // places of a step, over all ranks

  struct Place {
    std::int64_t example = 0;
    bool missing = false;  // the epoch was over before; `example` is one of its own nevertheless
  };

  /// Steps of an epoch, the short one included.
  [[nodiscard]] GRAFT_HD std::int64_t steps() const { return (examples + batch - 1) / batch; }
  /// Whether the last step of an epoch is short.
  [[nodiscard]] GRAFT_HD bool has_short_step() const { return examples % batch != 0; }

  /// Examples that the first `count` steps of a run read, without missing places.
  [[nodiscard]] std::int64_t examples_until(std::int64_t count) const {
    const std::int64_t rest = count % steps() * batch;  // of the epoch at hand, which the short step would end
    return count / steps() * examples + rest;
  }

  /// What place `place` of training step `step` reads.
  [[nodiscard]] GRAFT_HD Place at(std::uint64_t seed, std::uint64_t step, std::int64_t place) const {
    const auto epoch = static_cast<std::int64_t>(step) / steps();
    const std::int64_t number = static_cast<std::int64_t>(step) % steps() * batch + place;
    return {permuted(seed, static_cast<std::uint64_t>(epoch), number % examples), number >= examples};
  }

  /// Example number `number` of an epoch.
  [[nodiscard]] GRAFT_HD std::int64_t permuted(std::uint64_t seed, std::uint64_t epoch, std::int64_t number) const {
    int half_bits = 1;
    while ((std::int64_t{1} << (2 * half_bits)) < examples) ++half_bits;
    const std::uint32_t mask = (1U << half_bits) - 1U;
    do {
      auto left = static_cast<std::uint32_t>(number >> half_bits);
      auto right = static_cast<std::uint32_t>(number) & mask;
      for (std::uint32_t round = 0; round < kRounds; ++round) {
        const Draw draw{seed, RandomDomain::Train, epoch, right};
        const std::uint32_t next = left ^ (draw.words(kPurpose, round).x & mask);
        left = right;
        right = next;
      }
      number = (static_cast<std::int64_t>(left) << half_bits) | right;
    } while (number >= examples);
    return number;
  }

 private:
  static constexpr std::uint32_t kPurpose = 0xffff;  // no stream of a task's law
  static constexpr std::uint32_t kRounds = 6;        // four are enough for large sets; small halves mix more slowly
};

}  // namespace graft
