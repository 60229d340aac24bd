// Golden cases of single operations.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <string>
#include <vector>

#include "engine/require.h"
#include "engine/tape.h"
#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/residual_norm.h"
#include "ops/squared_error.h"
#include "tests/support/golden.h"

namespace graft::test {
namespace {

/// Cases with one output y: compares y, the loss and the gradients of the named tensors.
void run_map(GoldenRun& run, std::initializer_list<const char*> inputs,
             const std::function<Tensor(const Context&, const std::vector<Tensor>&)>& map) {
  std::vector<Tensor> tensors;
  for (const char* name : inputs) tensors.push_back(run.tensor(name));
  Tape tape;
  const Tensor y = map(run.ctx().with_tape(tape), tensors);
  const std::vector<double> values = run.device().values(y);
  run.check_output("out.y", values);
  run.check_projected_loss(values);
  const Tensor cotangent = run.device().tensor(y.shape(), y.dtype(), run.golden().values("in.cotangent"));
  const Grads grads = tape.backward_from(run.ctx(), {{y, cotangent}});
  std::size_t k = 0;
  for (const char* name : inputs) {
    if (tensors[k].requires_grad()) run.check_gradient(name, run.device().values(grads.tensor(tensors[k])));
    ++k;
  }
}

void run_linear(GoldenRun& run) {
  if (run.golden().flag("bias")) {
    run_map(run, {"in.x", "param.weight", "param.bias"},
            [](const Context& ctx, const std::vector<Tensor>& in) { return linear(ctx, in[0], in[1], in[2]); });
  } else {
    run_map(run, {"in.x", "param.weight"},
            [](const Context& ctx, const std::vector<Tensor>& in) { return linear(ctx, in[0], in[1]); });
  }
}

void run_layer_norm(GoldenRun& run) {
  const double eps = run.golden().number("eps");
  run_map(run, {"in.x", "param.weight", "param.bias"}, [eps](const Context& ctx, const std::vector<Tensor>& in) {
    return residual_norm(ctx, {{in[0]}}, {}, NormKind::LayerNorm, {{in[1], in[2]}}, false, eps).normed[0];
  });
}

void run_activation(GoldenRun& run) {
  constexpr Activation kAll[] = {Activation::Silu, Activation::Softplus, Activation::GeluTanh, Activation::GeluErf};
  const auto* const kind = std::find_if(std::begin(kAll), std::end(kAll),
                                        [&](Activation each) { return run.golden().name() == name_of(each); });
  require(kind != std::end(kAll), "{} is not an activation", run.golden().name());
  run_map(run, {"in.x"},
          [kind](const Context& ctx, const std::vector<Tensor>& in) { return activation(ctx, in[0], *kind); });
}

void run_embedding(GoldenRun& run) {
  run_map(run, {"in.idx", "param.weight"},
          [](const Context& ctx, const std::vector<Tensor>& in) { return embedding(ctx, in[0], in[1]); });
}

/// Where element (batch, head, t, column) of a [B, H, T, head_dim] tensor lies in row (batch, t) of a packed one.
struct HeadLayout {
  std::int64_t batch, heads, tokens, head_dim;

  /// Calls visit(index in [B, H, T, head_dim], index in [B, T, row] of a part that starts at column `offset`).
  template <class Visit>
  void for_each(std::int64_t row, std::int64_t offset, Visit visit) const {
    std::size_t from = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t t = 0; t < tokens; ++t) {
          for (std::int64_t c = 0; c < head_dim; ++c) {
            visit(from++, static_cast<std::size_t>((b * tokens + t) * row + offset + h * head_dim + c));
          }
        }
      }
    }
  }
  void pack(const std::vector<double>& values, std::vector<double>& packed, std::int64_t row,
            std::int64_t offset) const {
    for_each(row, offset, [&](std::size_t i, std::size_t j) { packed[j] = values[i]; });
  }
  [[nodiscard]] std::vector<double> unpack(const std::vector<double>& packed, std::int64_t row,
                                           std::int64_t offset) const {
    std::vector<double> values(static_cast<std::size_t>(batch * heads * tokens * head_dim));
    for_each(row, offset, [&](std::size_t i, std::size_t j) { values[i] = packed[j]; });
    return values;
  }
};

void run_attention(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& shape = golden.shape("in.q");
  const HeadLayout heads{shape[0], shape[1], shape[2], shape[3]};
  const std::int64_t width = heads.heads * heads.head_dim;
  const std::int64_t row = 3 * width;
  std::vector<double> packed(static_cast<std::size_t>(heads.batch * heads.tokens * row));
  const char* parts[] = {"in.q", "in.k", "in.v"};
  for (int k = 0; k < 3; ++k) heads.pack(golden.values(parts[k]), packed, row, k * width);
  Tensor qkv = run.tensor({heads.batch, heads.tokens, row}, packed);
  qkv.set_requires_grad(true);
  Tape tape;
  const auto layout = AttentionLayout::blocks(static_cast<int>(heads.heads), static_cast<int>(heads.head_dim));
  const Tensor y = causal_attention(run.ctx().with_tape(tape), qkv, layout);
  const std::vector<double> values = heads.unpack(run.device().values(y), width, 0);
  run.check_output("out.y", values);
  run.check_projected_loss(values);
  std::vector<double> cotangent(values.size());
  heads.pack(golden.values("in.cotangent"), cotangent, width, 0);
  const Grads grads = tape.backward_from(run.ctx(), {{y, run.tensor(y.shape(), cotangent)}});
  const std::vector<double> gradient = run.device().values(grads.tensor(qkv));
  for (int k = 0; k < 3; ++k) run.check_gradient(parts[k], heads.unpack(gradient, row, k * width));
}

void run_cross_entropy(GoldenRun& run) {
  require(run.golden().integer("ignore_index") == kIgnoredLabel, "cross_entropy: ignore_index is {}, expected {}",
          run.golden().integer("ignore_index"), kIgnoredLabel);
  const Tensor logits = run.tensor("in.logits");
  const Tensor labels = run.tensor("in.labels");
  Tape tape;
  const Tensor loss = cross_entropy(run.ctx().with_tape(tape), logits, labels);
  run.check_output("out.loss", run.device().values(loss));
  run.check_output("loss", run.device().values(loss));
  const Grads grads = tape.backward(run.ctx(), loss);
  run.check_gradient("in.logits", run.device().values(grads.tensor(logits)));
  std::vector<double> rows;
  for (std::int64_t row = 0; row < labels.elements(); ++row) {
    const Tensor one = cross_entropy(run.ctx(), logits.slice(row, 1), labels.slice(row, 1));
    rows.push_back(run.device().values(one)[0]);
  }
  run.check_output("out.per_row", rows);
}

void run_masked_mse(GoldenRun& run) {
  const GoldenCase& golden = run.golden();
  const Shape& shape = golden.shape("in.pred");
  const Shape points{shape[0], shape[1], 1};
  const Tensor predictions = run.tensor("in.pred", points);
  const Tensor targets = run.tensor("in.ys", points);
  std::vector<double> scored = golden.values("in.mask");
  for (double& value : scored) value = 1 - value;  // the case marks what is left out
  const Tensor mask = run.device().tensor(shape, DType::U8, scored);
  Tape tape;
  const Tensor loss = squared_error(run.ctx().with_tape(tape), predictions, targets, mask);
  run.check_output("out.loss", run.device().values(loss));
  run.check_output("loss", run.device().values(loss));
  const Grads grads = tape.backward(run.ctx(), loss);
  run.check_gradient("in.pred", run.device().values(grads.tensor(predictions)));
  run.check_output("out.loss_unmasked_all", run.device().values(squared_error(run.ctx(), predictions, targets)));
}

const RegisterGolden linear_registered{{"linear", run_linear}};
const RegisterGolden linear_nobias_registered{{"linear_nobias", run_linear}};
const RegisterGolden layer_norm_registered{{"layernorm", run_layer_norm}};
const RegisterGolden silu_registered{{"silu", run_activation}};
const RegisterGolden softplus_registered{{"softplus", run_activation}};
const RegisterGolden gelu_tanh_registered{{"gelu_tanh", run_activation}};
const RegisterGolden gelu_erf_registered{{"gelu_erf", run_activation}};
const RegisterGolden embedding_registered{{"embedding", run_embedding}};
const RegisterGolden attention_registered{{"attention_causal", run_attention}};
const RegisterGolden cross_entropy_registered{{"cross_entropy", run_cross_entropy}};
const RegisterGolden masked_mse_registered{{"masked_mse", run_masked_mse}};

}  // namespace
}  // namespace graft::test
