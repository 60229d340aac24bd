// Golden cases of language models: GPT-NeoX, Mamba, Mamba-2 and the hybrids of the retrieval study, with greedy
// generation where the case has it.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/require.h"
#include "models/generate.h"
#include "ops/cross_entropy.h"
#include "tests/support/golden_model.h"

namespace graft::test {
namespace {

/// Collects a model's pattern and the names of its parameters from what the reference holds, layer by layer.
class Reader {
 public:
  explicit Reader(const GoldenCase& golden) : golden_(golden) {
    config.init = BlockInit::Default;
    config.positions = Positions::None;
    config.gelu_erf = true;
  }

  [[nodiscard]] bool has(const std::string& name) const { return golden_.has("param." + name); }
  [[nodiscard]] const Shape& shape(const std::string& name) const { return golden_.shape("param." + name); }
  void pair(const std::string& ours, const std::string& theirs, std::vector<std::int64_t> rows = {}) {
    pairs.push_back({ours, theirs, false, std::move(rows)});
  }
  void norm(const std::string& ours, const std::string& theirs) {
    pair(ours + ".gain", theirs + ".weight");
    if (config.norm == NormKind::LayerNorm) pair(ours + ".bias", theirs + ".bias");
  }

  void mamba(const std::string& ours, const std::string& theirs) {
    config.state = shape(theirs + "A_log")[1];
    for (const auto& [own, reference] : {std::pair{"in.weight", "in_proj.weight"},
                                         {"conv.weight", "conv1d.weight"},
                                         {"conv.bias", "conv1d.bias"},
                                         {"x.weight", "x_proj.weight"},
                                         {"dt.weight", "dt_proj.weight"},
                                         {"dt.bias", "dt_proj.bias"},
                                         {"a_log", "A_log"},
                                         {"skip", "D"},
                                         {"out.weight", "out_proj.weight"}}) {
      pair(ours + "mamba." + own, theirs + reference);
    }
  }

  void mamba2(const std::string& ours, const std::string& theirs, std::int64_t groups, const char* gated_norm) {
    const std::int64_t inner = 2 * config.width;
    const std::int64_t heads = shape(theirs + "A_log")[0];
    config.state = (shape(theirs + "conv1d.weight")[0] - inner) / (2 * groups);
    config.settings.set("model.head_dim", inner / heads);
    config.settings.set("model.groups", groups);
    config.settings.set("model.gated_norm", std::string(gated_norm));
    for (const auto& [own, reference] : {std::pair{"in.weight", "in_proj.weight"},
                                         {"conv.weight", "conv1d.weight"},
                                         {"conv.bias", "conv1d.bias"},
                                         {"dt.bias", "dt_bias"},
                                         {"a_log", "A_log"},
                                         {"skip", "D"},
                                         {"norm.weight", "norm.weight"},
                                         {"out.weight", "out_proj.weight"}}) {
      pair(ours + "mamba2." + own, theirs + reference);
    }
  }

  void ssm(const std::string& ours, const std::string& theirs, std::int64_t groups = 1,
           const char* gated_norm = "group") {
    if (is_mamba2(theirs)) {
      mamba2(ours, theirs, groups, gated_norm);
    } else {
      mamba(ours, theirs);
    }
  }
  [[nodiscard]] bool is_mamba2(const std::string& theirs) const { return has(theirs + "dt_bias"); }
  [[nodiscard]] std::string ssm_symbol(const std::string& theirs) const { return is_mamba2(theirs) ? "M2" : "M"; }

  /// Attention and MLP of a GPT-NeoX layer, and their norms.
  void transformer(const std::string& attention, const std::string& attention_norm, const std::string& mlp,
                   const std::string& mlp_norm, const std::string& theirs) {
    norm(attention_norm, theirs + "input_layernorm");
    norm(mlp_norm, theirs + "post_attention_layernorm");
    const std::vector<std::int64_t> rows = rows_of_interleaved_heads(config.heads, config.width);
    for (const char* part : {"weight", "bias"}) {
      pair(attention + ".qkv." + part, theirs + "attention.query_key_value." + part, rows);
      pair(attention + ".out." + part, theirs + "attention.dense." + part);
      pair(mlp + ".in." + part, theirs + "mlp.dense_h_to_4h." + part);
      pair(mlp + ".out." + part, theirs + "mlp.dense_4h_to_h." + part);
    }
    config.mlp_width = shape(theirs + "mlp.dense_h_to_4h.weight")[0];
  }

  ModelConfig config;
  std::vector<NamePair> pairs;

 private:
  const GoldenCase& golden_;
};

/// Teacher forcing, loss and gradients, then generation.
void run_case(GoldenRun& run, const Reader& reader, std::int64_t vocabulary) {
  const GoldenCase& golden = run.golden();
  ModelShape shape;
  shape.vocabulary = vocabulary;
  shape.max_tokens = golden.shape("in.input_ids")[1];
  CaseModel live(run, reader.config, shape, reader.pairs);
  const SequenceModel& model = live.model();
  const std::int64_t columns = model.output_columns();

  const Tensor ids = run.tensor("in.input_ids");
  const std::int64_t batch = ids.shape()[0];
  const std::int64_t tokens = ids.shape()[1];
  // what position t predicts is the label of t + 1
  const std::vector<double> labels = golden.values("in.labels");
  std::vector<double> shifted(labels.size(), kIgnoredLabel);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t + 1 < tokens; ++t) {
      shifted[static_cast<std::size_t>(b * tokens + t)] = labels[static_cast<std::size_t>(b * tokens + t + 1)];
    }
  }
  Tape tape;
  const Context recording = run.ctx().with_tape(tape);
  const Tensor logits = model.logits(recording, ids);
  const Tensor loss = cross_entropy(recording, logits, run.device().tensor(ids.shape(), DType::I32, shifted), columns);
  run.check_output("out.logits", take_rows(run.device().values(logits), logits.shape()[2], columns, 1, 0));
  static_cast<void>(live.backward(tape, loss));

  if (!golden.has("out.gen.tokens")) return;
  const Shape& expected = golden.shape("out.gen.tokens");
  const std::vector<double> wanted = golden.values("out.gen.tokens");
  const Tensor prompt = run.tensor("in.gen.prompt");
  // the stored tokens may begin with the prompt
  const std::int64_t count = golden.shape("out.gen.logits")[1];
  const std::int64_t before = expected[1] - count;
  REQUIRE((before == 0 || before == prompt.shape()[1]));
  const Generation generation = generate_greedily(run.ctx(), model, prompt, count, true);
  std::vector<double> got_tokens(wanted.size());
  const std::vector<double> prompt_values = golden.values("in.gen.prompt");
  std::vector<double> got_logits(static_cast<std::size_t>(batch * count * columns));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::vector<double> chosen = run.device().values(generation.ids[static_cast<std::size_t>(i)]);
    const Tensor& row = generation.logits[static_cast<std::size_t>(i)];
    const std::vector<double> values = take_rows(run.device().values(row), row.shape()[2], columns, 1, 0);
    for (std::int64_t b = 0; b < batch; ++b) {
      got_tokens[static_cast<std::size_t>(b * expected[1] + before + i)] = chosen[static_cast<std::size_t>(b)];
      for (std::int64_t c = 0; c < columns; ++c) {
        got_logits[static_cast<std::size_t>((b * count + i) * columns + c)] =
            values[static_cast<std::size_t>(b * columns + c)];
      }
    }
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < before; ++t) {
      got_tokens[static_cast<std::size_t>(b * expected[1] + t)] =
          prompt_values[static_cast<std::size_t>(b * before + t)];
    }
  }
  CHECK_MESSAGE(got_tokens == wanted, golden.name(), ": greedy tokens");
  run.check_output("out.gen.tokens", got_tokens);
  run.check_output("out.gen.logits", got_logits);
}

void run_gpt_neox(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  Reader reader(golden);
  ModelConfig& config = reader.config;
  config.width = golden.integer("hidden_size");
  config.heads = golden.integer("num_attention_heads");
  config.tied = false;
  const nlohmann::json rotary = golden.setting("rotary_pct");  // absent: no positional signal
  config.rotary = rotary.is_null() ? 0.0 : rotary.get<double>();
  const nlohmann::json base = golden.setting("rotary_emb_base");
  if (!base.is_null()) config.rotary_base = base.get<double>();
  const bool parallel = golden.flag("use_parallel_residual");
  const std::int64_t layers = golden.integer("num_hidden_layers");
  config.pattern = fmt::format("{}*{}", parallel ? "[AF]" : "(AF)", layers);
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::string theirs = fmt::format("gpt_neox.layers.{}.", i);
    if (parallel) {
      const std::string ours = fmt::format("blocks.{}.", i);
      reader.transformer(ours + "attention", ours + "norm_attention", ours + "mlp", ours + "norm_mlp", theirs);
    } else {
      const std::string first = fmt::format("blocks.{}.", 2 * i);
      const std::string second = fmt::format("blocks.{}.", 2 * i + 1);
      reader.transformer(first + "attention", first + "norm", second + "mlp", second + "norm", theirs);
    }
  }
  reader.pair("embedding.weight", "gpt_neox.embed_in.weight");
  reader.norm("final_norm", "gpt_neox.final_layer_norm");
  reader.pair("head.weight", "embed_out.weight");
  run_case(run, reader, golden.integer("vocab_size"));
}

/// Hugging Face's Mamba and Mamba-2.
void run_hf(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  Reader reader(golden);
  ModelConfig& config = reader.config;
  config.norm = NormKind::RmsNorm;
  config.width = golden.integer("hidden_size");
  config.tied = golden.flag("tie_word_embeddings");
  const nlohmann::json groups = golden.setting("n_groups");
  for (std::int64_t i = 0; i < golden.integer("num_hidden_layers"); ++i) {
    const std::string theirs = fmt::format("backbone.layers.{}.", i);
    const std::string ours = fmt::format("blocks.{}.", i);
    config.pattern += reader.ssm_symbol(theirs + "mixer.");
    reader.norm(ours + "norm", theirs + "norm");
    reader.ssm(ours, theirs + "mixer.", groups.is_null() ? 1 : groups.get<std::int64_t>(), "all");
  }
  reader.pair("embedding.weight", "backbone.embeddings.weight");
  reader.norm("final_norm", "backbone.norm_f");
  if (!config.tied) reader.pair("head.weight", "lm_head.weight");
  run_case(run, reader, golden.integer("vocab_size"));
}

/// Mamba, Mamba-2 and the hybrids as the retrieval study's code builds them.
void run_retrievit(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  Reader reader(golden);
  ModelConfig& config = reader.config;
  config.norm = NormKind::RmsNorm;
  config.width = golden.integer("d_model");
  config.vocabulary_multiple = 8;
  const nlohmann::json transformer = golden.setting("transformer");
  if (!transformer.is_null()) {
    config.residual = Residual::Released;
    config.heads = transformer.at("num_attention_heads").get<std::int64_t>();
    config.rotary = transformer.at("rotary_pct").get<double>();
    config.rotary_base = transformer.at("rotary_emb_base").get<double>();
  }
  const nlohmann::json reverse = golden.setting("reverse");
  const bool reversed = reverse.is_boolean() && reverse.get<bool>();
  for (std::int64_t i = 0; i < golden.integer("n_layer"); ++i) {
    const std::string theirs = fmt::format("backbone.layers.{}.", i);
    const std::string ours = fmt::format("blocks.{}.", i);
    const auto attention_and_mlp = [&](const std::string& from) {
      reader.transformer(ours + "attention", ours + "norm_attention", ours + "mlp", ours + "norm_mlp", from);
    };
    if (reader.has(theirs + "beta_param")) {
      const std::string symbol = reader.ssm_symbol(theirs + "mamba_block.mixer.");
      config.pattern += reversed ? "[AF|" + symbol + "]" : "[" + symbol + "|AF]";
      attention_and_mlp(theirs + "transformer.");
      reader.norm(ours + (symbol == "M" ? "norm_mamba" : "norm_mamba2"), theirs + "mamba_block.norm");
      reader.ssm(ours, theirs + "mamba_block.mixer.");
      reader.pair(ours + "gate", theirs + "beta_param");
    } else if (reader.has(theirs + "mixer.A_log")) {
      config.pattern += reader.ssm_symbol(theirs + "mixer.");
      reader.norm(ours + "norm", theirs + "norm");
      reader.ssm(ours, theirs + "mixer.");
    } else {
      config.pattern += "[AF]";
      attention_and_mlp(theirs);
    }
  }
  reader.pair("embedding.weight", "backbone.embedding.weight");
  reader.norm("final_norm", "backbone.norm_f");
  run_case(run, reader, golden.integer("vocab_size"));
}

const RegisterGolden gpt_neox_parallel{{"gptneox_parallel*", run_gpt_neox}};
const RegisterGolden gpt_neox_sequential{{"gptneox_sequential*", run_gpt_neox}};
const RegisterGolden gpt_neox_nope{{"gptneox_nope*", run_gpt_neox}};
const RegisterGolden hf{{"hf_mamba*", run_hf}};
const RegisterGolden retrievit{{"retrievit_mamba*", run_retrievit}};
const RegisterGolden interleaved{{"hybridI_*", run_retrievit}};
const RegisterGolden two_stream{{"hybrid2S*", run_retrievit}};

}  // namespace
}  // namespace graft::test
