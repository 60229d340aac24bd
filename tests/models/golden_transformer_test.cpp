// Golden cases of the in-context-learning Transformer: vectors with interleaved answers, vectors alone, or tokens.
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/cross_entropy.h"
#include "tests/support/golden_model.h"

namespace graft::test {
namespace {

std::vector<NamePair> name_pairs(std::int64_t layers, bool tokens) {
  std::vector<NamePair> pairs = {{"positions.weight", "_backbone.wpe.weight"},
                                 {"final_norm.gain", "_backbone.ln_f.weight"},
                                 {"final_norm.bias", "_backbone.ln_f.bias"}};
  if (tokens) {
    pairs.push_back({"embedding.weight", "_read_in.weight"});
  } else {
    for (const char* part : {"weight", "bias"}) {
      pairs.push_back({fmt::format("read_in.{}", part), fmt::format("_read_in.{}", part)});
      pairs.push_back({fmt::format("read_out.{}", part), fmt::format("_read_out.{}", part)});
    }
  }
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const std::string reference = fmt::format("_backbone.h.{}.", layer);
    const auto block = [&](int second, const char* ours, const char* theirs) {
      const std::string scope = fmt::format("blocks.{}.{}.", 2 * layer + second, ours);
      const bool norm = std::string_view(ours) == "norm";
      pairs.push_back({scope + (norm ? "gain" : "weight"), reference + theirs + ".weight", !norm});
      pairs.push_back({scope + "bias", reference + theirs + ".bias"});
    };
    block(0, "norm", "ln_1");
    block(0, "attention.qkv", "attn.c_attn");
    block(0, "attention.out", "attn.c_proj");
    block(1, "norm", "ln_2");
    block(1, "mlp.in", "mlp.c_fc");
    block(1, "mlp.out", "mlp.c_proj");
  }
  return pairs;
}

ModelConfig config_of(const GoldenCase& golden) {
  require(golden.text("family") == "gpt2", "family is {}, expected gpt2", golden.text("family"));
  require(golden.setting("mixed_attn").is_null(), "mixed_attn is {}, expected null",
          golden.setting("mixed_attn").dump());
  ModelConfig config;
  config.layers = golden.integer("n_layer");
  config.pattern = fmt::format("(AF)*{}", config.layers);
  config.width = golden.integer("n_embd");
  config.heads = golden.integer("n_head");
  config.mlp_ratio = golden.shape("param._backbone.h.0.mlp.c_fc.weight")[1] / config.width;
  config.position_rows = 2 * golden.integer("n_positions");
  return config;
}
/// Token ids in, the logits of the token after the last one out.
void run_tokens(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  CaseModel model(run, config_of(golden), name_pairs(golden.integer("n_layer"), true));
  const Tensor ids = run.tensor("in.xs");
  const std::int64_t tokens = ids.shape()[1];
  std::vector<double> labels(static_cast<std::size_t>(ids.elements()), kIgnoredLabel);
  place_rows(golden.values("in.target"), 1, labels, 1, tokens, tokens - 1);
  Tape tape;
  const Context recording = run.ctx().with_tape(tape);
  const Tensor logits = model.model().logits(recording, ids);
  const Tensor loss =
      cross_entropy(recording, logits, run.device().tensor(ids.shape(), DType::I32, labels), model.shape().vocabulary);
  run.check_output("out.prediction", take_rows(run.device().values(logits), logits.shape()[2], model.shape().vocabulary,
                                               tokens, tokens - 1));
  static_cast<void>(model.backward(tape, loss));
}

void run_transformer(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  if (golden.integer("vocab_size") > 0) {
    run_tokens(run);
    return;
  }
  CaseModel model(run, config_of(golden), name_pairs(golden.integer("n_layer"), false));
  run_vector_case(run, model);
}

const RegisterGolden registered{{"icl_transformer*", run_transformer}};

}  // namespace
}  // namespace graft::test
