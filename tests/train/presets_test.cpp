// Presets from configuration to trained weights: parameter counts, FLOPs, causality, reproducible training.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/step_graph.h"
#include "tests/models/live_model.h"
#include "tests/support/parity.h"
#include "tests/train/tiny_run.h"
#include "train/flops.h"
#include "train/step.h"

namespace graft::test {
namespace {

struct Row {
  std::int64_t layers, width, backbone;
};
struct Column {
  const char* preset;
  std::vector<Row> rows;
};

/// Blocks and final norm, from the closed forms: a Mamba block of width d and rank r = ceil(d / 16) has
/// 6 d^2 + 4 d r + 112 d parameters, its norm included.
const std::vector<Column>& columns() {
  static const std::vector<Column> all = {
      {"mamba",
       {{2, 64, 131200},
        {2, 128, 467200},
        {3, 64, 196736},
        {4, 64, 262272},
        {4, 128, 934144},
        {6, 128, 1401088},
        {6, 256, 5259776},
        {12, 256, 10519040},
        {24, 768, 181077504}}},
      {"s4_mamba",
       {{2, 64, 118912},
        {2, 128, 434432},
        {3, 64, 178304},
        {4, 64, 237696},
        {4, 128, 868608},
        {6, 128, 1302784},
        {6, 256, 4964864},
        {12, 256, 9929216},
        {24, 768, 172819968}}},
      {"s4",
       {{2, 64, 42624},
        {2, 128, 150784},
        {3, 64, 63872},
        {4, 64, 85120},
        {4, 128, 301312},
        {6, 128, 451840},
        {6, 256, 1690112},
        {12, 256, 3379712},
        {24, 768, 58025472}}},
      {"standard_hybrid",
       {{2, 64, 99200},
        {2, 128, 366336},
        {3, 64, 148736},
        {4, 64, 198272},
        {4, 128, 732416},
        {6, 128, 1098496},
        {6, 256, 4212224},
        {12, 256, 8423936},
        {24, 768, 147273216}}},
      {"mambaformer",
       {{2, 64, 131968},
        {2, 128, 483072},
        {3, 64, 181504},
        {4, 64, 231040},
        {4, 128, 849152},
        {6, 128, 1215232},
        {6, 256, 4650496},
        {12, 256, 8862208},
        {24, 768, 151045632}}},
      {"transformer_initial_mamba",
       {{2, 64, 132864},
        {2, 128, 513536},
        {3, 64, 182848},
        {4, 64, 232832},
        {4, 128, 910080},
        {6, 128, 1306624},
        {6, 256, 5177344},
        {12, 256, 9915904},
        {24, 768, 173882880}}},
  };
  return all;
}

RunConfig preset_config(const std::string& preset, std::int64_t layers, std::int64_t width,
                        const std::vector<std::string>& more = {}) {
  std::vector<std::string> overrides = {"task.name=linear_regression", "model.preset=" + preset,
                                        fmt::format("model.layers={}", layers), fmt::format("model.width={}", width)};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return parse_config("# all defaults\n", "preset.toml", overrides);
}

TEST_CASE("presets: parameter totals of the in-context-learning study") {
  for (const Column& column : columns()) {
    for (const Row& row : column.rows) {
      CAPTURE(std::string(column.preset));
      CAPTURE(row.layers);
      CAPTURE(row.width);
      const Experiment experiment(preset_config(column.preset, row.layers, row.width));
      std::int64_t backbone = 0;
      for (const ParameterStore::Entry& entry : experiment.params.entries()) {
        if (entry.name.starts_with("blocks.") || entry.name.starts_with("final_norm.")) {
          backbone += entry.shape.elements();
        }
      }
      CHECK(backbone == row.backbone);
    }
  }
}

TEST_CASE("presets: training FLOPs of the in-context-learning study, to three digits") {
  struct Total {
    const char* preset;
    std::int64_t layers, width;
    double flops;
  };
  // linear regression, 500,000 steps
  for (const Total& total :
       {Total{"mamba", 2, 128, 7.82e15}, Total{"mamba", 6, 128, 2.34e16}, Total{"mamba", 12, 256, 1.69e17},
        Total{"standard_hybrid", 2, 128, 6.58e15}, Total{"standard_hybrid", 12, 256, 1.41e17},
        Total{"mambaformer", 2, 128, 8.53e15}, Total{"mambaformer", 12, 256, 1.48e17},
        Total{"s4_mamba", 2, 128, 7.06e15}, Total{"s4_mamba", 12, 256, 1.57e17}, Total{"s4", 2, 128, 2.51e15},
        Total{"s4", 12, 256, 5.38e16}}) {
    CAPTURE(std::string(total.preset));
    CAPTURE(total.layers);
    const Experiment experiment(preset_config(total.preset, total.layers, total.width));
    const FlopsReport report = count_flops(*experiment.model, *experiment.task, 64, 500000);
    CHECK(report.train_total == doctest::Approx(total.flops).epsilon(0.005 / (total.flops >= 1e17 ? 1.41 : 2.34)));
  }
}

TEST_CASE("presets: one attention block in the middle of eight") {
  const Experiment experiment(preset_config("mamba_middle_hybrid", 4, 64));
  CHECK(experiment.model->blocks() == 8);
  CHECK(experiment.params.find("blocks.3.attention.qkv.weight") != nullptr);
  for (const int block : {0, 1, 2, 4, 5, 6, 7}) {
    CHECK(experiment.params.find(fmt::format("blocks.{}.mamba.a_log", block)) != nullptr);
  }
}

TEST_CASE("presets: later tokens leave earlier outputs as they are, bit for bit") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
    constexpr std::int64_t kTokens = 40;
    const LiveModel live(Backend::Cpu, precision, small_config("M A S Sm", Positions::None), {5, 1, 0, kTokens});
    const DType dtype = live.device.ctx().compute_dtype();
    HostTensor tokens = randn({2, kTokens, 8});
    const auto outputs = [&] {
      return live.device.values(live.model(live.device.ctx(), live.device.tensor(tokens.shape, dtype, tokens.values)));
    };
    const std::vector<double> before = outputs();
    constexpr std::int64_t kCut = 17;
    for (std::int64_t i = 0; i < 2 * kTokens * 8; ++i) {
      if (i / 8 % kTokens >= kCut) tokens.values[static_cast<std::size_t>(i)] += 3;
    }
    const std::vector<double> after = outputs();
    for (std::int64_t i = 0; i < 2 * kTokens * 8; ++i) {
      if (i / 8 % kTokens < kCut) {
        CHECK(before[static_cast<std::size_t>(i)] == after[static_cast<std::size_t>(i)]);
      }
    }
  }
}

/// Hash of the weights after 30 steps of the small run.
std::uint64_t trained_hash(Backend backend, const RunConfig& config, bool captured) {
  TinySession tiny(config, backend);
  const Context& ctx = tiny.session.ctx();
  tiny.session.initialize();
  MetricsRing metrics(ctx, tiny.session.runtime(), 64);
  const StepParts parts{tiny.experiment.task.get(),
                        tiny.experiment.model.get(),
                        &tiny.experiment.params,
                        &metrics,
                        tiny.experiment.optimizer,
                        tiny.experiment.schedule,
                        {RandomDomain::Train, config.train.batch, 0, false}};
  const std::int64_t points = tiny.experiment.task->final_points();
  StepGraph graph(ctx, tiny.session.range(), "training step",
                  [parts, points](const Context& c) { train_step(c, parts, points); });
  graph.plan();
  graph.run_eager();
  if (captured) graph.capture();
  for (int step = 1; step < 30; ++step) {
    if (captured) {
      graph.replay();
    } else {
      graph.run_eager();
    }
  }
  return tiny.experiment.params.hash(ctx);
}

void check_reproducible(Backend backend, const char* precision) {
  for (const char* preset :
       {"mamba", "s4", "s4_mamba", "standard_hybrid", "mambaformer", "transformer_initial_mamba"}) {
    CAPTURE(std::string(preset));
    CAPTURE(std::string(precision));
    const RunConfig config =
        tiny_config({fmt::format("model.preset={}", preset), fmt::format("train.precision={}", precision)});
    const std::uint64_t hash = trained_hash(backend, config, true);
    CHECK(hash == trained_hash(backend, config, true));
    CHECK(hash == trained_hash(backend, config, false));
  }
}

TEST_CASE("presets: training is the same bits, captured or not, time after time") {
  for (const char* precision : {"fp32", "bf16", "fp64"}) check_reproducible(Backend::Cpu, precision);
}

TEST_CASE("presets: CUDA: training is the same bits, captured or not, time after time") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "tf32", "bf16"}) check_reproducible(Backend::Cuda, precision);
}

}  // namespace
}  // namespace graft::test
