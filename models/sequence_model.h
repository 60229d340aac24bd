#pragma once

#include <cstdint>

#include "models/backbone.h"
#include "models/linear.h"

namespace graft {

/// What goes in and what comes out.
struct ModelShape {
  std::int64_t input_width = 0;   // floats a token; 0: token ids
  std::int64_t output_width = 1;  // floats a prediction; ignored for token ids
  std::int64_t vocabulary = 0;    // number of token ids; 0: vectors
  std::int64_t max_tokens = 0;    // rows of the position table where the configuration leaves it open
};

/// Read-in, optional positions, backbone, read-out. Vectors go through linear layers with bias; token ids through an
/// embedding that is also the read-out (tied, without bias).
/// Source: Garg et al. 2022 (in-context functions), Park et al. 2024 section 3.
class SequenceModel {
 public:
  SequenceModel(ParameterStore& store, const ModelConfig& config, const ModelShape& shape);

  /// tokens [B, T, stored input width] compute dtype -> [B, T, stored output width] compute dtype. Stored widths
  /// are the widths rounded up to multiples of 8.
  [[nodiscard]] Tensor operator()(const Context& ctx, const Tensor& tokens) const;
  /// ids [B, T] int32 -> logits [B, T, vocabulary rounded up to a multiple of 8]
  [[nodiscard]] Tensor logits(const Context& ctx, const Tensor& ids) const;

  /// Forward floating-point operations of one sequence, read-in and read-out included.
  [[nodiscard]] double forward_flops(std::int64_t tokens, bool causal = false) const;
  [[nodiscard]] const ModelShape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t blocks() const { return backbone_.blocks(); }

 private:
  [[nodiscard]] Tensor with_positions(const Context& ctx, const Tensor& x) const;
  ModelShape shape_;
  std::int64_t width_;
  Linear read_in_;
  Param embedding_;
  Param positions_;
  Backbone backbone_;
  Linear read_out_;
};

}  // namespace graft
