// Which parameters weight decay takes part of: matrices, convolutions, embeddings, A and skip of state-space mixers of
// both Mambas, gates, and the gain of a final RMS norm. Biases, the gains of all other norms and S4's parameters stay.

#include <doctest/doctest.h>

#include <set>
#include <string>
#include <vector>

#include "train/experiment.h"

namespace graft::test {
namespace {

using Names = std::set<std::string>;

struct Decay {
  Names decayed, kept;
};

/// Parameters of a preset with one layer of each kind that it has; "blocks." is left out of the names.
Decay decay_of(const std::string& preset, const std::string& task, std::vector<std::string> keys = {}) {
  for (const char* key : {"model.width=32", "model.heads=2", "model.state=8"}) keys.emplace_back(key);
  keys.push_back("task.name=" + task);
  keys.push_back("model.preset=" + preset);
  const Experiment experiment(parse_config("# all defaults\n", "decay.toml", keys));
  Decay decay;
  for (const ParameterStore::Entry& entry : experiment.params.entries()) {
    const std::string name = entry.name.starts_with("blocks.") ? entry.name.substr(7) : entry.name;
    (entry.options.decay ? decay.decayed : decay.kept).insert(name);
  }
  return decay;
}

void check(const Decay& got, const Names& decayed, const Names& kept) {
  CHECK(got.decayed == decayed);
  CHECK(got.kept == kept);
}

const char* const kVectors = "linear_regression";
const char* const kIds = "ngram_retrieval";

TEST_CASE("weight decay: Transformers") {
  check(decay_of("transformer", kVectors, {"model.layers=1"}),
        {"read_in.weight", "positions.weight", "0.attention.qkv.weight", "0.attention.out.weight", "1.mlp.in.weight",
         "1.mlp.out.weight", "read_out.weight"},
        {"read_in.bias", "0.norm.gain", "0.norm.bias", "0.attention.qkv.bias", "0.attention.out.bias", "1.norm.gain",
         "1.norm.bias", "1.mlp.in.bias", "1.mlp.out.bias", "final_norm.gain", "final_norm.bias", "read_out.bias"});
  check(
      decay_of("gpt_neox", kIds, {"model.layers=1"}),
      {"embedding.weight", "0.attention.qkv.weight", "0.attention.out.weight", "0.mlp.in.weight", "0.mlp.out.weight",
       "head.weight"},
      {"0.norm_attention.gain", "0.norm_attention.bias", "0.attention.qkv.bias", "0.attention.out.bias",
       "0.norm_mlp.gain", "0.norm_mlp.bias", "0.mlp.in.bias", "0.mlp.out.bias", "final_norm.gain", "final_norm.bias"});
}

TEST_CASE("weight decay: Mamba and Mamba-2") {
  check(decay_of("mamba", kIds, {"model.layers=1"}),
        {"embedding.weight", "0.mamba.in.weight", "0.mamba.conv.weight", "0.mamba.x.weight", "0.mamba.dt.weight",
         "0.mamba.a_log", "0.mamba.skip", "0.mamba.out.weight", "final_norm.gain"},
        {"0.norm.gain", "0.mamba.conv.bias", "0.mamba.dt.bias"});
  check(decay_of("mamba2", kIds, {"model.layers=1", "model.head_dim=16"}),
        {"embedding.weight", "0.mamba2.in.weight", "0.mamba2.conv.weight", "0.mamba2.a_log", "0.mamba2.skip",
         "0.mamba2.out.weight", "final_norm.gain"},
        {"0.norm.gain", "0.mamba2.conv.bias", "0.mamba2.dt.bias", "0.mamba2.norm.weight"});
  const Decay vectors = decay_of("mamba", kVectors, {"model.layers=1"});  // layer norms, the last one too
  CHECK(vectors.kept.contains("final_norm.gain"));
  CHECK(vectors.decayed.contains("1.mamba.a_log"));
}

TEST_CASE("weight decay: S4 and S4-Mamba") {
  const Names norms = {"0.norm.gain", "0.norm.bias",     "1.norm.gain",
                       "1.norm.bias", "final_norm.gain", "final_norm.bias"};
  Names kept = norms;
  for (const char* block : {"0", "1"}) {
    for (const char* name : {"c", "log_dt", "log_a_real", "a_imag", "skip"}) {
      kept.insert(std::string(block) + ".s4.s4d." + name);
    }
    kept.insert(std::string(block) + ".s4.out.bias");
  }
  kept.insert({"read_in.bias", "read_out.bias"});
  check(decay_of("s4", kVectors, {"model.layers=1"}),
        {"read_in.weight", "0.s4.out.weight", "1.s4.out.weight", "read_out.weight"}, kept);
  kept = norms;
  for (const char* block : {"0", "1"}) {
    for (const char* name : {"c", "log_dt", "log_a_real", "a_imag", "skip"}) {
      kept.insert(std::string(block) + ".s4_mamba.s4d." + name);
    }
    kept.insert(std::string(block) + ".s4_mamba.conv.bias");
  }
  kept.insert({"read_in.bias", "read_out.bias"});
  check(decay_of("s4_mamba", kVectors, {"model.layers=1"}),
        {"read_in.weight", "0.s4_mamba.in.weight", "0.s4_mamba.conv.weight", "0.s4_mamba.out.weight",
         "1.s4_mamba.in.weight", "1.s4_mamba.conv.weight", "1.s4_mamba.out.weight", "read_out.weight"},
        kept);
}

TEST_CASE("weight decay: hybrids") {
  check(decay_of("hybrid_interleaved", kIds, {"model.layers=2"}),
        {"embedding.weight", "0.mamba.in.weight", "0.mamba.conv.weight", "0.mamba.x.weight", "0.mamba.dt.weight",
         "0.mamba.a_log", "0.mamba.skip", "0.mamba.out.weight", "1.attention.qkv.weight", "1.attention.out.weight",
         "1.mlp.in.weight", "1.mlp.out.weight", "final_norm.gain"},
        {"0.norm.gain", "0.mamba.conv.bias", "0.mamba.dt.bias", "1.norm_attention.gain", "1.norm_mlp.gain",
         "1.attention.qkv.bias", "1.attention.out.bias", "1.mlp.in.bias", "1.mlp.out.bias"});
  check(
      decay_of("hybrid_two_stream", kIds, {"model.layers=1", "model.ssm=mamba2", "model.head_dim=16"}),
      {"embedding.weight", "0.mamba2.in.weight", "0.mamba2.conv.weight", "0.mamba2.a_log", "0.mamba2.skip",
       "0.mamba2.out.weight", "0.attention.qkv.weight", "0.attention.out.weight", "0.mlp.in.weight", "0.mlp.out.weight",
       "0.gate", "final_norm.gain"},
      {"0.norm_mamba2.gain", "0.mamba2.conv.bias", "0.mamba2.dt.bias", "0.mamba2.norm.weight", "0.norm_attention.gain",
       "0.norm_mlp.gain", "0.attention.qkv.bias", "0.attention.out.bias", "0.mlp.in.bias", "0.mlp.out.bias"});
  const Decay hybrid = decay_of("standard_hybrid", kVectors, {"model.layers=1"});
  CHECK(hybrid.decayed.contains("positions.weight"));
  CHECK(hybrid.decayed.contains("1.mamba.skip"));
  CHECK(hybrid.kept.contains("final_norm.gain"));
}

}  // namespace
}  // namespace graft::test
