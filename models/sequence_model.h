#pragma once

#include <cstdint>
#include <vector>

#include "models/backbone.h"
#include "models/linear.h"

namespace graft {

/// What goes in and what comes out.
struct ModelShape {
  std::int64_t input_width = 0;   // floats a token; 0: token ids
  std::int64_t output_width = 1;  // floats a prediction; ignored for token ids
  std::int64_t vocabulary = 0;    // number of token ids; 0: vectors
  std::int64_t max_tokens = 0;    // rows of the position table where the configuration leaves it open
  /// Neighbouring input columns that start with a fan-in of their own, the last one of a group being its bias; then the
  /// read-in has no other bias. Empty: one linear map with bias.
  std::vector<std::int64_t> read_in_groups = {};
};

/// What a model remembers while it reads sequences piece by piece, in run memory: one for `batch` sequences of at most
/// `capacity` tokens. Only the model that made it can use it.
struct DecodeState {
  BackboneState backbone;
  Tensor length;  // [1] int32 on the device: tokens read so far
  std::int64_t batch = 0;
  std::int64_t capacity = 0;
};

/// Read-in, optional positions, backbone, read-out. Vectors go through linear layers with bias; token ids through an
/// embedding, and out through the same matrix (tied) or another one, without bias.
/// Source: Garg et al. 2022 (in-context functions), Park et al. 2024 section 3; Pantazopoulos et al. 2026 (token ids).
class SequenceModel {
 public:
  SequenceModel(ParameterStore& store, const ModelConfig& config, const ModelShape& shape);

  /// tokens [B, T, stored input width] compute dtype -> [B, T, stored output width] compute dtype. Stored widths
  /// are the widths rounded up to multiples of 8.
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& tokens) const;
  /// ids [B, T] int32 -> logits [B, T, stored columns], of which output_columns() count. With `positions` [B, N] int32
  /// the rows named there alone go through the head: [B, N, stored columns].
  [[nodiscard]] Tensor logits(const Context& ctx, const Tensor& ids, const Tensor& positions = {}) const;

  /// A state before the first token. Generation is one extension by the prompt, then one by each new token: position by
  /// position it gives what a whole forward pass gives, to rounding.
  [[nodiscard]] DecodeState make_state(const Context& ctx, std::int64_t batch, std::int64_t capacity) const;
  /// Sets a state back to before the first token.
  void clear(const Context& ctx, const DecodeState& state) const;
  /// Reads further tokens [B, n, stored input width] and brings the state up to date; as operator() otherwise. The
  /// caller sees to it that no more than the state's capacity are read in all: key and value caches keep no others.
  /// Throws ArgumentError for another batch, for more tokens than the capacity at once, and for a state with other
  /// mixers.
  [[nodiscard]] Tensor extend(const Context& ctx, const Tensor& tokens, const DecodeState& state) const;
  /// The same for ids [B, n] int32; `last_only` gives the logits of the last one, [B, 1, stored columns].
  [[nodiscard]] Tensor extend_logits(const Context& ctx, const Tensor& ids, const DecodeState& state,
                                     bool last_only = false) const;

  /// Columns of the outputs that count: the output width, or the rows of the vocabulary.
  [[nodiscard]] std::int64_t output_columns() const;

  /// Forward floating-point operations of one sequence, read-in and read-out included.
  [[nodiscard]] double forward_flops(std::int64_t tokens, bool causal = false) const;
  [[nodiscard]] const ModelShape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t blocks() const { return backbone_.layers(); }

 private:
  void require_vectors(const Tensor& tokens) const;
  void require_ids() const;
  void require_state(const DecodeState& state, const Shape& read) const;
  [[nodiscard]] Tensor with_positions(const Context& ctx, const Tensor& x, const Tensor& start) const;
  [[nodiscard]] Tensor embedded(const Context& ctx, const Tensor& ids, const Tensor& start) const;
  [[nodiscard]] Tensor head(const Context& ctx, const Tensor& x) const;
  ModelShape shape_;
  std::int64_t width_;
  std::int64_t vocabulary_rows_;
  Linear read_in_;
  Param embedding_;
  Param positions_;
  Backbone backbone_;
  Linear read_out_;
  Param head_;  // token ids, untied
};

}  // namespace graft
