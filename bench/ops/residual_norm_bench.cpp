#include "ops/residual_norm.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "bench/support/bench.h"

// The residual steps of the models in the studies, and norms alone, forward and backward.

namespace graft::bench {
namespace {

struct Size {
  std::int64_t rows, width;
};

struct Step {
  const char* name;
  Size size;
  NormKind kind;
  std::vector<TermWeight> weights;
  int norms;
};

constexpr TermWeight kOne{1, 0};

// rows = 64 sequences of 82 (41 points), 110 and 202 (101 points) tokens; 16 of 1024
const std::vector<Step> kSteps = {
    {"norm", {5248, 256}, NormKind::LayerNorm, {kOne}, 1},
    {"norm_rms", {5248, 256}, NormKind::RmsNorm, {kOne}, 1},
    {"norm", {7040, 1024}, NormKind::LayerNorm, {kOne}, 1},
    {"plain", {5248, 64}, NormKind::LayerNorm, {kOne, kOne}, 1},
    {"plain", {5248, 128}, NormKind::LayerNorm, {kOne, kOne}, 1},
    {"plain", {5248, 256}, NormKind::LayerNorm, {kOne, kOne}, 1},
    {"plain_rms", {5248, 256}, NormKind::RmsNorm, {kOne, kOne}, 1},
    {"plain", {7040, 1024}, NormKind::LayerNorm, {kOne, kOne}, 1},
    {"plain_rms", {7040, 1024}, NormKind::RmsNorm, {kOne, kOne}, 1},
    {"plain", {12928, 256}, NormKind::LayerNorm, {kOne, kOne}, 1},
    {"plain", {16384, 768}, NormKind::LayerNorm, {kOne, kOne}, 1},
    {"plain", {4096, 4096}, NormKind::LayerNorm, {kOne, kOne}, 1},
    {"parallel", {5248, 256}, NormKind::LayerNorm, {kOne, kOne, kOne}, 2},
    {"parallel", {7040, 1024}, NormKind::LayerNorm, {kOne, kOne, kOne}, 2},
    {"gated", {5248, 256}, NormKind::LayerNorm, {kOne, {0, 1}, kOne, {0, 1}}, 3},
    {"gated", {7040, 1024}, NormKind::LayerNorm, {kOne, {0, 1}, kOne, {0, 1}}, 3},
    {"gated_rms", {7040, 1024}, NormKind::RmsNorm, {kOne, {0, 1}, kOne, {0, 1}}, 3},
};

bool gated(const Step& step) {
  for (const TermWeight& weight : step.weights) {
    if (weight.gate != 0) return true;
  }
  return false;
}

/// The first term in the stream, the others from branches.
std::vector<Tensor> terms_of(const Context& ctx, const Step& step) {
  std::vector<Tensor> terms;
  for (std::size_t k = 0; k < step.weights.size(); ++k) {
    const DType dtype = k == 0 ? ctx.stream_dtype() : ctx.compute_dtype();
    terms.push_back(random_tensor(ctx, {step.size.rows, step.size.width}, dtype, 1 + k));
  }
  return terms;
}

std::vector<Tensor> tensors(const Context& ctx, int count, const Shape& shape, DType dtype, std::uint64_t seed) {
  std::vector<Tensor> result;
  for (int i = 0; i < count; ++i) {
    result.push_back(random_tensor(ctx, shape, dtype, seed + static_cast<std::uint64_t>(i)));
  }
  return result;
}

Setup forward(const Step& step) {
  return [step](const Context& ctx) -> Work {
    const DType stream = ctx.stream_dtype();
    const Shape shape{step.size.rows, step.size.width};
    const bool centred = step.kind == NormKind::LayerNorm;
    const std::vector<Tensor> terms = terms_of(ctx, step);
    const std::vector<Tensor> gains = tensors(ctx, step.norms, {step.size.width}, stream, 10);
    const std::vector<Tensor> biases = tensors(ctx, centred ? step.norms : 0, {step.size.width}, stream, 20);
    const std::vector<Tensor> normed = tensors(ctx, step.norms, shape, ctx.compute_dtype(), 30);
    const Tensor beta = gated(step) ? random_tensor(ctx, {1}, stream, 40) : Tensor();
    const Tensor sum = terms.size() > 1 ? ctx.empty_run(shape, stream, "sum") : Tensor();
    const Tensor mean = centred ? ctx.empty_run({step.size.rows}, stream, "mean") : Tensor();
    const Tensor rstd = ctx.empty_run({step.size.rows}, stream, "rstd");
    const auto run = [=](const Context& c) {
      ResidualNormForward args;
      args.terms = static_cast<int>(terms.size());
      args.norms = step.norms;
      args.kind = step.kind;
      for (std::size_t k = 0; k < terms.size(); ++k) {
        args.term[k] = terms[k].view();
        args.weight[k] = step.weights[k];
      }
      for (std::size_t i = 0; i < gains.size(); ++i) {
        args.gain[i] = gains[i].view();
        if (centred) args.bias[i] = biases[i].view();
        args.normed[i] = normed[i].mutable_view();
      }
      args.beta = beta.view();
      args.sum = sum.mutable_view();
      args.mean = mean.mutable_view();
      args.rstd = rstd.mutable_view();
      residual_norm_forward(c, args);
    };
    return {run, bytes_of(terms) + bytes_of(gains) + bytes_of(biases) + bytes_of(normed) + bytes_of({sum, mean, rstd}),
            0};
  };
}

/// As the op lays it out: the gradient of the sum is not overwritten here (timing runs repeat), and branches of the
/// same weight share one tensor.
Setup backward(const Step& step) {
  return [step](const Context& ctx) -> Work {
    const DType stream = ctx.stream_dtype();
    const DType compute = ctx.compute_dtype();
    const Shape shape{step.size.rows, step.size.width};
    const bool centred = step.kind == NormKind::LayerNorm;
    const std::vector<Tensor> terms = terms_of(ctx, step);
    const std::vector<Tensor> dys = tensors(ctx, step.norms, shape, compute, 10);
    const std::vector<Tensor> gains = tensors(ctx, step.norms, {step.size.width}, stream, 20);
    const std::vector<Tensor> dgains = tensors(ctx, step.norms, {step.size.width}, stream, 30);
    const std::vector<Tensor> dbiases = tensors(ctx, centred ? step.norms : 0, {step.size.width}, stream, 40);
    const Tensor x = random_tensor(ctx, shape, stream, 50);
    const Tensor dsum = random_tensor(ctx, shape, stream, 51);
    const Tensor mean = centred ? random_tensor(ctx, {step.size.rows}, stream, 52) : Tensor();
    const Tensor rstd = random_tensor(ctx, {step.size.rows}, stream, 53);
    const Tensor beta = gated(step) ? random_tensor(ctx, {1}, stream, 54) : Tensor();
    const Tensor dbeta = gated(step) ? random_tensor(ctx, {1}, stream, 55) : Tensor();
    const Tensor dresidual = ctx.empty_run(shape, stream, "dresidual");
    const Tensor partial = ctx.empty_run(
        {residual_norm_partial_elements(step.kind, step.norms, step.size.rows, step.size.width)}, stream, "partial");
    std::vector<Tensor> dterms(terms.size());
    dterms[0] = dresidual;
    const auto shares = [&](std::size_t k, std::size_t other) {
      return terms[k].dtype() == terms[other].dtype() && step.weights[k].constant == step.weights[other].constant &&
             step.weights[k].gate == step.weights[other].gate;
    };
    for (std::size_t k = 1; k < terms.size(); ++k) {
      bool shared = false;
      for (std::size_t other = 0; other < k; ++other) shared = shared || shares(k, other);
      if (!shared) dterms[k] = ctx.empty_run(shape, terms[k].dtype(), "dterm");
    }
    double gated_bytes = 0;
    for (std::size_t k = 0; k < terms.size(); ++k) gated_bytes += step.weights[k].gate != 0 ? bytes_of({terms[k]}) : 0;
    const auto run = [=](const Context& c) {
      ResidualNormBackward args;
      args.terms = static_cast<int>(terms.size());
      args.norms = step.norms;
      args.kind = step.kind;
      args.dsum = dsum.view();
      args.x = x.view();
      args.mean = mean.view();
      args.rstd = rstd.view();
      args.beta = beta.view();
      args.partial = partial.mutable_view();
      for (std::size_t k = 0; k < terms.size(); ++k) {
        args.weight[k] = step.weights[k];
        if (step.weights[k].gate != 0) args.term[k] = terms[k].view();
        args.dterm[k] = {dterms[k].mutable_view(), false};
      }
      for (std::size_t i = 0; i < gains.size(); ++i) {
        args.dy[i] = dys[i].view();
        args.gain[i] = gains[i].view();
        args.dgain[i] = {dgains[i].mutable_view(), false};
        if (centred) args.dbias[i] = {dbiases[i].mutable_view(), false};
      }
      args.dbeta = {dbeta.mutable_view(), false};
      residual_norm_backward(c, args);
    };
    return {run,
            bytes_of(dys) + bytes_of(gains) + bytes_of(dgains) + bytes_of(dbiases) + bytes_of(dterms) + gated_bytes +
                bytes_of({x, dsum, mean, rstd}),
            0};
  };
}

const std::vector<Precision> kPrecisions = {Precision::Fp32, Precision::Bf16};

const bool registered = [] {
  for (const Step& step : kSteps) {
    const std::string shape =
        fmt::format("{}_{}t{}n/{}x{}", step.name, step.weights.size(), step.norms, step.size.rows, step.size.width);
    Add("residual_norm/forward/" + shape, kPrecisions, forward(step));
    Add("residual_norm/backward/" + shape, kPrecisions, backward(step));
  }
  return true;
}();

}  // namespace
}  // namespace graft::bench
