#pragma once

#include <cmath>
#include <cstdint>

#include "engine/dtype.h"

namespace graft {

/// Four 32-bit words.
struct Words4 {
  std::uint32_t x, y, z, w;
};

/// Philox4x32-10: `counter` (128 bits) encrypted under `key` (64 bits). The same source runs on host and device.
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
[[nodiscard]] GRAFT_HD inline Words4 philox4x32_10(Words4 counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter.x;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter.z;
    counter = {static_cast<std::uint32_t>(product1 >> 32U) ^ counter.y ^ key0, static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32U) ^ counter.w ^ key1, static_cast<std::uint32_t>(product0)};
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

/// What random numbers are for. Different domains of one seed are unrelated streams.
enum class RandomDomain : std::uint32_t { Train = 0, Evaluation = 1, Initialisation = 2, Dropout = 3, Bootstrap = 4 };

/// Random numbers of one example: a pure function of (seed, domain, purpose, step, example, index).
/// Integers and uniforms are bit-equal on all backends; normals agree to rounding.
struct Draw {
  std::uint64_t seed = 0;
  RandomDomain domain = RandomDomain::Train;
  std::uint64_t step = 0;
  std::uint32_t example = 0;

  /// Words 4 * block .. 4 * block + 3 of the stream `purpose` (below 2^16).
  [[nodiscard]] GRAFT_HD Words4 words(std::uint32_t purpose, std::uint32_t block) const {
    // step fills 48 bits: 32 in a word of their own, 16 beside the purpose
    const auto high = static_cast<std::uint32_t>(step >> 32U) << 16U;
    return philox4x32_10({block, example, static_cast<std::uint32_t>(step), high | (purpose & 0xffffU)},
                         static_cast<std::uint32_t>(seed),
                         static_cast<std::uint32_t>(seed >> 32U) ^ (static_cast<std::uint32_t>(domain) << 24U));
  }
  [[nodiscard]] GRAFT_HD std::uint32_t bits(std::uint32_t purpose, std::uint32_t index) const {
    const Words4 w = words(purpose, index / 4);
    switch (index % 4) {
      case 0:
        return w.x;
      case 1:
        return w.y;
      case 2:
        return w.z;
      default:
        return w.w;
    }
  }
  /// Uniform on [0, 1), 24 bits.
  [[nodiscard]] GRAFT_HD float uniform(std::uint32_t purpose, std::uint32_t index) const {
    return to_unit(bits(purpose, index));
  }
  /// Uniform on 0 .. n-1, by the high half of a product (bias below n / 2^32).
  [[nodiscard]] GRAFT_HD std::uint32_t below(std::uint32_t n, std::uint32_t purpose, std::uint32_t index) const {
    return static_cast<std::uint32_t>((std::uint64_t{bits(purpose, index)} * n) >> 32U);
  }
  /// Standard normal, Box-Muller: words 2i and 2i+1 of the stream give normals 2i and 2i+1.
  [[nodiscard]] GRAFT_HD float normal(std::uint32_t purpose, std::uint32_t index) const {
    const Words4 w = words(purpose, index / 4);
    const bool second = (index & 2U) != 0;
    return box_muller(second ? w.z : w.x, second ? w.w : w.y, (index & 1U) != 0);
  }
  /// Normals 4 * block .. 4 * block + 3 at a quarter of the cost each.
  GRAFT_HD void normal4(std::uint32_t purpose, std::uint32_t block, float* out) const {
    const Words4 w = words(purpose, block);
    out[0] = box_muller(w.x, w.y, false);
    out[1] = box_muller(w.x, w.y, true);
    out[2] = box_muller(w.z, w.w, false);
    out[3] = box_muller(w.z, w.w, true);
  }

  [[nodiscard]] GRAFT_HD static float to_unit(std::uint32_t word) { return static_cast<float>(word >> 8U) * 0x1p-24F; }
  [[nodiscard]] GRAFT_HD static float box_muller(std::uint32_t a, std::uint32_t b, bool sine) {
    const float radius = sqrtf(-2.F * logf((static_cast<float>(a >> 8U) + 0.5F) * 0x1p-24F));
    const float angle = 6.283185307179586F * to_unit(b);
    return radius * (sine ? sinf(angle) : cosf(angle));
  }
};

}  // namespace graft
