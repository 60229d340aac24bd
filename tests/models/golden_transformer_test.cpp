// Golden cases of the in-context-learning Transformer: vectors with interleaved answers, vectors alone, or tokens.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/parameter_store.h"
#include "engine/require.h"
#include "engine/tape.h"
#include "models/sequence_model.h"
#include "ops/cross_entropy.h"
#include "ops/squared_error.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

using Buffer = ParameterStore::Buffer;

/// A parameter of ours and what the reference calls it.
struct NamePair {
  std::string ours;
  std::string reference;
  bool transposed = false;  // the reference keeps (in, out)
};

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

std::vector<double> transposed(const std::vector<double>& values, std::int64_t rows, std::int64_t columns) {
  std::vector<double> result(values.size());
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      result[static_cast<std::size_t>(j * rows + i)] = values[static_cast<std::size_t>(i * columns + j)];
    }
  }
  return result;
}

/// [B, N, from] -> [B, N * stride, to]: row i goes to row stride * i + offset, columns beyond `from` are left alone.
void place_rows(const std::vector<double>& values, std::int64_t from, std::vector<double>& result, std::int64_t to,
                std::int64_t stride, std::int64_t offset) {
  const std::int64_t rows = static_cast<std::int64_t>(values.size()) / from;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t c = 0; c < from; ++c) {
      result[static_cast<std::size_t>((row * stride + offset) * to + c)] =
          values[static_cast<std::size_t>(row * from + c)];
    }
  }
}

/// The other way round: the leading `columns` of every row stride * i + offset.
std::vector<double> take_rows(const std::vector<double>& values, std::int64_t stored, std::int64_t columns,
                              std::int64_t stride, std::int64_t offset) {
  std::vector<double> result;
  const std::int64_t rows = static_cast<std::int64_t>(values.size()) / stored;
  for (std::int64_t row = offset; row < rows; row += stride) {
    for (std::int64_t c = 0; c < columns; ++c) result.push_back(values[static_cast<std::size_t>(row * stored + c)]);
  }
  return result;
}

/// The model of a case, with the case's weights.
class CaseModel {
 public:
  explicit CaseModel(GoldenRun& run)
      : run_(run), golden_(run.golden()), shape_(shape_of(golden_)), model_(store_, config_of(golden_), shape_) {
    store_.allocate(run.ctx());
    pairs_ = name_pairs(golden_.integer("n_layer"), shape_.vocabulary > 0);
    for (const std::string& name : golden_.names("param.")) {
      const bool known =
          std::any_of(pairs_.begin(), pairs_.end(), [&](const NamePair& pair) { return pair.reference == name; });
      if (!known) throw DataError(fmt::format("parameter {} has no counterpart in the model", name));
    }
    require(pairs_.size() == store_.entries().size(), "{} parameters, expected {}", pairs_.size(),
            store_.entries().size());
    for (const NamePair& pair : pairs_) {
      const ParameterStore::Entry& entry = find(pair);
      const std::string name = "param." + pair.reference;
      const Shape& shape = golden_.shape(name);
      const Shape expected = pair.transposed ? Shape{entry.shape[1], entry.shape[0]} : entry.shape;
      require(shape == expected, "parameter {}: {}, expected {}", pair.reference, shape.str(), expected.str());
      const std::vector<double> values = golden_.values(name);
      store_.write(run.ctx(), entry, Buffer::Weights,
                   pair.transposed ? transposed(values, shape[0], shape[1]) : values);
    }
    store_.refresh_compute_copy(run.ctx());
  }

  [[nodiscard]] const SequenceModel& model() const { return model_; }
  [[nodiscard]] const ModelShape& shape() const { return shape_; }

  /// Runs the backward pass and compares loss and the gradients of all parameters.
  Grads backward(Tape& tape, const Tensor& loss) {
    run_.check_output("loss", run_.device().values(loss));
    store_.begin_gradients();
    Grads grads = tape.backward(run_.ctx(), loss, &store_);
    store_.finish_gradients(run_.ctx());
    for (const NamePair& pair : pairs_) {
      const ParameterStore::Entry& entry = find(pair);
      const std::vector<double> values = store_.read(run_.ctx(), entry, Buffer::Gradients);
      run_.check_gradient("param." + pair.reference,
                          pair.transposed ? transposed(values, entry.shape[0], entry.shape[1]) : values);
    }
    return grads;
  }

 private:
  static ModelShape shape_of(const GoldenCase& golden) {
    ModelShape shape;
    shape.max_tokens = golden.integer("points") * (golden.flag("interleave") ? 2 : 1);
    if (golden.integer("vocab_size") > 0) {
      shape.vocabulary = golden.integer("vocab_size");
    } else {
      shape.input_width = golden.integer("n_dims");
      shape.output_width = golden.shape("param._read_out.weight")[0];
    }
    return shape;
  }
  static ModelConfig config_of(const GoldenCase& golden) {
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
  [[nodiscard]] const ParameterStore::Entry& find(const NamePair& pair) const {
    const ParameterStore::Entry* entry = store_.find(pair.ours);
    require(entry != nullptr, "the model has no parameter {}", pair.ours);
    return *entry;
  }

  GoldenRun& run_;
  const GoldenCase& golden_;
  ModelShape shape_;
  ParameterStore store_;
  SequenceModel model_;
  std::vector<NamePair> pairs_;
};

/// Vectors in, vectors out. Interleaved: x_0, y_0, x_1, ... with a prediction at every x; else one prediction at the
/// last position.
void run_vectors(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const bool interleave = golden.flag("interleave");
  CaseModel model(run);
  const Shape& xs = golden.shape("in.xs");
  const std::int64_t stride = interleave ? 2 : 1;
  const std::int64_t width = xs[2];
  const std::int64_t stored = round_up(width, 8);
  std::vector<double> values(static_cast<std::size_t>(xs[0] * xs[1] * stride * stored), 0);
  place_rows(golden.values("in.xs"), width, values, stored, stride, 0);
  if (interleave) place_rows(golden.values("in.ys"), width, values, stored, stride, 1);
  Tensor tokens = run.tensor({xs[0], xs[1] * stride, stored}, values);
  tokens.set_requires_grad(true);

  // what is predicted where
  const std::int64_t columns = model.shape().output_width;
  const std::int64_t count = interleave ? xs[1] : 1;
  const std::int64_t offset = interleave ? 0 : xs[1] - 1;
  const std::vector<double> targets =
      interleave ? take_rows(golden.values("in.ys"), width, columns, 1, 0) : golden.values("in.target");
  Tape tape;
  const Context recording = run.ctx().with_tape(tape);
  const Tensor outputs = model.model()(recording, tokens);
  SquaredErrorOptions options;
  options.columns = columns;
  options.position_stride = stride;
  options.position_offset = offset;
  const Tensor goal = run.device().tensor({xs[0], count, columns}, run.ctx().stream_dtype(), targets);
  const Tensor loss = squared_error(recording, outputs, goal, {}, options);

  const std::int64_t period = interleave ? stride : xs[1];
  run.check_output("out.prediction",
                   take_rows(run.device().values(outputs), outputs.shape()[2], columns, period, offset));
  const Grads grads = model.backward(tape, loss);
  const std::vector<double> gradient = run.device().values(grads.tensor(tokens));
  run.check_gradient("in.xs", take_rows(gradient, stored, width, stride, 0));
  if (interleave) run.check_gradient("in.ys", take_rows(gradient, stored, width, stride, 1));
}

/// Token ids in, the logits of the token after the last one out.
void run_tokens(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  CaseModel model(run);
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
  if (run.golden().integer("vocab_size") > 0) {
    run_tokens(run);
  } else {
    run_vectors(run);
  }
}

const RegisterGolden registered{{"icl_transformer*", run_transformer}};

}  // namespace
}  // namespace graft::test
