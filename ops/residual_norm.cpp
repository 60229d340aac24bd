#include "ops/residual_norm.h"

#include <array>
#include <string>

#include "engine/require.h"
#include "engine/tape.h"

namespace graft {
namespace {

constexpr auto kTerms = static_cast<std::size_t>(kResidualNormMaxTerms);
constexpr auto kNorms = static_cast<std::size_t>(kResidualNormMaxNorms);

bool is_one(const TermWeight& weight) { return weight.constant == 1 && weight.gate == 0; }
bool same(const TermWeight& a, const TermWeight& b) { return a.constant == b.constant && a.gate == b.gate; }

void check_terms(const Context& ctx, const std::vector<ResidualTerm>& terms, const Tensor& beta) {
  require(!terms.empty() && terms.size() <= kTerms, "residual_norm: {} terms, expected 1 to {}", terms.size(), kTerms);
  const Shape& shape = terms[0].value.shape();
  require(shape.rank() >= 1, "residual_norm: term 0 is {}, expected [..., D]", shape.str());
  const std::int64_t width = shape.columns();
  require(width >= 1 && width <= kResidualNormMaxWidth, "residual_norm: width is {}, expected 1 to {}", width,
          kResidualNormMaxWidth);
  const DType stream = ctx.stream_dtype();
  bool gated = false;
  for (std::size_t k = 0; k < terms.size(); ++k) {
    const Tensor& value = terms[k].value;
    require(value.shape() == shape, "residual_norm: term {} is {}, expected {}, the shape of term 0", k,
            value.shape().str(), shape.str());
    require(value.dtype() == stream || value.dtype() == ctx.compute_dtype(),
            "residual_norm: term {} is {}, expected {} or {} in {}", k, name_of(value.dtype()), name_of(stream),
            name_of(ctx.compute_dtype()), name_of(ctx.precision));
    gated = gated || terms[k].gate != 0;
  }
  if (!gated) return;
  require(static_cast<bool>(beta), "residual_norm: beta is empty, expected [1], since a term has a gate");
  require(beta.shape() == Shape{1}, "residual_norm: beta is {}, expected [1]", beta.shape().str());
  require(beta.dtype() == stream, "residual_norm: beta is {}, expected {} in {}", name_of(beta.dtype()),
          name_of(stream), name_of(ctx.precision));
}

void check_parameter(const Context& ctx, const std::string& what, const Tensor& parameter, std::int64_t width) {
  require(parameter.shape() == Shape{width}, "residual_norm: {} is {}, expected [{}]", what, parameter.shape().str(),
          width);
  require(parameter.dtype() == ctx.stream_dtype(), "residual_norm: {} is {}, expected {} in {}", what,
          name_of(parameter.dtype()), name_of(ctx.stream_dtype()), name_of(ctx.precision));
}

void check_norms(const Context& ctx, NormKind kind, const std::vector<NormWeights>& norms, std::int64_t width) {
  require(!norms.empty() && norms.size() <= kNorms, "residual_norm: {} norms, expected 1 to {}", norms.size(), kNorms);
  for (std::size_t i = 0; i < norms.size(); ++i) {
    check_parameter(ctx, "gain " + std::to_string(i), norms[i].gain, width);
    if (kind == NormKind::LayerNorm) {
      check_parameter(ctx, "bias " + std::to_string(i), norms[i].bias, width);
    } else {
      require(!norms[i].bias, "residual_norm: bias {} is {}, expected none in an RMS norm", i,
              norms[i].bias.shape().str());
    }
    for (std::size_t other = 0; other < i; ++other) {  // their gradients are written side by side
      require(norms[other].gain.id() != norms[i].gain.id(),
              "residual_norm: norms {} and {} have the same gain, expected one each", other, i);
      require(kind != NormKind::LayerNorm || norms[other].bias.id() != norms[i].bias.id(),
              "residual_norm: norms {} and {} have the same bias, expected one each", other, i);
    }
  }
}

View view_or_null(const Tensor& tensor) { return tensor ? tensor.mutable_view() : View{}; }

/// What backward needs of one call.
struct Saved {
  NormKind kind = NormKind::LayerNorm;
  std::size_t terms = 0;
  std::size_t norms = 0;
  Tensor x;  // what was normalised
  Tensor mean, rstd;
  Tensor beta;  // empty if no term has a gate
  std::array<TermWeight, kTerms> weight;
  std::array<Tensor, kTerms> gated;  // terms that beta's gradient is a sum of
  std::array<Tensor, kNorms> gain;
  std::array<GradRef, kTerms> term;
  std::array<GradRef, kNorms> bias;
  std::array<GradRef, kNorms> normed;
  GradRef sum;
};

/// Gradients of terms that wait for the kernel, or need none, before they are handed on.
struct Handed {
  std::array<Tensor, kTerms> tensors;

  void pass(const Saved& saved, Grads& grads) const {
    for (std::size_t k = 0; k < saved.terms; ++k) {
      if (tensors[k]) grads.pass(saved.term[k], tensors[k]);
    }
  }
};

/// Finds a target for the gradient of every term. Terms with the same weight and dtype that nobody else has written to
/// share one tensor, which is that of `dsum` where nobody else holds it: the kernel works in place, row by row.
Handed term_targets(const Context& ctx, const Saved& saved, Grads& grads, Tensor dsum, bool has_normed,
                    GradTarget (&targets)[kTerms]) {
  bool in_place = dsum && dsum.use_count() == 2;
  const auto fresh = [&](std::size_t k) {
    const bool parameter = grads.sink() != nullptr && grads.sink()->owns(saved.term[k].id);
    return saved.term[k].requires_grad && !parameter && !grads.has(saved.term[k]);
  };
  const auto unchanged = [&](std::size_t k) {
    return !has_normed && is_one(saved.weight[k]) && saved.term[k].dtype == dsum.dtype();
  };
  Handed handed;
  for (std::size_t k = 0; k < saved.terms; ++k) {
    if (!saved.term[k].requires_grad || !unchanged(k)) continue;
    handed.tensors[k] = dsum;
    in_place = false;
  }
  for (std::size_t k = 0; k < saved.terms; ++k) {
    if (!saved.term[k].requires_grad || handed.tensors[k]) continue;
    std::array<bool, kTerms> alike{};
    int members = 0;
    for (std::size_t other = k; fresh(k) && other < saved.terms; ++other) {
      alike[other] = fresh(other) && !handed.tensors[other] && same(saved.weight[other], saved.weight[k]) &&
                     saved.term[other].dtype == saved.term[k].dtype;
      members += alike[other] ? 1 : 0;
    }
    const bool take_dsum = in_place && members >= 1 && saved.term[k].dtype == dsum.dtype();
    if (members < 2 && !take_dsum) {
      targets[k] = grads.into(saved.term[k]);
      continue;
    }
    const Tensor shared = take_dsum ? dsum : ctx.empty(saved.x.shape(), saved.term[k].dtype, "residual gradient");
    if (take_dsum) in_place = false;
    targets[k] = {shared.mutable_view(), false};
    for (std::size_t other = k; other < saved.terms; ++other) {
      if (alike[other]) handed.tensors[other] = shared;
    }
  }
  return handed;
}

void backward(const Context& ctx, Grads& grads, const Saved& saved) {
  ResidualNormBackward args;
  args.terms = static_cast<int>(saved.terms);
  args.norms = static_cast<int>(saved.norms);
  args.kind = saved.kind;
  bool wanted = false;  // does anything remain to be computed?
  bool has_normed = false;
  bool has_sums = false;
  for (std::size_t i = 0; i < saved.norms; ++i) {
    args.gain[i] = saved.gain[i].view();
    args.dy[i] = grads.of(saved.normed[i]);
    if (!args.dy[i]) continue;
    has_normed = true;
    args.dgain[i] = grads.into(saved.gain[i]);
    args.dbias[i] = grads.into(saved.bias[i]);
    has_sums = has_sums || args.dgain[i] || args.dbias[i];
  }
  args.dsum = grads.of(saved.sum);
  const Handed handed = term_targets(ctx, saved, grads, grads.tensor(saved.sum), has_normed, args.dterm);
  if (saved.beta) {
    args.beta = saved.beta.view();
    args.dbeta = grads.into(saved.beta);
    has_sums = has_sums || args.dbeta;
  }
  for (std::size_t k = 0; k < saved.terms; ++k) {
    args.weight[k] = saved.weight[k];
    args.term[k] = saved.gated[k].view();
    wanted = wanted || args.dterm[k];
  }
  Tensor partial;
  if (has_sums) {
    const Shape& shape = saved.x.shape();
    partial = ctx.empty({residual_norm_partial_elements(saved.kind, args.norms, shape.rows(), shape.columns())},
                        ctx.stream_dtype(), "residual_norm partial sums");
  }
  args.x = saved.x.view();
  args.mean = saved.mean.view();
  args.rstd = saved.rstd.view();
  args.partial = view_or_null(partial);
  if (wanted || has_sums) residual_norm_backward(ctx, args);
  handed.pass(saved, grads);
}

}  // namespace

ResidualNorm residual_norm(const Context& ctx, const std::vector<ResidualTerm>& terms, const Tensor& beta,
                           NormKind kind, const std::vector<NormWeights>& norms, bool keep_residual, double eps) {
  check_terms(ctx, terms, beta);
  const Shape& shape = terms[0].value.shape();
  check_norms(ctx, kind, norms, shape.columns());
  const DType stream = ctx.stream_dtype();

  Saved saved;
  saved.kind = kind;
  saved.terms = terms.size();
  saved.norms = norms.size();
  ResidualNormForward args;
  args.terms = static_cast<int>(terms.size());
  args.norms = static_cast<int>(norms.size());
  args.kind = kind;
  args.eps = eps;
  for (std::size_t k = 0; k < terms.size(); ++k) {
    saved.weight[k] = {terms[k].constant, terms[k].gate};
    saved.term[k] = terms[k].value;
    if (terms[k].gate != 0) saved.beta = beta;
    if (terms[k].gate != 0 && beta.requires_grad()) saved.gated[k] = terms[k].value;
    args.term[k] = terms[k].value.view();
    args.weight[k] = saved.weight[k];
  }
  args.beta = saved.beta.view();

  // a lone term that is not scaled is what is normalised
  const bool residual_is_term = terms.size() == 1 && is_one(saved.weight[0]) && terms[0].value.dtype() == stream;
  Tensor sum;
  // backward reads the sum, so a tape wants it written even if the caller does not
  if (!residual_is_term && (keep_residual || ctx.tape != nullptr)) sum = ctx.empty(shape, stream, "residual");
  ResidualNorm result;
  std::array<Tensor, kNorms> normed;
  for (std::size_t i = 0; i < norms.size(); ++i) {
    normed[i] = ctx.empty(shape, ctx.compute_dtype(), "residual_norm");
    saved.gain[i] = norms[i].gain;
    saved.bias[i] = norms[i].bias;
    args.gain[i] = norms[i].gain.view();
    args.bias[i] = norms[i].bias.view();
    args.normed[i] = normed[i].mutable_view();
  }
  if (ctx.tape != nullptr) {
    if (kind == NormKind::LayerNorm) saved.mean = ctx.empty({shape.rows()}, stream, "residual_norm mean");
    saved.rstd = ctx.empty({shape.rows()}, stream, "residual_norm rstd");
  }
  args.sum = view_or_null(sum);
  args.mean = view_or_null(saved.mean);
  args.rstd = view_or_null(saved.rstd);
  residual_norm_forward(ctx, args);

  if (ctx.tape != nullptr) {
    saved.x = residual_is_term ? terms[0].value : sum;
    for (std::size_t i = 0; i < norms.size(); ++i) saved.normed[i] = normed[i];
    Tensor unused;
    Tensor& kept = keep_residual ? sum : unused;  // an empty tensor is not recorded
    saved.sum = kept;
    const auto gain = [&](std::size_t i) { return GradRef(saved.gain[i]); };
    ctx.tape->record("residual_norm",
                     {saved.term[0], saved.term[1], saved.term[2], saved.term[3], saved.beta, gain(0), gain(1), gain(2),
                      saved.bias[0], saved.bias[1], saved.bias[2]},
                     {&kept, &normed[0], &normed[1], &normed[2]},
                     [saved](const Context& c, Grads& grads) { backward(c, grads, saved); });
  }
  if (keep_residual) result.residual = residual_is_term ? terms[0].value : sum;
  result.normed.assign(normed.begin(), normed.begin() + static_cast<std::ptrdiff_t>(norms.size()));
  return result;
}

}  // namespace graft
