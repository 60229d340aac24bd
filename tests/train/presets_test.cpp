// Presets from configuration to trained weights: parameter counts, FLOPs, causality, reproducible training.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "tests/models/live_model.h"
#include "tests/support/parity.h"
#include "tests/support/share.h"
#include "tests/train/tiny_run.h"
#include "train/flops.h"

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
  struct Totals {
    const char* task;
    std::int64_t steps, layers, width;
    double flops[6];
  };
  constexpr const char* kPresets[6] = {"transformer", "mamba", "s4_mamba", "s4", "standard_hybrid", "mambaformer"};
  // All tasks of 101 points have the same totals.
  for (const Totals& row :
       {Totals{"linear_regression", 500000, 2, 128, {6.73e15, 7.82e15, 7.06e15, 2.51e15, 6.58e15, 8.53e15}},
        Totals{"linear_regression", 500000, 6, 128, {2.01e16, 2.34e16, 2.11e16, 7.43e15, 1.97e16, 2.16e16}},
        Totals{"linear_regression", 500000, 12, 256, {1.53e17, 1.69e17, 1.57e17, 5.38e16, 1.41e17, 1.48e17}},
        Totals{"sparse_linear_regression", 100000, 2, 128, {3.37e15, 3.48e15, 3.14e15, 1.11e15, 3.30e15, 4.17e15}},
        Totals{"relu_2nn_regression", 500000, 3, 64, {8.54e15, 8.60e15, 7.42e15, 2.74e15, 9.09e15, 1.05e16}},
        Totals{"decision_tree", 500000, 6, 128, {5.64e16, 5.76e16, 5.19e16, 1.83e16, 5.53e16, 6.01e16}},
        Totals{
            "orthogonal_outlier_regression", 500000, 12, 256, {4.04e17, 4.16e17, 3.86e17, 1.33e17, 3.74e17, 3.91e17}},
        Totals{"many_outlier_regression", 100000, 2, 128, {2.56e16, 1.51e16, 1.36e16, 4.84e15, 2.53e16, 2.90e16}},
        Totals{"many_outlier_regression", 100000, 6, 128, {7.65e16, 4.51e16, 4.07e16, 1.44e16, 7.57e16, 7.94e16}},
        Totals{"many_outlier_regression", 500000, 12, 256, {2.92e18, 2.05e18, 1.91e18, 6.55e17, 2.77e18, 2.86e18}}}) {
    for (std::size_t i = 0; i < 6; ++i) {
      CAPTURE(std::string(row.task));
      CAPTURE(std::string(kPresets[i]));
      CAPTURE(row.layers);
      const Experiment experiment(
          preset_config(kPresets[i], row.layers, row.width, {std::string("task.name=") + row.task}));
      const double total = count_flops(*experiment.model, *experiment.task, 64, row.steps).train_total;
      CHECK(fmt::format("{:.2e}", total) == fmt::format("{:.2e}", row.flops[i]));
    }
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

RunConfig retrieval_config(const std::string& preset, const std::vector<std::string>& more = {}) {
  std::vector<std::string> overrides = {"task.name=ngram_retrieval", "model.preset=" + preset, "model.width=1024",
                                        "model.heads=16"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return parse_config("# all defaults\n", "preset.toml", overrides);
}

TEST_CASE("presets: parameter totals of the retrieval study") {
  struct Total {
    std::string preset;
    std::vector<std::string> keys;
    std::int64_t without_embeddings;
    bool tied = true;
  };
  std::vector<Total> totals = {{"gpt_neox", {"model.layers=12"}, 151156736, false},
                               {"gpt_neox_nope", {"model.layers=12"}, 151156736, false}};
  for (const auto& [state, count] :
       {std::pair{16, 160015360}, {32, 162374656}, {64, 167093248}, {128, 176530432}, {256, 195404800}}) {
    totals.push_back({"mamba", {"model.layers=24", fmt::format("model.state={}", state)}, count});
  }
  for (const auto& [state, count] : {std::pair{16, 152894464}, {32, 153684736}, {64, 155265280}}) {
    totals.push_back({"mamba2", {"model.layers=24", fmt::format("model.state={}", state)}, count});
  }
  const std::int64_t interleaved[2][4] = {{154092544, 155573248, 162980864, 157053952},
                                          {151718912, 152012800, 158530304, 152306688}};
  const std::int64_t two_stream[2] = {154092552, 151718920};
  for (const int kind : {0, 1}) {
    const std::string ssm = kind == 0 ? "model.ssm=mamba" : "model.ssm=mamba2";
    for (int n = 1; n <= 4; ++n) {
      totals.push_back({"hybrid_interleaved", {ssm, fmt::format("model.n={}", n)}, interleaved[kind][n - 1]});
    }
    for (const char* reversed : {"model.reversed=false", "model.reversed=true"}) {
      totals.push_back({"hybrid_two_stream", {ssm, reversed}, two_stream[kind]});
    }
  }
  for (const Total& total : totals) {
    CAPTURE(total.preset);
    CAPTURE(total.keys.front());
    CAPTURE(total.keys.back());
    for (const auto& [task, vocabulary, padded] :
         {std::tuple{"ngram_retrieval", 33, 40}, {"position_retrieval", 403, 408}}) {
      std::vector<std::string> keys = total.keys;
      keys.push_back(fmt::format("task.name={}", task));
      const Experiment experiment(retrieval_config(total.preset, keys));
      std::int64_t counted = 0;
      for (const ParameterStore::Entry& entry : experiment.params.entries()) {
        if (!entry.options.embedding) counted += entry.shape.elements();
      }
      CHECK(counted == total.without_embeddings);
      CHECK(experiment.params.count() - counted == 1024 * (total.tied ? padded : 2 * vocabulary));
    }
  }
}

TEST_CASE("presets: blocks of the retrieval study's hybrids") {
  const auto pattern = [](const std::string& preset, const std::vector<std::string>& keys) {
    return Experiment(retrieval_config(preset, keys)).model_options.pattern;
  };
  CHECK(pattern("hybrid_interleaved", {}) == "(M*1 [AF])*8");
  CHECK(pattern("hybrid_interleaved", {"model.ssm=mamba2", "model.n=4"}) == "(M2*4 [AF])*4");
  CHECK(pattern("hybrid_interleaved", {"model.n=2", "model.layers=6"}) == "(M*2 [AF])*2");
  CHECK(pattern("hybrid_two_stream", {"model.ssm=mamba2"}) == "[M2|AF]*8");
  CHECK(pattern("hybrid_two_stream", {"model.reversed=true", "model.layers=2"}) == "[AF|M]*2");
  CHECK(pattern("gpt_neox", {"model.layers=3"}) == "[AF]*3");
  CHECK(pattern("gpt_neox", {"model.parallel_residual=false"}) == "(AF)*12");
  CHECK(pattern("mamba", {"model.layers=3"}) == "M*3");
  CHECK(pattern("mamba2", {}) == "M2*24");
}

TEST_CASE("presets: numbers that do not fit are refused with those that do") {
  const auto refused = [](const std::string& preset, const std::vector<std::string>& keys, const char* message) {
    CAPTURE(preset);
    CHECK_THROWS_WITH_AS(static_cast<void>(retrieval_config(preset, keys)), doctest::Contains(message), ConfigError);
  };
  refused("hybrid_interleaved", {"model.n=2", "model.layers=10"},
          "model.layers: 10 is not a multiple of 3, the model.n = 2 state-space blocks and one Transformer block that "
          "repeat; nearest that are: 9, 12");
  refused("hybrid_interleaved", {"model.n=5"}, "model.n: got 5, expected an integer in [1, 4]");
  refused("hybrid_two_stream", {"model.ssm=mamba3"}, "expected one of \"mamba\", \"mamba2\"");
  refused("gpt_neox", {"model.heads=5"}, "model.heads: 5 does not divide model.width = 1024; nearest that do: 4, 8");
  refused("gpt_neox", {"model.rotary=0.05"}, "model.rotary: 0.05 turns 3 of the 64 columns of a head");
  refused("mamba2", {"model.head_dim=60"}, "model.head_dim");
  refused("mamba2", {"model.groups=3"}, "model.groups");
  refused("mamba2", {"model.state=512"}, "model.state");
  refused("mamba2", {"model.n=2"}, "model.n");
}

void check_reproducible(Backend backend, const char* precision) {
  for (const char* preset :
       {"mamba", "s4", "s4_mamba", "standard_hybrid", "mambaformer", "transformer_initial_mamba"}) {
    CAPTURE(std::string(preset));
    CAPTURE(std::string(precision));
    if (!in_share(fmt::format("{} {}", preset, precision))) continue;
    const RunConfig config =
        tiny_config({fmt::format("model.preset={}", preset), fmt::format("train.precision={}", precision)});
    const std::uint64_t hash = trained_hash(backend, config, true);
    CHECK(hash == trained_hash(backend, config, true));
    CHECK(hash == trained_hash(backend, config, false));
  }
}

/// A model that a test can train on a token task.
RunConfig small_retrieval_config(const std::string& preset, int width, int layers, const char* precision) {
  std::vector<std::string> keys = {"task.length_min=20",
                                   "task.length_max=30",
                                   "task.eval_length=30",
                                   fmt::format("model.width={}", width),
                                   "model.heads=2",
                                   fmt::format("model.layers={}", layers),
                                   "train.batch=8",
                                   "optimizer.name=adamw",
                                   "optimizer.weight_decay=0.01",
                                   "optimizer.lr=1e-3",
                                   fmt::format("train.precision={}", precision)};
  if (preset == "mamba2") keys.emplace_back("model.head_dim=32");
  return retrieval_config(preset, keys);
}

/// The small run with a token task's preset: its weights, captured and not.
void check_tokens_reproducible(Backend backend, const char* precision) {
  for (const char* preset : {"gpt_neox", "mamba", "mamba2", "hybrid_interleaved", "hybrid_two_stream"}) {
    CAPTURE(std::string(preset));
    CAPTURE(std::string(precision));
    if (!in_share(fmt::format("{} {}", preset, precision))) continue;
    const RunConfig config = small_retrieval_config(preset, 32, 2, precision);
    const std::uint64_t hash = trained_hash(backend, config, true);
    CHECK(hash == trained_hash(backend, config, true));
    CHECK(hash == trained_hash(backend, config, false));
  }
}

/// 20 runs of 100 steps a cell, captured and eager: one hash a cell.
void check_campaign(const char* precision) {
  struct Cell {
    const char* preset;
    bool tokens;
  };
  for (const Cell& cell : {Cell{"mamba", false},
                           {"mamba2", true},
                           {"s4_mamba", false},
                           {"mambaformer", false},
                           {"hybrid_two_stream", true}}) {
    const RunConfig config = cell.tokens ? small_retrieval_config(cell.preset, 128, 4, precision)
                                         : tiny_config({fmt::format("model.preset={}", cell.preset), "model.width=128",
                                                        fmt::format("train.precision={}", precision)});
    const std::uint64_t hash = trained_hash(Backend::Cuda, config, true, 100);
    int same = 1;
    for (int run = 1; run < 40; ++run) {
      if (trained_hash(Backend::Cuda, config, run % 2 == 0, 100) == hash) ++same;
    }
    MESSAGE(std::string(cell.preset) << " " << std::string(precision) << ": " << same
                                     << " of 40 runs (20 captured, 20 eager) end in hash "
                                     << fmt::format("{:016x}", hash));
    CHECK(same == 40);
  }
}

TEST_SUITE("slow") {
  TEST_CASE("presets: CUDA: 20 runs of 100 steps end in the same bits, fp32") {
    if (skip_cuda()) return;
    check_campaign("fp32");
  }
  TEST_CASE("presets: CUDA: 20 runs of 100 steps end in the same bits, bf16") {
    if (skip_cuda()) return;
    check_campaign("bf16");
  }
}

TEST_CASE("presets: training is the same bits, captured or not, time after time") {
  for (const char* precision : {"fp32", "bf16", "fp64"}) check_reproducible(Backend::Cpu, precision);
}

TEST_CASE("presets: training on token ids is the same bits, captured or not, time after time") {
  for (const char* precision : {"fp32", "bf16", "fp64"}) check_tokens_reproducible(Backend::Cpu, precision);
}

TEST_CASE("presets: CUDA: training on token ids is the same bits, captured or not, time after time") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "tf32", "bf16"}) check_tokens_reproducible(Backend::Cuda, precision);
}

TEST_CASE("presets: CUDA: training is the same bits, captured or not, time after time") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "tf32", "bf16"}) check_reproducible(Backend::Cuda, precision);
}

}  // namespace
}  // namespace graft::test
