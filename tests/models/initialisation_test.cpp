// Weights before the first step: each kind of parameter against its law.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/models/live_model.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Moments {
  double mean = 0;
  double variance = 0;
  double fourth = 0;
  double largest = 0;
  double count = 0;
};

Moments moments_of(const LiveModel& live, const ParameterStore::Entry& entry) {
  Moments moments;
  const std::vector<double> values = live.store.read(live.device.ctx(), entry, ParameterStore::Buffer::Weights);
  moments.count = static_cast<double>(values.size());
  for (const double value : values) moments.mean += value / moments.count;
  for (const double value : values) {
    moments.variance += value * value / moments.count;
    moments.fourth += value * value * value * value / moments.count;
    moments.largest = std::max(moments.largest, std::abs(value));
  }
  return moments;
}

void check_normal(const Moments& moments, double deviation) {
  const double variance = deviation * deviation;
  CHECK(std::abs(moments.mean) < 4 * deviation / std::sqrt(moments.count));
  CHECK(std::abs(moments.variance - variance) < 4 * variance * std::sqrt(2 / moments.count));
  CHECK(std::abs(moments.fourth - 3 * variance * variance) < 4 * variance * variance * std::sqrt(96 / moments.count));
}

void check_uniform(const Moments& moments, double bound) {
  const double variance = bound * bound / 3;
  CHECK(moments.largest <= bound);
  CHECK(std::abs(moments.mean) < 4 * std::sqrt(variance / moments.count));
  CHECK(std::abs(moments.variance - variance) < 4 * bound * bound * std::sqrt(4 / 45.0 / moments.count));
}

TEST_CASE("model: GPT-2's scheme counts branches, also those side by side; state-space projections count layers") {
  ModelConfig config = small_config("[AF]*2M");
  config.width = 128;
  config.state = 8;
  const LiveModel live(Backend::Cpu, Precision::Fp32, config, {20, 1, 0, 82});
  const auto moments = [&](const char* name) {
    const ParameterStore::Entry* entry = live.store.find(name);
    REQUIRE(entry != nullptr);
    return moments_of(live, *entry);
  };
  check_normal(moments("blocks.1.attention.out.weight"), 0.02 / std::sqrt(5.0));
  check_normal(moments("blocks.0.mlp.out.weight"), 0.02 / std::sqrt(5.0));
  check_uniform(moments("blocks.2.mamba.out.weight"), 1 / std::sqrt(256.0) / std::sqrt(3.0));
}

TEST_CASE("model: initialisation has the scheme's moments, within standard errors") {
  for (const std::int64_t layers : {1, 3}) {
    ModelConfig config = small_config(layers == 1 ? "AF" : "(AF)*3");
    config.layers = layers;
    config.width = 128;
    const LiveModel live(Backend::Cpu, Precision::Fp32, config, {20, 1, 0, 82});
    const double into_residual = 0.02 / std::sqrt(2 * static_cast<double>(layers));
    int seen = 0;
    for (const ParameterStore::Entry& entry : live.store.entries()) {
      CAPTURE(entry.name);
      const Moments moments = moments_of(live, entry);
      ++seen;
      if (entry.name.starts_with("read_in.")) {
        check_uniform(moments, 1 / std::sqrt(20.0));
      } else if (entry.name.starts_with("read_out.")) {
        check_uniform(moments, 1 / std::sqrt(128.0));
      } else if (entry.name == "positions.weight") {
        check_normal(moments, 0.02);
      } else if (entry.name.ends_with(".gain")) {
        CHECK(moments.mean == doctest::Approx(1).epsilon(1e-12));
        CHECK(moments.largest == 1);
      } else if (entry.name.ends_with(".bias")) {
        CHECK(moments.largest == 0);
      } else if (entry.name.ends_with(".out.weight")) {
        check_normal(moments, into_residual);
      } else {
        CHECK((entry.name.ends_with(".qkv.weight") || entry.name.ends_with(".in.weight")));
        check_normal(moments, 0.02);
      }
    }
    CHECK(seen == 4 + 1 + 2 + 12 * layers);
  }
}

TEST_CASE("model: blocks initialised like plain linear layers") {
  ModelConfig config = small_config("(AF)*2");
  config.width = 128;
  config.init = BlockInit::Default;
  const LiveModel live(Backend::Cpu, Precision::Fp32, config, {20, 1, 0, 82});
  for (const ParameterStore::Entry& entry : live.store.entries()) {
    CAPTURE(entry.name);
    if (!entry.name.starts_with("blocks.") || entry.name.find(".norm.") != std::string::npos) continue;
    const Moments moments = moments_of(live, entry);
    if (entry.name.ends_with(".bias")) {
      CHECK(moments.largest == 0);
    } else {
      check_uniform(moments, 1 / std::sqrt(static_cast<double>(entry.shape.columns())));
    }
  }
}

TEST_CASE("model: weights depend on the seed and on nothing else") {
  const ModelShape shape{5, 1, 0, 16};
  const LiveModel first(Backend::Cpu, Precision::Fp32, small_config(), shape);
  const LiveModel second(Backend::Cpu, Precision::Bf16, small_config(), shape);
  CHECK(first.store.hash(first.device.ctx()) == second.store.hash(second.device.ctx()));
  LiveModel other(Backend::Cpu, Precision::Fp32, small_config(), shape);
  other.store.initialize(other.device.ctx(), 8);
  CHECK(first.store.hash(first.device.ctx()) != other.store.hash(other.device.ctx()));
}

TEST_CASE("model: CUDA: weights are the CPU's, bit for bit") {
  if (skip_cuda()) return;
  const ModelShape shape{5, 1, 0, 16};
  const LiveModel cpu(Backend::Cpu, Precision::Fp32, small_config(), shape);
  const LiveModel gpu(Backend::Cuda, Precision::Fp32, small_config(), shape);
  CHECK(cpu.store.hash(cpu.device.ctx()) == gpu.store.hash(gpu.device.ctx()));  // drawn on the host, both times
}

}  // namespace
}  // namespace graft::test
