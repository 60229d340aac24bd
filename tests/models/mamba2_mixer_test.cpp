#include "models/mamba2_mixer.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/parameter_store.h"
#include "models/mixer.h"
#include "tests/support/live_mixer.h"

namespace graft::test {
namespace {

ModelConfig config_of(std::int64_t width, std::int64_t state, std::int64_t head_dim = 64, std::int64_t groups = 1,
                      const char* norm = "group") {
  ModelConfig config;
  config.width = width;
  config.state = state;
  config.settings.set("model.head_dim", head_dim);
  config.settings.set("model.groups", groups);
  config.settings.set("model.gated_norm", std::string(norm));
  return config;
}

LiveMixer live_mamba2(const ModelConfig& config, Precision precision = Precision::Fp64) {
  return {Backend::Cpu, precision, find_mixer("M2"), config, {2, 9}};
}

std::int64_t parameters_of(const ModelConfig& config) {
  ParameterStore store;
  const Mamba2Mixer mixer(store, "mamba2", config, {0, 1});
  return store.count();
}

TEST_CASE("mamba2: parameters of the published width, without the norm in front") {
  CHECK(parameters_of(config_of(1024, 16)) == 6370560 - 1024);
  CHECK(parameters_of(config_of(1024, 32)) == 6403488 - 1024);
  CHECK(parameters_of(config_of(1024, 64)) == 6469344 - 1024);
  const std::int64_t inner = 64, heads = 8, shared = 2 * 5;
  CHECK(parameters_of(config_of(32, 5, 8, 2)) ==
        32 * (2 * inner + 2 * shared + heads) + 5 * (inner + 2 * shared) + 3 * heads + inner + 32 * inner);
}

TEST_CASE("mamba2: keys that are absent have their defaults") {
  ModelConfig bare;
  bare.width = 256;
  CHECK(parameters_of(bare) == parameters_of(config_of(256, 16, 64, 1)));
}

TEST_CASE("mamba2: operations of a forward pass") {
  ParameterStore store;
  const Mamba2Mixer mixer(store, "mamba2", config_of(1024, 16), {0, 1});
  const double products = 2 * (1024.0 * (4096 + 2 * 16 + 32) + 2048.0 * 1024);
  const double convolution = 8.0 * (2048 + 2 * 16);
  for (const std::int64_t tokens : {1, 109, 205, 256, 300}) {
    const auto t = static_cast<double>(tokens);
    const double chunk = std::min(t, 256.0);
    CHECK(mixer.forward_flops(tokens) == t * (products + convolution + (5 * 16 + 4) * 2048.0 + 2 * 32));
    CHECK(mixer.forward_flops_causal(tokens) == t * (products + convolution + chunk * (16 + 2048) + 4 * 16 * 2048.0));
  }
  // 64 prompts of 205 tokens, 24 layers and a head over 408 symbols: 12.58e12 a training step
  const double step = 3 * 64 * (24 * mixer.forward_flops_causal(205) + 205 * 2.0 * 1024 * 408);
  CHECK(step == doctest::Approx(12.58e12).epsilon(5e-4));
}

TEST_CASE("mamba2: the start of every parameter") {
  const LiveMixer live = live_mamba2(config_of(128, 16, 1, 4));  // 256 heads
  const auto within = [](const std::vector<double>& values, double low, double high) {
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    CHECK(*least >= low);
    CHECK(*most <= high);
    CHECK(*most - *least > 0.9 * (high - low));  // they fill the range
  };
  within(live.read("mamba2.in.weight"), -1 / std::sqrt(128.0), 1 / std::sqrt(128.0));
  within(live.read("mamba2.conv.weight"), -0.5, 0.5);
  within(live.read("mamba2.conv.bias"), -0.5, 0.5);
  within(live.read("mamba2.out.weight"), -1 / std::sqrt(256.0) / 3, 1 / std::sqrt(256.0) / 3);
  std::vector<double> a = live.read("mamba2.a_log");
  for (double& value : a) value = std::exp(value);
  within(a, 1, 16);
  std::vector<double> log_steps = live.read("mamba2.dt.bias");
  for (double& value : log_steps) value = std::log(std::log1p(std::exp(value)));
  within(log_steps, std::log(1e-3) - 1e-9, std::log(0.1) + 1e-9);
  for (const char* name : {"skip", "norm.weight"}) {
    const std::vector<double> values = live.read(std::string("mamba2.") + name);
    CHECK(std::all_of(values.begin(), values.end(), [](double value) { return value == 1; }));
  }
  for (const ParameterStore::Entry& entry : live.store.entries()) {
    const bool undecayed = entry.name.ends_with(".bias") || entry.name == "mamba2.norm.weight";
    CAPTURE(entry.name);
    CHECK(entry.options.decay != undecayed);
  }
}

TEST_CASE("mamba2: the gated norm is over a group's channels or over all") {
  const HostTensor x = randn({2, 9, 16});
  const auto run = [&](std::int64_t groups, const char* norm) {
    return live_mamba2(config_of(16, 4, 8, groups, norm))(x);
  };
  CHECK(run(1, "group") == run(1, "all"));
  CHECK(run(2, "group") != run(2, "all"));
}

TEST_CASE("mamba2: bfloat16 stays near float64") {
  const ModelConfig config = config_of(32, 16, 16, 2);
  const HostTensor x = randn({2, 150, 32});
  const std::vector<double> expected = live_mamba2(config)(x);
  const std::vector<double> got = live_mamba2(config, Precision::Bf16)(x);
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  CHECK(std::sqrt(difference / size) < 2e-2);  // measured: 5e-3
}

TEST_CASE("mamba2: what cannot be built is said in terms of the keys") {
  const MixerEntry& entry = find_mixer("M2");
  CHECK(entry.name == "mamba2");
  const auto mistake = [&](const ModelConfig& config) {
    SettingMistakes mistakes;
    entry.check(config, mistakes);
    REQUIRE(mistakes.list().size() == 1);
    return mistakes.list()[0].keys[0] + ": " + mistakes.list()[0].message;
  };
  CHECK(mistake(config_of(256, 257)) == "model.state: got 257, expected at most 256, what the scan of Mamba-2 takes");
  CHECK(mistake(config_of(256, 16, 48)) ==
        "model.head_dim: got 48, expected a divisor of the inner width 512 (2 model.width); nearest: 32, 64");
  CHECK(mistake(config_of(16, 16, 64)) ==
        "model.head_dim: got 64, expected a divisor of the inner width 32 (2 model.width); nearest: 32");
  CHECK(mistake(config_of(256, 16, 64, 3)) ==
        "model.groups: got 3, expected a divisor of the 8 heads (2 model.width / model.head_dim); nearest: 2, 4");
  CHECK(mistake(config_of(256, 16, 64, 9)) ==
        "model.groups: got 9, expected a divisor of the 8 heads (2 model.width / model.head_dim); nearest: 8");
  CHECK(mistake(config_of(8192, 16)) ==
        "model.gated_norm: the gated norm is over 16384 channels, expected at most 8192");
  for (const ModelConfig& good : {config_of(256, 256), config_of(8192, 16, 64, 2), config_of(18, 6, 9, 4)}) {
    SettingMistakes mistakes;
    entry.check(good, mistakes);
    CHECK(mistakes.list().empty());
  }
  ParameterStore store;
  CHECK_THROWS_WITH_AS(Mamba2Mixer(store, "mamba2", config_of(256, 16, 48), {0, 1}),
                       doctest::Contains("mamba2: model.head_dim = 48 does not divide the inner width 512"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(Mamba2Mixer(store, "mamba2", config_of(256, 16, 64, 3), {0, 1}),
                       doctest::Contains("mamba2: model.groups = 3 does not divide the 8 heads"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
