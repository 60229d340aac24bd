// Every mixer, reading a sequence piece by piece.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "models/mixer.h"
#include "models/model_config.h"
#include "tests/support/live_mixer.h"
#include "tests/support/parity.h"
#include "tests/support/pieces.h"

namespace graft::test {
namespace {

constexpr std::int64_t kBatch = 2;
constexpr std::int64_t kWidth = 32;

/// A configuration in which every detail of the mixers matters: rotary columns, groups, a gate with an activation.
ModelConfig config_of(bool details) {
  ModelConfig config;
  config.width = kWidth;
  config.heads = 4;
  config.state = 6;
  if (!details) return config;
  config.rotary = 0.5;
  config.settings.set("model.head_dim", std::int64_t{8});
  config.settings.set("model.groups", std::int64_t{2});
  config.settings.set("model.s4_mamba_gate", std::string("silu"));
  return config;
}

/// The first mixer of a model of two, with random parameters.
struct RandomMixer : LiveMixer {
  RandomMixer(Backend backend, Precision precision, const MixerEntry& entry, const ModelConfig& config)
      : LiveMixer(backend, precision, entry, config, {0, 2}) {
    randomize();
  }
  [[nodiscard]] ExtensionMaker extension(std::int64_t capacity) const {
    return [this, capacity](const Context& ctx) -> Extension {
      const MixerState state = mixer->make_state(ctx, kBatch, capacity);
      return [this, &ctx, state](const std::vector<Tensor>& in, const Tensor& length) {
        return mixer->extend(ctx, in[0], state, length);
      };
    };
  }
};

/// Largest difference between the outputs of pieces and of the whole, relative to the largest output.
double worst_difference(Backend backend, Precision precision, const MixerEntry& entry, const ModelConfig& config,
                        std::int64_t tokens) {
  const RandomMixer live(backend, precision, entry, config);
  const HostTensor x = constant(randn({kBatch, tokens, kWidth}));
  const std::vector<double> whole = live(x);
  double size = 0, worst = 0;
  for (const double value : whole) size = std::max(size, std::abs(value));
  REQUIRE(size > 0.1);
  for (const std::vector<std::int64_t>& cut : cuts_of(tokens)) {
    const std::vector<double> got = in_pieces(live.device, live.extension(tokens + 3), {x}, {0}, cut);
    REQUIRE(got.size() == whole.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double difference = std::abs(got[i] - whole[i]);
      worst = std::isfinite(difference) ? std::max(worst, difference) : HUGE_VAL;
    }
  }
  return worst / size;
}

void check_all(Backend backend, Precision precision, double tolerance) {
  for (const MixerEntry& entry : registered_mixers()) {
    for (const bool details : {false, true}) {
      for (const std::int64_t tokens : {1, 2, 21}) {
        CAPTURE(entry.name);
        CAPTURE(details);
        CAPTURE(tokens);
        const double error = worst_difference(backend, precision, entry, config_of(details), tokens);
        CAPTURE(error);
        CHECK(error <= tolerance);
      }
    }
  }
}

// float32: sums of up to 128 products, in other orders.
// tf32: on a GPU the factors of matrix products have 11 bits, and attention's too when it reads a whole sequence but
// not when it extends one.
// bfloat16: the two ways round the same inputs to the same values, but their float32 sums differ, and with them now and
// then the last bit of what is rounded next: 2^-8 of a value. A scan by chunks also rounds the factors of its products
// and attention its weights, each to 2^-9; a projection follows that adds such errors with random signs.
constexpr double kFloat = 1e-5;
constexpr double kTf32 = 5e-3;
constexpr double kBf16 = 2e-2;

TEST_CASE("mixers: pieces equal the whole in float64") { check_all(Backend::Cpu, Precision::Fp64, 1e-10); }

TEST_CASE("mixers: pieces equal the whole in float32 and bfloat16") {
  check_all(Backend::Cpu, Precision::Fp32, kFloat);
  check_all(Backend::Cpu, Precision::Bf16, kBf16);
}

TEST_CASE("mixers: pieces equal the whole, on CUDA as on the CPU") {
  if (skip_cuda()) return;
  check_all(Backend::Cuda, Precision::Fp32, kFloat);
  check_all(Backend::Cuda, Precision::Tf32, kTf32);
  check_all(Backend::Cuda, Precision::Bf16, kBf16);
}

TEST_CASE("mixers: an empty state is zeros in memory of the run") {
  for (const MixerEntry& entry : registered_mixers()) {
    CAPTURE(entry.name);
    const RandomMixer live(Backend::Cpu, Precision::Bf16, entry, config_of(true));
    Context ctx = live.device.ctx();
    ctx.memory = nullptr;  // a step's memory is not asked
    for (const Tensor& part : live.mixer->make_state(ctx, kBatch, 5).parts) {
      CHECK(part.shape()[0] == kBatch);
      const std::vector<double> values = live.device.values(part);
      CHECK(std::all_of(values.begin(), values.end(), [](double value) { return value == 0; }));
    }
  }
}

TEST_CASE("mixers: sequences of a batch do not see each other") {
  for (const MixerEntry& entry : registered_mixers()) {
    CAPTURE(entry.name);
    const RandomMixer live(Backend::Cpu, Precision::Fp64, entry, config_of(true));
    HostTensor x = constant(randn({kBatch, 6, kWidth}));
    const std::vector<double> before = in_pieces(live.device, live.extension(6), {x}, {0}, {2, 1, 3});
    const auto half = static_cast<std::ptrdiff_t>(x.values.size() / 2);
    std::fill(x.values.begin() + half, x.values.end(), 5.0);
    const std::vector<double> after = in_pieces(live.device, live.extension(6), {x}, {0}, {2, 1, 3});
    CHECK(std::equal(before.begin(), before.begin() + half, after.begin()));
    CHECK_FALSE(std::equal(before.begin() + half, before.end(), after.begin() + half));
  }
}

}  // namespace
}  // namespace graft::test
