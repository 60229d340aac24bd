#include "models/sequence_model.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/require.h"
#include "ops/advance_length.h"
#include "ops/cast.h"
#include "ops/embedding.h"
#include "ops/gather_positions.h"
#include "ops/gather_rows.h"

namespace graft {
namespace {

Linear make_read_in(ParameterStore& store, const ModelConfig& config, const ModelShape& shape) {
  if (shape.vocabulary > 0) return {};
  require(shape.input_width >= 1, "model: inputs are {} wide, expected at least 1", shape.input_width);
  if (shape.read_in_groups.empty()) {
    return {store,           "read_in", shape.input_width, config.width, default_linear_init(shape.input_width),
            {.pad_in = true}};
  }
  std::vector<double> bounds;  // of each column
  for (const std::int64_t width : shape.read_in_groups) {
    bounds.insert(bounds.end(), static_cast<std::size_t>(width),
                  1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(width - 1, 1))));
  }
  require(static_cast<std::int64_t>(bounds.size()) == shape.input_width,
          "model: groups of the read-in have {} columns in all, expected {}", bounds.size(), shape.input_width);
  const Initializer uniform = [bounds](const Draw& draw, std::int64_t index) {
    const double bound = bounds[static_cast<std::size_t>(index) % bounds.size()];
    return (2 * static_cast<double>(draw.uniform(0, static_cast<std::uint32_t>(index))) - 1) * bound;
  };
  return {store, "read_in", shape.input_width, config.width, {uniform, {}}, {.bias = false, .pad_in = true}};
}

std::int64_t vocabulary_rows(const ModelConfig& config, const ModelShape& shape) {
  return round_up(shape.vocabulary, config.vocabulary_multiple);
}

Param make_embedding(ParameterStore& store, const ModelConfig& config, const ModelShape& shape) {
  if (shape.vocabulary == 0) return {};
  return store.add("embedding", "weight", {vocabulary_rows(config, shape), config.width}, init::normal(0.02),
                   {.pad_rows = true, .embedding = true});
}

Param make_head(ParameterStore& store, const ModelConfig& config, const ModelShape& shape) {
  if (shape.vocabulary == 0 || config.tied) return {};
  return store.add("head", "weight", {vocabulary_rows(config, shape), config.width}, init::normal(0.02),
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
  if (shape.vocabulary > 0) return {};
  return {store, "read_out", config.width, shape.output_width, default_linear_init(config.width), {.pad_out = true}};
}

}  // namespace

SequenceModel::SequenceModel(ParameterStore& store, const ModelConfig& config, const ModelShape& shape)
    : shape_(shape),
      width_(config.width),
      vocabulary_rows_(vocabulary_rows(config, shape)),
      read_in_(make_read_in(store, config, shape)),
      embedding_(make_embedding(store, config, shape)),
      positions_(make_positions(store, config, shape)),
      backbone_(store, config),
      read_out_(make_read_out(store, config, shape)),
      head_(make_head(store, config, shape)) {}

void SequenceModel::require_vectors(const Tensor& tokens) const {
  require(shape_.vocabulary == 0, "model: reads token ids, not vectors");
  require(tokens.shape().rank() == 3 && tokens.shape()[2] == round_up(shape_.input_width, 8),
          "model: tokens are {}, expected [B, T, {}]", tokens.shape().str(), round_up(shape_.input_width, 8));
}

void SequenceModel::require_ids() const { require(shape_.vocabulary > 0, "model: reads vectors, not token ids"); }

Tensor SequenceModel::with_positions(const Context& ctx, const Tensor& x, const Tensor& start) const {
  return positions_ ? add_positions(ctx, x, positions_.tensor(ctx), start) : cast(ctx, x, ctx.stream_dtype());
}

Tensor SequenceModel::embedded(const Context& ctx, const Tensor& ids, const Tensor& start) const {
  const Tensor table = embedding_.master(ctx);
  return positions_ ? embedding(ctx, ids, table, positions_.master(ctx), start) : embedding(ctx, ids, table);
}

Tensor SequenceModel::head(const Context& ctx, const Tensor& x) const {
  return linear(ctx, x, (head_ ? head_ : embedding_).tensor(ctx), {});
}

Tensor SequenceModel::operator()(const Context& ctx, const Tensor& tokens) const {
  require_vectors(tokens);
  return read_out_(ctx, backbone_(ctx, with_positions(ctx, read_in_(ctx, tokens), {})));
}

Tensor SequenceModel::logits(const Context& ctx, const Tensor& ids, const Tensor& positions) const {
  require_ids();
  const Tensor x = backbone_(ctx, embedded(ctx, ids, {}));
  return head(ctx, positions ? gather_rows(ctx, x, positions) : x);
}

DecodeState SequenceModel::make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const {
  require(batch >= 1 && capacity >= 1, "model: a state for {} sequences of {} tokens, expected at least 1 of each",
          batch, capacity);
  require(!positions_ || capacity <= positions_.shape()[0],
          "model: a state for {} tokens, expected at most the {} rows of the position table", capacity,
          positions_ ? positions_.shape()[0] : 0);
  DecodeState state;
  state.backbone = backbone_.make_state(ctx, batch, capacity);
  state.length = ctx.empty_run({1}, DType::I32, "tokens read");
  state.batch = batch;
  state.capacity = capacity;
  clear(ctx, state);
  return state;
}

void SequenceModel::clear(const Context& ctx, const DecodeState& state) const {
  ctx.stream->zero(state.length.mutable_view().data, state.length.bytes());
  for (const MixerState& mixer : state.backbone.mixers) {
    for (const Tensor& part : mixer.parts) ctx.stream->zero(part.mutable_view().data, part.bytes());
  }
}

void SequenceModel::require_state(const DecodeState& state, const Shape& read) const {
  require(read[0] == state.batch, "model: {} sequences, expected the state's {}", read[0], state.batch);
  require(read[1] <= state.capacity, "model: {} tokens, expected at most the state's capacity of {}", read[1],
          state.capacity);
  require(static_cast<std::int64_t>(state.backbone.mixers.size()) == backbone_.branches(),
          "model: a state of {} mixers, expected {}: only the model that made a state can use it",
          state.backbone.mixers.size(), backbone_.branches());
}

Tensor SequenceModel::extend(const Context& ctx, const Tensor& tokens, const DecodeState& state) const {
  require_vectors(tokens);
  require_state(state, tokens.shape());
  const Tensor x = with_positions(ctx, read_in_(ctx, tokens), state.length);
  Tensor outputs = read_out_(ctx, backbone_.extend(ctx, x, state.backbone, state.length));
  advance_length(ctx, state.length, tokens.shape()[1]);
  return outputs;
}

Tensor SequenceModel::extend_logits(const Context& ctx, const Tensor& ids, const DecodeState& state,
                                    bool last_only) const {
  require_ids();
  require(ids.shape().rank() == 2, "model: ids are {}, expected [B, n]", ids.shape().str());
  require_state(state, ids.shape());
  Tensor x = backbone_.extend(ctx, embedded(ctx, ids, state.length), state.backbone, state.length);
  advance_length(ctx, state.length, ids.shape()[1]);
  if (last_only && ids.shape()[1] > 1) {
    x = cast(ctx, gather_positions(ctx, x, 1, 1, ids.shape()[1] - 1, width_), ctx.compute_dtype());
  }
  return head(ctx, x);
}

std::int64_t SequenceModel::output_columns() const {
  return shape_.vocabulary > 0 ? vocabulary_rows_ : shape_.output_width;
}

double SequenceModel::forward_flops(std::int64_t tokens, bool causal) const {
  const auto t = static_cast<double>(tokens);
  const auto d = static_cast<double>(width_);
  const double shell = shape_.vocabulary > 0
                           ? 2 * t * d * static_cast<double>(vocabulary_rows_)
                           : 2 * t * d * static_cast<double>(shape_.input_width + shape_.output_width);
  return backbone_.forward_flops(tokens, causal) + shell;
}

}  // namespace graft
