// Parameter counts against the closed forms and the published configurations' totals.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <vector>

#include "models/model_config.h"
#include "models/sequence_model.h"
#include "train/experiment.h"

namespace graft::test {
namespace {

struct Counts {
  std::int64_t all = 0;
  std::int64_t backbone = 0;  // blocks and final norm
  std::int64_t positions = 0;
  std::int64_t shell = 0;               // read-in and read-out
  std::int64_t without_embeddings = 0;  // no position table either
};

Counts count(const ParameterStore& store) {
  Counts counts;
  for (const ParameterStore::Entry& entry : store.entries()) {
    const std::int64_t n = entry.shape.elements();
    if (entry.name.starts_with("blocks.") || entry.name.starts_with("final_norm.")) counts.backbone += n;
    if (entry.name.starts_with("positions.")) counts.positions += n;
    if (entry.name.starts_with("read_")) counts.shell += n;
    if (!entry.options.embedding) counts.without_embeddings += n;
  }
  counts.all = store.count();
  return counts;
}

Counts transformer(std::int64_t layers, std::int64_t width, std::int64_t input, std::int64_t rows) {
  ParameterStore store;
  ModelConfig config;
  config.pattern = fmt::format("(AF)*{}", layers);
  config.width = width;
  config.layers = layers;
  const SequenceModel model(store, config, {input, 1, 0, rows});
  CHECK(model.blocks() == 2 * layers);
  return count(store);
}

std::int64_t single_block(const char* pattern, std::int64_t width) {
  ParameterStore store;
  ModelConfig config;
  config.pattern = pattern;
  config.width = width;
  const SequenceModel model(store, config, {20, 1, 0, 82});
  return count(store).backbone - 2 * width;
}

TEST_CASE("parameters: attention has 4 d^2 + 6 d, an MLP 8 d^2 + 7 d, norms included") {
  for (const std::int64_t d : {8, 64, 128, 256, 768}) {
    CHECK(single_block("A", d) == 4 * d * d + 6 * d);
    CHECK(single_block("F", d) == 8 * d * d + 7 * d);
  }
  CHECK(single_block("A", 256) == 263680);
  CHECK(single_block("F", 256) == 526080);
  CHECK(single_block("AF", 768) == 7087872);
}

TEST_CASE("parameters: Transformer totals of the in-context-learning study") {
  struct Row {
    std::int64_t layers, width, backbone;
  };
  const Row rows[] = {{2, 64, 100096},   {2, 128, 396800},  {3, 64, 150080},    {4, 64, 200064},     {4, 128, 793344},
                      {6, 128, 1189888}, {6, 256, 4739072}, {12, 256, 9477632}, {24, 768, 170110464}};
  for (const Row& row : rows) {
    CAPTURE(row.layers);
    CAPTURE(row.width);
    for (const auto& [input, positions] : {std::pair{20, 82}, {20, 202}, {10, 280}, {20, 1024}, {3, 16}, {1, 2}}) {
      const Counts counts = transformer(row.layers, row.width, input, positions);
      const std::int64_t d = row.width;
      CHECK(counts.backbone == row.backbone);
      CHECK(counts.shell == input * d + d + d + 1);  // padding of stored widths does not count
      CHECK(counts.positions == positions * d);
      CHECK(counts.all == counts.backbone + counts.shell + counts.positions);
      CHECK(counts.without_embeddings == counts.all - counts.positions);
    }
  }
}

TEST_CASE("parameters: a table of token ids counts its vocabulary once, tied as it is") {
  ParameterStore store;
  ModelConfig config;
  config.pattern = "AF";
  config.width = 64;
  const SequenceModel model(store, config, {0, 0, 101, 40});
  const Counts counts = count(store);
  CHECK(counts.all == 101 * 64 + 40 * 64 + 49984 + 128);
  CHECK(counts.without_embeddings == counts.backbone);
}

TEST_CASE("parameters: without model.layers, mamba has 24 blocks on token ids, 12 layers of two on vectors") {
  const auto pattern = [](const std::vector<std::string>& keys) {
    return model_config(parse_config("[model]\npreset = \"mamba\"\nwidth = 16\n", "counts.toml", keys).settings)
        .pattern;
  };
  CHECK(pattern({"task.name=ngram_retrieval"}) == "M*24");
  CHECK(pattern({"task.name=position_retrieval"}) == "M*24");
  CHECK(pattern({"task.name=ngram_retrieval", "model.layers=12"}) == "M*12");
  CHECK(pattern({"task.name=linear_regression"}) == "M*24");  // 12 layers
  CHECK(pattern({"task.name=linear_regression", "model.layers=3"}) == "M*6");
}

TEST_CASE("parameters: presets of a configuration are those models") {
  const char* text = R"([task]
name = "linear_regression"
[model]
preset = "transformer"
layers = 12
width = 256
heads = 8
)";
  const Experiment experiment(parse_config(text, "counts.toml"));
  CHECK(count(experiment.params).backbone == 9477632);
  CHECK(count(experiment.params).positions == 82 * 256);
  CHECK(experiment.params.count() == 9477632 + 82 * 256 + 20 * 256 + 256 + 257);

  const Experiment longer(parse_config(text, "counts.toml", {"model.position_rows=202"}));
  CHECK(count(longer.params).positions == 202 * 256);

  const Experiment without(parse_config(text, "counts.toml", {"model.preset=transformer_nope"}));
  CHECK(without.params.count() == 9477632 + 20 * 256 + 256 + 257);
  CHECK(without.params.find("positions.weight") == nullptr);

  const Experiment pattern(parse_config(text, "counts.toml", {"model.pattern=(AF)*12"}));
  CHECK(count(pattern.params).backbone == 9477632);
}

}  // namespace
}  // namespace graft::test
