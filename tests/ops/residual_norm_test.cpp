#include "ops/residual_norm.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

// float32: two sums over a row. bfloat16: inputs enter both sides rounded and sums are float32, so what differs is the
// rounding of the result, at most 2^-8 = 3.9e-3 of it.
constexpr Tolerance kFloatTolerance{2e-5, 2e-5};
constexpr Tolerance kBf16Tolerance{4e-3, 4e-3};

/// Weights of the terms of one use of the op, and which of its outputs are used.
struct Case {
  const char* name;
  std::vector<TermWeight> weights;
  int norms = 1;
  NormKind kind = NormKind::LayerNorm;
  bool keep_residual = true;
  bool use_residual = true;
  std::vector<int> unused = {};  // norms that nothing depends on
  bool beta_needs_gradient = true;
  std::vector<Role> roles = {};  // of the terms; the first in the stream and the others activations if empty
};

constexpr TermWeight kOne{1, 0};

std::vector<Case> cases() {
  const std::vector<std::vector<TermWeight>> sums = {
      {kOne},                                        // a norm
      {{0.5, 0}},                                    // scaled
      {{0, 1}},                                      // gated
      {kOne, kOne},                                  // a plain residual
      {{0.7, 0}, {2, 0}},                            // scaled residuals
      {kOne, {0, 1}},                                // a gated branch
      {kOne, kOne, kOne},                            // parallel branches
      {{1, -1}, {0, 1}, {0.5, 0.5}},                 // streams that a gate mixes
      {kOne, {0, 1}, kOne, {0, 1}},                  // two gated branches beside two plain ones
      {{0.5, 0.5}, {0.5, -0.5}, {1, 0.3}, {0, -2}},  // a different weight each
  };
  std::vector<Case> result;
  int norms = 1;
  for (const std::vector<TermWeight>& weights : sums) {
    for (const NormKind kind : {NormKind::LayerNorm, NormKind::RmsNorm}) {
      result.push_back({"all outputs", weights, norms, kind});
      norms = norms % kResidualNormMaxNorms + 1;
      result.push_back({"residual not kept", weights, norms, kind, false, false});
      result.push_back({"norms alone", weights, norms, kind, true, false});
      result.push_back({"no norm", weights, 1, kind, true, true, {0}});
    }
    result.push_back({"no norm of two", weights, 2, NormKind::LayerNorm, true, true, {0, 1}});
    result.push_back({"first norm of three unused", weights, 3, NormKind::LayerNorm, true, true, {0}});
    result.push_back({"second norm of two unused", weights, 2, NormKind::RmsNorm, false, false, {1}});
    result.push_back({"constant beta", weights, 3, NormKind::LayerNorm, true, true, {}, false});
  }
  const std::vector<TermWeight> gated = {kOne, kOne, {0, 1}, {0, 1}};
  result.push_back({"all in the stream",
                    gated,
                    2,
                    NormKind::LayerNorm,
                    true,
                    true,
                    {},
                    true,
                    {Role::Stream, Role::Stream, Role::Stream, Role::Stream}});
  result.push_back({"all activations",
                    gated,
                    2,
                    NormKind::RmsNorm,
                    true,
                    true,
                    {},
                    true,
                    {Role::Activation, Role::Activation, Role::Activation, Role::Activation}});
  result.push_back({"one activation", {kOne}, 2, NormKind::LayerNorm, false, false, {}, true, {Role::Activation}});
  result.push_back({"one activation, kept", {kOne}, 1, NormKind::RmsNorm, true, true, {}, true, {Role::Activation}});
  return result;
}

Role role_of_term(const Case& use, std::size_t k) {
  if (!use.roles.empty()) return use.roles[k];
  return k == 0 ? Role::Stream : Role::Activation;
}

bool gated(const Case& use) {
  for (const TermWeight& weight : use.weights) {
    if (weight.gate != 0) return true;
  }
  return false;
}

bool has_norm(const Case& use, int i) {
  for (const int unused : use.unused) {
    if (unused == i) return false;
  }
  return true;
}

int outputs_of(const Case& use) { return (use.use_residual ? 1 : 0) + use.norms - static_cast<int>(use.unused.size()); }

/// Terms, then gains and biases, then beta. Terms with a gate lean towards the cotangents of the outputs, so that the
/// gradient of beta, a single sum over all elements, is not what a cancellation leaves.
std::vector<HostTensor> inputs_of(const Case& use, const Shape& shape, double beta = 0.4) {
  const std::int64_t width = shape.columns();
  std::vector<HostTensor> inputs;
  for (std::size_t k = 0; k < use.weights.size(); ++k) {
    inputs.push_back(randn(shape, role_of_term(use, k), 1 + k));
    for (int output = 0; use.weights[k].gate != 0 && output < outputs_of(use); ++output) {
      const double lean = use.weights[k].gate > 0 ? 0.5 : -0.5;
      const HostTensor cotangent =
          randn(shape, Role::Activation, std::uint64_t{1000} + static_cast<std::uint64_t>(output));
      for (std::size_t j = 0; j < cotangent.values.size(); ++j) inputs[k].values[j] += lean * cotangent.values[j];
    }
  }
  // nobody writes gradients of what is not used
  const auto add = [&](bool used, const HostTensor& input) { inputs.push_back(used ? input : constant(input)); };
  for (int i = 0; i < use.norms; ++i) {
    const std::uint64_t seed = 20 + static_cast<std::uint64_t>(i);
    add(has_norm(use, i), uniform({width}, 0.5, 1.5, Role::Master, seed));
    if (use.kind == NormKind::LayerNorm) add(has_norm(use, i), randn({width}, Role::Master, seed + 10));
  }
  if (gated(use)) add(use.beta_needs_gradient, HostTensor{{1}, {beta}, Role::Master, true});
  return inputs;
}

/// A single column is normalised to its sign, or to zero: with a small eps its gradient is what a cancellation leaves.
double eps_for(const Shape& shape) { return shape.columns() == 1 ? 0.5 : 1e-5; }

ResidualNorm apply(const Case& use, const Context& ctx, const std::vector<Tensor>& in) {
  std::size_t next = 0;
  std::vector<ResidualTerm> terms;
  for (const TermWeight& weight : use.weights) terms.push_back({in[next++], weight.constant, weight.gate});
  std::vector<NormWeights> norms;
  for (int i = 0; i < use.norms; ++i) {
    NormWeights weights;
    weights.gain = in[next++];
    if (use.kind == NormKind::LayerNorm) weights.bias = in[next++];
    norms.push_back(weights);
  }
  const Tensor beta = gated(use) ? in[next] : Tensor();
  return residual_norm(ctx, terms, beta, use.kind, norms, use.keep_residual, eps_for(in[0].shape()));
}

Op op_of(const Case& use) {
  return [use](const Context& ctx, const std::vector<Tensor>& in) {
    const ResidualNorm result = apply(use, ctx, in);
    std::vector<Tensor> outputs;
    if (use.use_residual) outputs.push_back(result.residual);
    for (int i = 0; i < use.norms; ++i) {
      if (has_norm(use, i)) outputs.push_back(result.normed[static_cast<std::size_t>(i)]);
    }
    return outputs;
  };
}

std::string name_of(const Case& use) {
  std::string name = use.name;
  for (const TermWeight& weight : use.weights) {
    name += ", " + std::to_string(weight.constant) + " + " + std::to_string(weight.gate) + " tanh";
  }
  return name + ", norms " + std::to_string(use.norms);
}

/// Two streams through two blocks: a doubled residual whose gate beta both blocks share, and whose branch enters twice.
std::vector<Tensor> stack_op(const Context& ctx, const std::vector<Tensor>& in) {
  const std::vector<NormWeights> two{{in[2], in[3]}, {in[4], in[5]}};
  const ResidualNorm first = residual_norm(ctx, {{in[0]}}, {}, NormKind::LayerNorm, two);
  const ResidualNorm second = residual_norm(ctx, {{first.residual}, {first.normed[0]}, {first.normed[1], 0, 1}}, in[6],
                                            NormKind::LayerNorm, two);
  const ResidualNorm third = residual_norm(
      ctx, {{second.residual}, {second.normed[0], 0.5}, {second.normed[1], 0.5}, {second.normed[1], 0, 2}}, in[6],
      NormKind::LayerNorm, two);
  const ResidualNorm last =
      residual_norm(ctx, {{third.residual}, {in[1]}, {third.residual}}, {}, NormKind::LayerNorm, two, false);
  return {last.normed[0], last.normed[1]};
}

std::vector<HostTensor> stack_inputs(const Shape& shape) {
  const std::int64_t width = shape.columns();
  return {randn(shape, Role::Stream),
          randn(shape, Role::Activation, 2),
          uniform({width}, 0.5, 1.5, Role::Master, 3),
          randn({width}, Role::Master, 4),
          uniform({width}, 0.5, 1.5, Role::Master, 5),
          randn({width}, Role::Master, 6),
          HostTensor{{1}, {0.3}, Role::Master, true}};
}

/// The gradient of beta is (1 - tanh^2(beta)) sum_k gate_k <d, t_k> over all elements, of either sign: its error is
/// bounded by the sum of their magnitudes. The first term's gradient is d times its weight.
GradientScale beta_scale(const Case& use, const std::vector<HostTensor>& inputs) {
  if (!gated(use) || !use.beta_needs_gradient) return {};
  return {inputs.size() - 1, [&use, &inputs](const OpResult& expected) {
            const double gate = std::tanh(inputs.back().values[0]);
            const double weight = use.weights[0].constant + use.weights[0].gate * gate;
            double sum = 0;
            for (std::size_t k = 0; k < use.weights.size(); ++k) {
              for (std::size_t j = 0; j < inputs[k].values.size(); ++j) {
                sum += std::abs(use.weights[k].gate * inputs[k].values[j] * expected.gradients[0][j] / weight);
              }
            }
            return (1 - gate * gate) * sum;
          }};
}

void check_all_parities(Backend backend) {
  const std::vector<Case> all = cases();
  std::vector<Shape> shapes;
  // one element, ragged, aligned; and for each register layout of the CUDA kernels a full and a partly filled one
  for (const std::int64_t width : {1, 7, 8, 64, 128, 250, 256, 300, 512, 600, 1001, 1024, 2000, 2048, 5003, 8192}) {
    for (const std::int64_t rows : {1, 3, 100}) {
      // the gradient of a single gain is one sum over rows, and of a hundred terms of either sign little is left
      if (width == 1 && rows > 3) continue;
      if (rows * width <= 110000) shapes.push_back({rows, width});
    }
  }
  shapes.push_back({5248, 8});
  shapes.push_back({4100, 60});
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    // every use of the op in small shapes, a selection that changes from shape to shape in large ones
    const std::int64_t size = shapes[s].elements();
    const std::size_t stride = size <= 300 ? 1 : size <= 3000 ? 5 : size <= 30000 ? 13 : 29;
    for (std::size_t c = s % stride; c < all.size(); c += stride) {
      Case use = all[c];
      // a norm does not change with the scale of its input: beta's gradient is zero but for eps
      if (use.weights.size() == 1 && !use.use_residual) use.beta_needs_gradient = false;
      CAPTURE(name_of(use));
      const std::vector<HostTensor> inputs = inputs_of(use, shapes[s]);
      const GradientScale scale = beta_scale(use, inputs);
      check_parity(backend, Precision::Fp32, op_of(use), inputs, kFloatTolerance, scale);
      check_parity(backend, Precision::Bf16, op_of(use), inputs, kBf16Tolerance, scale);
      if (c % 7 == 0) check_parity(backend, Precision::Tf32, op_of(use), inputs, kFloatTolerance, scale);
    }
  }
  check_parity(backend, Precision::Fp32, stack_op, stack_inputs({6, 40}), kFloatTolerance);
}

TEST_CASE("residual_norm: matches its formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const auto tensor = [&](const std::vector<double>& values) {
    return device.tensor({static_cast<std::int64_t>(values.size())}, DType::F64, values);
  };
  // r = (1, 2, 3, 6) - 0.5 * (2, 0, 0, 0) + tanh(beta) * (2, 0, 0, 0) with tanh(beta) = 0.5: mean 3, variance 3.5
  const std::vector<ResidualTerm> terms{{tensor({1, 2, 3, 6})}, {tensor({2, 0, 0, 0}), -0.5, 1}};
  const Tensor beta = tensor({std::atanh(0.5)});
  const auto check = [&](const Tensor& got, const std::vector<double>& expected) {
    const std::vector<double> values = device.values(got);
    REQUIRE(values.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK(values[i] == doctest::Approx(expected[i]).epsilon(1e-14));
  };
  const ResidualNorm layer =
      residual_norm(device.ctx(), terms, beta, NormKind::LayerNorm,
                    {{tensor({1, 2, 1, 1}), tensor({0, 0, 0.5, 0})}, {tensor({1, 1, 1, 1}), tensor({0, 0, 0, 1})}});
  const double rstd = 1 / std::sqrt(3.5 + 1e-5);
  check(layer.residual, {1, 2, 3, 6});
  check(layer.normed[0], {-2 * rstd, -2 * rstd, 0.5, 3 * rstd});
  check(layer.normed[1], {-2 * rstd, -rstd, 0, 3 * rstd + 1});
  const ResidualNorm rms =
      residual_norm(device.ctx(), terms, beta, NormKind::RmsNorm, {{tensor({1, 2, 1, -1}), {}}}, false);
  const double rms_rstd = 1 / std::sqrt(12.5 + 1e-5);
  CHECK_FALSE(static_cast<bool>(rms.residual));
  check(rms.normed[0], {rms_rstd, 4 * rms_rstd, 3 * rms_rstd, -6 * rms_rstd});
}

TEST_CASE("residual_norm: gradients match finite differences, whichever outputs are used") {
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 33}, Shape{2, 5, 16}}) {
    for (const Case& use : cases()) {
      CAPTURE(shape.str());
      CAPTURE(name_of(use));
      CHECK(gradcheck(op_of(use), inputs_of(use, shape)) < 1e-7);
    }
  }
  for (const Case& use : cases()) {  // several blocks of rows
    CAPTURE(name_of(use));
    CHECK(gradcheck(op_of(use), inputs_of(use, {70, 5})) < 1e-7);
  }
}

TEST_CASE("residual_norm: gradients of a stack that shares streams, branches and the gate match finite differences") {
  for (const Shape& shape : {Shape{3, 33}, Shape{2, 5, 16}}) {
    CAPTURE(shape.str());
    CHECK(gradcheck(stack_op, stack_inputs(shape)) < 1e-7);
  }
}

TEST_CASE("residual_norm: a closed gate stops the gradient of its term, not that of beta") {
  const Case use{"closed", {kOne, {0, 1}}, 2};
  const std::vector<HostTensor> inputs = inputs_of(use, {4, 24}, 0);
  CHECK(gradcheck(op_of(use), inputs) < 1e-7);
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const OpResult result = run_op(device, op_of(use), inputs, random_cotangents(op_of(use), inputs));
  CHECK(result.gradients[1] == std::vector<double>(4 * 24, 0));
  CHECK(std::abs(result.gradients.back()[0]) > 0.1);
}

TEST_CASE("residual_norm: a lone term in the stream is the residual, uncopied") {
  const TestDevice device;
  const Case use{"lone", {kOne}};
  std::vector<Tensor> in;
  for (const HostTensor& input : inputs_of(use, {6, 40})) in.push_back(device.tensor(input));
  const ResidualNorm result = apply(use, device.ctx(), in);
  CHECK(result.residual.view().data == in[0].view().data);
  CHECK(result.residual.id() == in[0].id());
}

TEST_CASE("residual_norm: is the sum followed by the norm") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const Case use{"", {kOne, {0.5, 1}}};
  std::vector<Tensor> in;
  for (const HostTensor& input : inputs_of(use, {6, 40})) in.push_back(device.tensor(input));
  const ResidualNorm fused = apply(use, ctx, in);
  const ResidualNorm normed = residual_norm(ctx, {{fused.residual}}, {}, NormKind::LayerNorm, {{in[2], in[3]}});
  CHECK(device.bytes(fused.normed[0]) == device.bytes(normed.normed[0]));
  const Case last{"", use.weights, 1, NormKind::LayerNorm, false};
  const ResidualNorm alone = apply(last, ctx, in);
  CHECK_FALSE(static_cast<bool>(alone.residual));
  CHECK(device.bytes(alone.normed[0]) == device.bytes(normed.normed[0]));
}

TEST_CASE("residual_norm: a large common offset does not spoil the variance") {
  const Case use{"", {kOne}, 1, NormKind::LayerNorm, true, false};
  std::vector<HostTensor> inputs = inputs_of(use, {4, 256});
  for (double& value : inputs[0].values) value += 1000;
  // rounding x to float32 moves it by up to 3e-5, the deviation of its columns being 1
  check_parity(Backend::Cpu, Precision::Fp32, op_of(use), inputs, {1e-3, 1e-3});
}

TEST_CASE("residual_norm: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("residual_norm: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("residual_norm: results do not depend on the number of threads") {
  const Case use{"", {kOne, {0, 1}, {0.5, 1}}, 3};
  const std::vector<HostTensor> inputs = inputs_of(use, {200, 48});
  const auto cotangents = random_cotangents(op_of(use), inputs);
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), op_of(use), inputs, cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), op_of(use), inputs, cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("residual_norm: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  const auto refused = [&](const std::vector<ResidualTerm>& terms, const Tensor& beta, NormKind kind,
                           const std::vector<NormWeights>& norms, const char* message) {
    CHECK_THROWS_WITH_AS(residual_norm(ctx, terms, beta, kind, norms), doctest::Contains(message), ArgumentError);
  };
  const auto layer = NormKind::LayerNorm;
  const Tensor x = zeros({3, 8});
  const Tensor weight = zeros({8});
  const std::vector<NormWeights> norm{{weight, zeros({8})}};
  refused({}, {}, layer, norm, "residual_norm: 0 terms, expected 1 to 4");
  refused({{x}, {x}, {x}, {x}, {x}}, {}, layer, norm, "residual_norm: 5 terms, expected 1 to 4");
  refused({{x}}, {}, layer, {}, "residual_norm: 0 norms, expected 1 to 3");
  refused({{x}}, {}, layer, {norm[0], norm[0], norm[0], norm[0]}, "residual_norm: 4 norms, expected 1 to 3");
  refused({{x}, {zeros({2, 8})}}, {}, layer, norm, "residual_norm: term 1 is [2, 8], expected [3, 8]");
  refused({{x}, {zeros({3, 8}, DType::BF16)}}, {}, layer, norm,
          "residual_norm: term 1 is bfloat16, expected float32 or float32 in fp32");
  refused({{zeros({1, 8200})}}, {}, layer, {{zeros({8200}), zeros({8200})}}, "width is 8200, expected 1 to 8192");
  refused({{zeros({})}}, {}, layer, norm, "residual_norm: term 0 is [], expected [..., D]");
  refused({{x, 0, 1}}, {}, layer, norm, "residual_norm: beta is empty, expected [1], since a term has a gate");
  refused({{x, 0, 1}}, weight, layer, norm, "residual_norm: beta is [8], expected [1]");
  refused({{x, 0, 1}}, zeros({1}, DType::BF16), layer, norm, "residual_norm: beta is bfloat16, expected float32");
  refused({{x}}, {}, layer, {norm[0], {zeros({7}), weight}}, "residual_norm: gain 1 is [7], expected [8]");
  refused({{x}}, {}, layer, {{weight, {}}}, "residual_norm: bias 0 is [], expected [8]");
  refused({{x}}, {}, layer, {{weight, zeros({8}, DType::BF16)}}, "residual_norm: bias 0 is bfloat16, expected float32");
  refused({{x}}, {}, NormKind::RmsNorm, norm, "residual_norm: bias 0 is [8], expected none in an RMS norm");
  refused({{x}}, {}, layer, {norm[0], {weight, zeros({8})}}, "norms 0 and 1 have the same gain, expected one each");
  refused({{x}}, {}, layer, {norm[0], {zeros({8}), norm[0].bias}}, "norms 0 and 1 have the same bias");
}

}  // namespace
}  // namespace graft::test
