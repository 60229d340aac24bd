// train.recompute: the same training in less memory, and what a run that does not fit is told.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "models/model_config.h"
#include "tests/support/parity.h"
#include "tests/support/share.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"
#include "train/config_schema.h"
#include "train/experiment.h"

namespace graft::test {
namespace {

constexpr const char* kRecompute = "train.recompute=true";

std::vector<std::string> presets() {
  std::vector<std::string> names = Schema().owners("model");
  std::erase_if(names, [](const std::string& name) { return !is_registered_preset(name); });
  return names;
}

RunConfig with(std::vector<std::string> overrides, const std::string& more = {}) {
  if (!more.empty()) overrides.push_back(more);
  return tiny_config(overrides);
}

void check_same_bits(Backend backend, const std::string& text, const std::vector<std::string>& overrides) {
  constexpr int kSteps = 5;
  const RunConfig config = parse_config(text, "kept.toml", overrides);
  std::vector<std::string> more = overrides;
  more.emplace_back(kRecompute);
  const RunConfig recomputed = parse_config(text, "recomputed.toml", more);
  const std::uint64_t hash = trained_hash(backend, config, true, kSteps);
  CHECK(trained_hash(backend, recomputed, true, kSteps) == hash);
  CHECK(trained_hash(backend, recomputed, false, kSteps) == hash);
}

void check_all(Backend backend, const std::string& precision) {
  CAPTURE(precision);
  const std::vector<std::string> names = presets();
  CHECK(names.size() >= 12);
  for (const std::string& preset : names) {
    CAPTURE(preset);
    if (!in_share(fmt::format("{} {}", preset, precision))) continue;
    check_same_bits(backend, kTinyConfig, {"model.preset=" + preset, "model.width=32", "train.precision=" + precision});
  }
  for (const std::string preset : {"gpt_neox", "hybrid_two_stream"}) {
    CAPTURE(preset);
    if (!in_share(fmt::format("{} on token ids {}", preset, precision))) continue;
    check_same_bits(backend, "[task]\nname = \"ngram_retrieval\"\nlength_min = 20\nlength_max = 30\neval_length = 30\n",
                    {"model.preset=" + preset, "model.width=32", "model.heads=2", "model.layers=2", "train.batch=8",
                     "train.precision=" + precision});
  }
}

TEST_CASE("recompute: every preset trains to the same bits, captured or not") {
  for (const char* precision : {"fp32", "bf16"}) check_all(Backend::Cpu, precision);
}

TEST_CASE("recompute: CUDA: every preset trains to the same bits, captured or not") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "tf32", "bf16"}) check_all(Backend::Cuda, precision);
}

TEST_CASE("recompute: a run's records are the same, and it may be switched on in the middle") {
  const TemporaryDirectory directory;
  const std::vector<std::string> dropout = {"model.preset=s4_mamba", "checkpoint.every=30"};
  const TrainingOutcome kept = train_in(directory / "kept", with(dropout));
  const TrainingOutcome again = train_in(directory / "again", with(dropout, kRecompute));
  CHECK(again.parameter_hash == kept.parameter_hash);
  CHECK(lines_without_times(directory / "again" / "metrics.jsonl") ==
        lines_without_times(directory / "kept" / "metrics.jsonl"));

  std::vector<std::string> half = dropout;
  half.emplace_back("train.steps=30");
  static_cast<void>(train_in(directory / "changed", with(half)));
  CHECK(train_in(directory / "changed", with(dropout, kRecompute)).parameter_hash == kept.parameter_hash);
}

TEST_CASE("recompute: a plan of six layers takes less than half the memory") {
  for (const char* preset : {"transformer", "mamba", "s4_mamba", "hybrid_two_stream"}) {
    CAPTURE(std::string(preset));
    const std::vector<std::string> overrides = {fmt::format("model.preset={}", preset), "model.layers=6",
                                                "model.width=64", "task.points=20"};
    const MemoryReport kept = plan_memory_on_paper(with(overrides));
    const MemoryReport again = plan_memory_on_paper(with(overrides, kRecompute));
    MESSAGE(std::string(preset) << ": activations of 6 layers " << kept.activations << " bytes, recomputed "
                                << again.activations);
    CHECK(2 * again.activations < kept.activations);
    CHECK(again.parameters == kept.parameters);
    CHECK(again.optimizer == kept.optimizer);
  }
}

/// The number behind `before` in a text; -1 if it is not there.
std::int64_t number_after(const std::string& text, const std::string& before) {
  const std::size_t at = text.find(before);
  return at == std::string::npos ? -1 : std::stoll(text.substr(at + before.size()));
}

std::size_t activations(RunConfig config, std::int64_t batch) {
  config.train.batch = batch;
  return plan_memory_on_paper(config).activations;
}

TEST_CASE("out of memory: the advice names the largest tensors and changes that fit") {
  const std::vector<std::string> overrides = {"model.layers=6", "train.batch=64", "task.points=20"};
  const RunConfig config = with(overrides);
  const RunConfig recomputed = with(overrides, kRecompute);
  const MemoryReport memory = plan_memory_on_paper(config);

  SUBCASE("in half the memory") {
    const std::size_t room = memory.activations / 2;
    const std::string advice = out_of_memory_advice(config, memory, room);
    CAPTURE(advice);
    CHECK(advice.find("6 x mlp ") != std::string::npos);
    const std::int64_t batch = number_after(advice, "what would fit: train.batch = ");
    REQUIRE(batch > 0);
    CHECK(activations(config, batch) <= room);
    CHECK(activations(config, batch + 2) > room - room / 16);
    CHECK(advice.find("or train.recompute = true (") != std::string::npos);
    CHECK(plan_memory_on_paper(recomputed).activations <= room);
  }
  SUBCASE("in a tenth, where recomputing needs a smaller batch too") {
    const std::size_t room = memory.activations / 10;
    const std::string advice = out_of_memory_advice(config, memory, room);
    CAPTURE(advice);
    const std::int64_t plain = number_after(advice, "what would fit: train.batch = ");
    const std::int64_t batch = number_after(advice, "or train.recompute = true with train.batch = ");
    CHECK(batch > plain);
    CHECK(activations(recomputed, batch) <= room);
    CHECK(advice.find("bf16") == std::string::npos);  // not enough on its own, nor with the other
  }
  SUBCASE("in so little that only recomputing and bfloat16 together are enough") {
    const std::size_t both = plan_memory_on_paper(with(overrides, "train.precision=bf16")).total();
    const std::size_t lasting = memory.total() - memory.activations;
    std::vector<std::string> pair = overrides;
    pair.emplace_back(kRecompute);
    const std::size_t needed = plan_memory_on_paper(with(pair, "train.precision=bf16")).total() - lasting;
    const std::size_t alone = std::min(plan_memory_on_paper(recomputed).activations, both - lasting);
    CAPTURE(needed);
    CAPTURE(alone);
    REQUIRE(needed < alone - alone / 8);
    const std::string advice = out_of_memory_advice(config, memory, (needed + alone) / 2);
    CAPTURE(advice);
    CHECK(advice.find("or train.recompute = true with train.precision = \"bf16\" (") != std::string::npos);
    CHECK(advice.find("or train.precision") == std::string::npos);
    CHECK(advice.find("or train.recompute = true (") == std::string::npos);
    CHECK(advice.find("--jobs") == std::string::npos);
    // Where one of them is enough, nobody has to do both.
    const std::string roomy = out_of_memory_advice(config, memory, memory.activations / 10 * 9);
    CHECK(roomy.find("with train.precision") == std::string::npos);
  }
  SUBCASE("beside other runs") {
    for (const std::size_t room : {memory.activations / 2, std::size_t{1000}, std::size_t{0}}) {
      CHECK(out_of_memory_advice(config, memory, room, 4)
                .ends_with("; 4 runs share the memory: a smaller --jobs leaves each of them more"));
    }
  }
  SUBCASE("in nine tenths, where bfloat16 is enough") {
    const std::string advice = out_of_memory_advice(config, memory, memory.activations / 10 * 9);
    CHECK(advice.find("or train.precision = \"bf16\" (") != std::string::npos);
  }
  SUBCASE("with recomputation on already") {
    const MemoryReport own = plan_memory_on_paper(recomputed);
    const std::string advice = out_of_memory_advice(recomputed, own, own.activations / 2);
    CHECK(number_after(advice, "what would fit: train.batch = ") > 0);
    CHECK(advice.find("recompute") == std::string::npos);
  }
  SUBCASE("no batch fits") {
    CHECK(out_of_memory_advice(config, memory, 1000).find("no batch fits: use a smaller model") != std::string::npos);
  }
  SUBCASE("not even the parameters fit") {
    CHECK(out_of_memory_advice(config, memory, 0).find("parameters, gradients and optimizer take ") == 0);
  }
}

}  // namespace
}  // namespace graft::test
