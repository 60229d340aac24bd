#include "models/sequence_model.h"

#include "engine/require.h"
#include "ops/cast.h"
#include "ops/embedding.h"

namespace graft {
namespace {

Linear make_read_in(ParameterStore& store, const ModelConfig& config, const ModelShape& shape) {
  if (shape.vocabulary > 0) return {};
  require(shape.input_width >= 1, "model: inputs are {} wide, expected at least 1", shape.input_width);
  return {store, "read_in", shape.input_width, config.width, default_linear_init(shape.input_width), {.pad_in = true}};
}

Param make_embedding(ParameterStore& store, const ModelConfig& config, const ModelShape& shape) {
  if (shape.vocabulary == 0) return {};
  return store.add("embedding", "weight", {shape.vocabulary, config.width}, init::normal(0.02),
                   {.pad_rows = true, .embedding = true});
}

Param make_positions(ParameterStore& store, const ModelConfig& config, const ModelShape& shape) {
  if (config.positions == Positions::None) return {};
  const std::int64_t rows = config.position_rows > 0 ? config.position_rows : shape.max_tokens;
  require(rows >= shape.max_tokens, "model.position_rows = {}, expected at least the {} tokens of the longest prompt",
          rows, shape.max_tokens);
  return store.add("positions", "weight", {rows, config.width}, init::normal(config.position_std), {.embedding = true});
}

Linear make_read_out(ParameterStore& store, const ModelConfig& config, const ModelShape& shape) {
  if (shape.vocabulary > 0) return {};  // tied to the embedding
  return {store, "read_out", config.width, shape.output_width, default_linear_init(config.width), {.pad_out = true}};
}

}  // namespace

SequenceModel::SequenceModel(ParameterStore& store, const ModelConfig& config, const ModelShape& shape)
    : shape_(shape),
      width_(config.width),
      read_in_(make_read_in(store, config, shape)),
      embedding_(make_embedding(store, config, shape)),
      positions_(make_positions(store, config, shape)),
      backbone_(store, config),
      read_out_(make_read_out(store, config, shape)) {}

Tensor SequenceModel::with_positions(const Context& ctx, const Tensor& x) const {
  return positions_ ? add_positions(ctx, x, positions_.tensor(ctx)) : cast(ctx, x, ctx.stream_dtype());
}

Tensor SequenceModel::operator()(const Context& ctx, const Tensor& tokens) const {
  require(shape_.vocabulary == 0, "model: reads token ids, not vectors");
  require(tokens.shape().rank() == 3 && tokens.shape()[2] == round_up(shape_.input_width, 8),
          "model: tokens are {}, expected [B, T, {}]", tokens.shape().str(), round_up(shape_.input_width, 8));
  return read_out_(ctx, backbone_(ctx, with_positions(ctx, read_in_(ctx, tokens))));
}

Tensor SequenceModel::logits(const Context& ctx, const Tensor& ids) const {
  require(shape_.vocabulary > 0, "model: reads vectors, not token ids");
  const Tensor table = embedding_.tensor(ctx);
  const Tensor x = positions_ ? embedding(ctx, ids, table, positions_.tensor(ctx)) : embedding(ctx, ids, table);
  return linear(ctx, backbone_(ctx, x), table, {});
}

double SequenceModel::forward_flops(std::int64_t tokens, bool causal) const {
  const auto t = static_cast<double>(tokens);
  const auto d = static_cast<double>(width_);
  const double shell = shape_.vocabulary > 0
                           ? 2 * t * d * static_cast<double>(shape_.vocabulary)
                           : 2 * t * d * static_cast<double>(shape_.input_width + shape_.output_width);
  return backbone_.forward_flops(tokens, causal) + shell;
}

}  // namespace graft
