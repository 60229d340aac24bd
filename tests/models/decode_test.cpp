// Reading a sequence piece by piece gives what reading it whole gives, for every preset.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/step_graph.h"
#include "models/generate.h"
#include "tests/models/live_model.h"
#include "tests/support/parity.h"
#include "train/config.h"

namespace graft::test {
namespace {

constexpr std::int64_t kBatch = 2;
constexpr std::int64_t kTokens = 23;
constexpr std::int64_t kVocabulary = 11;

ModelConfig preset(const std::string& name, bool tokens, const std::vector<std::string>& more = {}) {
  std::vector<std::string> keys = {tokens ? "task.name=ngram_retrieval" : "task.name=linear_regression",
                                   "model.preset=" + name,
                                   "model.width=32",
                                   "model.heads=2",
                                   "model.layers=2",
                                   "model.state=8"};
  keys.insert(keys.end(), more.begin(), more.end());
  return model_config(parse_config("# all defaults\n", "decode.toml", keys).settings);
}

struct Case {
  std::string name;
  ModelConfig config;
  bool tokens = false;
};

std::vector<Case> all_presets() {
  std::vector<Case> cases;
  for (const char* name : {"transformer", "transformer_nope", "mamba", "s4", "s4_mamba", "standard_hybrid",
                           "mambaformer", "transformer_initial_mamba", "mamba_middle_hybrid"}) {
    cases.push_back({name, preset(name, false), false});
  }
  const std::vector<std::string> mamba2 = {"model.ssm=mamba2", "model.head_dim=16"};
  cases.push_back({"transformer on ids", preset("transformer", true), true});
  cases.push_back({"gpt_neox", preset("gpt_neox", true), true});
  cases.push_back({"gpt_neox_nope", preset("gpt_neox_nope", true), true});
  cases.push_back({"mamba on ids", preset("mamba", true), true});
  cases.push_back({"mamba2", preset("mamba2", true, {"model.head_dim=16", "model.groups=2"}), true});
  cases.push_back({"hybrid_interleaved", preset("hybrid_interleaved", true), true});
  cases.push_back({"hybrid_interleaved mamba2", preset("hybrid_interleaved", true, mamba2), true});
  cases.push_back({"hybrid_two_stream", preset("hybrid_two_stream", true), true});
  cases.push_back({"hybrid_two_stream mamba2", preset("hybrid_two_stream", true, mamba2), true});
  std::vector<std::string> reversed = mamba2;
  reversed.emplace_back("model.reversed=true");
  cases.push_back({"hybrid_two_stream reversed", preset("hybrid_two_stream", true, reversed), true});
  return cases;
}

/// A live model whose gates are open.
void open_gates(LiveModel& live) {
  for (const ParameterStore::Entry& entry : live.store.entries()) {
    if (entry.name.ends_with(".gate"))
      live.store.write(live.device.ctx(), entry, ParameterStore::Buffer::Weights, {0.5});
  }
}

/// The larger one; anything that is not finite counts as infinite.
double larger(double worst, double value) {
  return std::isfinite(value) ? std::max(worst, std::abs(value)) : std::numeric_limits<double>::infinity();
}

/// Largest difference between the outputs for a whole sequence and those for its pieces, relative to the largest
/// output.
double worst_difference(Backend backend, Precision precision, const Case& model,
                        const std::vector<std::int64_t>& pieces) {
  LiveModel live(backend, precision, model.config, {model.tokens ? 0 : 5, 1, model.tokens ? kVocabulary : 0, kTokens});
  open_gates(live);
  const Context& ctx = live.device.ctx();
  const std::int64_t inner = model.tokens ? 1 : 8;
  const HostTensor input = model.tokens ? integers({kBatch, kTokens}, kVocabulary) : randn({kBatch, kTokens, 8});
  const auto piece_of = [&](std::int64_t first, std::int64_t count) {
    std::vector<double> values;
    for (std::int64_t b = 0; b < kBatch; ++b) {
      const auto from = input.values.begin() + static_cast<std::ptrdiff_t>((b * kTokens + first) * inner);
      values.insert(values.end(), from, from + static_cast<std::ptrdiff_t>(count * inner));
    }
    return model.tokens ? live.device.tensor({kBatch, count}, DType::I32, values)
                        : live.device.tensor({kBatch, count, 8}, ctx.compute_dtype(), values);
  };
  const auto outputs = [&](const Tensor& x) { return model.tokens ? live.model.logits(ctx, x) : live.model(ctx, x); };
  const std::vector<double> whole = live.device.values(outputs(piece_of(0, kTokens)));
  const std::size_t columns = whole.size() / static_cast<std::size_t>(kBatch * kTokens);
  double size = 0;
  for (const double value : whole) size = larger(size, value);

  const DecodeState state = live.model.make_state(ctx, kBatch, kTokens);
  double worst = 0;
  for (int round = 0; round < 2; ++round) {  // the second time from a state that was cleared
    std::int64_t read = 0;
    for (const std::int64_t count : pieces) {
      const Tensor x = piece_of(read, count);
      const std::vector<double> got =
          live.device.values(model.tokens ? live.model.extend_logits(ctx, x, state) : live.model.extend(ctx, x, state));
      for (std::int64_t b = 0; b < kBatch; ++b) {
        for (std::int64_t t = 0; t < count; ++t) {
          for (std::size_t c = 0; c < columns; ++c) {
            const std::size_t at = static_cast<std::size_t>(b * kTokens + read + t) * columns + c;
            worst = larger(worst, got[static_cast<std::size_t>(b * count + t) * columns + c] - whole[at]);
          }
        }
      }
      read += count;
    }
    REQUIRE(read == kTokens);
    live.model.clear(ctx, state);
  }
  REQUIRE(std::isfinite(size));
  return worst / size;
}

const std::vector<std::int64_t> kPrefillThenOneByOne = {15, 1, 1, 1, 1, 1, 1, 1, 1};
const std::vector<std::int64_t> kPieces = {1, 6, 2, 11, 3};

TEST_CASE("decode: pieces give what the whole sequence gives, for every preset") {
  for (const Case& model : all_presets()) {
    CAPTURE(model.name);
    for (const auto& pieces : {kPrefillThenOneByOne, kPieces, std::vector<std::int64_t>(kTokens, 1)}) {
      CHECK(worst_difference(Backend::Cpu, Precision::Fp64, model, pieces) < 1e-10);
    }
    CHECK(worst_difference(Backend::Cpu, Precision::Fp32, model, kPieces) < 1e-5);
    // every block rounds its branch to 8 bits, and pieces round other intermediate values than the whole
    CHECK(worst_difference(Backend::Cpu, Precision::Bf16, model, kPieces) < 4e-2);
  }
}

TEST_CASE("decode: CUDA: pieces give what the whole sequence gives, for every preset") {
  if (skip_cuda()) return;
  for (const Case& model : all_presets()) {
    CAPTURE(model.name);
    for (const auto& pieces : {kPrefillThenOneByOne, kPieces}) {
      CHECK(worst_difference(Backend::Cuda, Precision::Fp32, model, pieces) < 1e-5);
      CHECK(worst_difference(Backend::Cuda, Precision::Tf32, model, pieces) < 5e-3);
      CHECK(worst_difference(Backend::Cuda, Precision::Bf16, model, pieces) < 4e-2);
    }
  }
}

void check_generation(Backend backend, const Case& model) {
  CAPTURE(model.name);
  const LiveModel live(backend, backend == Backend::Cpu ? Precision::Fp64 : Precision::Fp32, model.config,
                       {0, 1, kVocabulary, kTokens});
  const Context& ctx = live.device.ctx();
  const HostTensor prompt = integers({kBatch, 7}, kVocabulary);
  const Generation generation = generate_greedily(ctx, live.model, live.device.tensor(prompt), 9);
  REQUIRE(generation.ids.size() == 9);
  CHECK(generation.logits.empty());
  // the same without any state: the whole sequence again for every id
  std::vector<std::vector<double>> sequences(kBatch);
  for (std::int64_t b = 0; b < kBatch; ++b) {
    sequences[static_cast<std::size_t>(b)] = {prompt.values.begin() + b * 7, prompt.values.begin() + (b + 1) * 7};
  }
  for (const Tensor& ids : generation.ids) {
    const auto tokens = static_cast<std::int64_t>(sequences[0].size());
    std::vector<double> flat;
    for (const auto& sequence : sequences) flat.insert(flat.end(), sequence.begin(), sequence.end());
    const Tensor logits = live.model.logits(ctx, live.device.tensor({kBatch, tokens}, DType::I32, flat));
    const std::vector<double> values = live.device.values(logits);
    const std::vector<double> chosen = live.device.values(ids);
    for (std::int64_t b = 0; b < kBatch; ++b) {
      const auto row = values.begin() + static_cast<std::ptrdiff_t>((b * tokens + tokens - 1) * logits.shape()[2]);
      const auto best = std::max_element(row, row + static_cast<std::ptrdiff_t>(live.model.output_columns())) - row;
      CHECK(chosen[static_cast<std::size_t>(b)] == static_cast<double>(best));
      sequences[static_cast<std::size_t>(b)].push_back(static_cast<double>(best));
    }
  }
}

std::vector<Case> generating_presets() {
  const std::vector<std::string> mamba2 = {"model.ssm=mamba2", "model.head_dim=16"};
  return {{"hybrid_interleaved", preset("hybrid_interleaved", true), true},
          {"mamba2", preset("mamba2", true, {"model.head_dim=16"}), true},
          {"hybrid_two_stream mamba2", preset("hybrid_two_stream", true, mamba2), true}};
}

TEST_CASE("decode: greedy generation is what the whole forward pass would choose") {
  for (const Case& model : generating_presets()) check_generation(Backend::Cpu, model);
}

TEST_CASE("decode: CUDA: greedy generation is what the whole forward pass would choose") {
  if (skip_cuda()) return;
  for (const Case& model : generating_presets()) check_generation(Backend::Cuda, model);
}

TEST_CASE("decode: what does not fit a state is refused") {
  const LiveModel live(Backend::Cpu, Precision::Fp32, preset("transformer", true), {0, 1, kVocabulary, 16});
  const Context& ctx = live.device.ctx();
  const DecodeState state = live.model.make_state(ctx, 2, 8);
  CHECK_THROWS_WITH_AS(
      static_cast<void>(live.model.extend_logits(ctx, live.device.tensor(integers({3, 4}, kVocabulary)), state)),
      doctest::Contains("3 sequences, expected the state's 2"), ArgumentError);
  CHECK_THROWS_WITH_AS(
      static_cast<void>(live.model.extend_logits(ctx, live.device.tensor(integers({2, 9}, kVocabulary)), state)),
      doctest::Contains("9 tokens, expected at most the state's capacity of 8"), ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(live.model.make_state(ctx, 2, 17)),
                       doctest::Contains("at most the 16 rows of the position table"), ArgumentError);
  CHECK_THROWS_AS(static_cast<void>(live.model.make_state(ctx, 0, 4)), ArgumentError);

  const auto refused = [&](const DecodeState& bad, const char* message) {
    CHECK_THROWS_WITH_AS(
        static_cast<void>(live.model.extend_logits(ctx, live.device.tensor(integers({2, 4}, kVocabulary)), bad)),
        doctest::Contains(message), ArgumentError);
  };
  DecodeState bad = state;
  bad.backbone.mixers.pop_back();
  refused(bad, "model: a state of 3 mixers, expected 4");
  bad = state;
  bad.backbone.mixers[2].parts.pop_back();
  refused(bad, "attention: a state of 1 parts, expected 2");
}

}  // namespace
}  // namespace graft::test
