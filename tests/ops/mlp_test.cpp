#include "ops/mlp.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "engine/error.h"
#include "ops/gelu_formula.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Size {
  Shape x;
  std::int64_t hidden, out;
};

const Size kSizes[] = {{Shape{1, 1}, 1, 1}, {Shape{3, 5}, 7, 5}, {Shape{2, 9, 16}, 64, 16}, {Shape{130, 24}, 200, 40}};
const Size kTrainingSize{Shape{4, 82, 256}, 1024, 256};

std::vector<HostTensor> inputs_of(const Size& size) {
  const std::int64_t in = size.x.columns();
  return {randn(size.x), randn({size.hidden, in}, Role::Weight, 2, 1 / std::sqrt(double(in))),
          randn({size.hidden}, Role::Weight, 3, 0.5),
          randn({size.out, size.hidden}, Role::Weight, 4, 1 / std::sqrt(double(size.hidden))),
          randn({size.out}, Role::Weight, 5, 0.5)};
}

Op mlp_op(Activation activation, FusedEpilogues fused = {}) {
  return [=](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{mlp(ctx, in[0], {in[1], in[2], in[3], in[4]}, activation, fused)};
  };
}

constexpr Activation kActivations[] = {Activation::GeluTanh, Activation::GeluErf};

TEST_CASE("mlp: gelu has the values of its definition") {
  for (const double x : {-6.0, -3.0, -1.0, -0.1, 0.0, 0.5, 2.0, 7.0}) {
    const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    CHECK(std::abs(gelu_tanh(x) - 0.5 * x * (1 + std::tanh(u))) < 2e-15);  // 1 + tanh(u) cancels: absolute
    CHECK(std::abs(gelu_erf(x) - 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)))) < 2e-15);
  }
  CHECK(gelu_tanh(-40.F) == 0.F);  // the exponential overflows there
  CHECK(gelu_tanh_slope(-40.F) == 0.F);
  CHECK(gelu_tanh_slope(40.F) == 1.F);
}

TEST_CASE("mlp: gradients match finite differences") {
  for (const Activation activation : kActivations) {
    for (const Size& size : kSizes) CHECK(gradcheck(mlp_op(activation), inputs_of(size)) < 1e-7);
  }
}

TEST_CASE("mlp: is two linear maps with gelu between them") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::vector<HostTensor> inputs = inputs_of(kSizes[1]);
  const Op composed = [](const Context& ctx, const std::vector<Tensor>& in) {
    const Tensor pre = linear(ctx, in[0], in[1], in[2]);
    std::vector<double> values(static_cast<std::size_t>(pre.elements()));
    ctx.stream->download(values.data(), pre.view().data, pre.bytes(), "pre");
    for (double& value : values) value = gelu_tanh(value);
    const Tensor hidden = ctx.empty(pre.shape(), pre.dtype());
    ctx.stream->upload(hidden.mutable_view().data, values.data(), hidden.bytes(), "hidden");
    return std::vector<Tensor>{linear(ctx, hidden, in[3], in[4])};
  };
  std::vector<Tensor> tensors;
  for (const HostTensor& input : inputs) tensors.push_back(device.tensor(input));
  const std::vector<double> expected = device.values(composed(device.ctx(), tensors)[0]);
  const std::vector<double> got = device.values(mlp_op(Activation::GeluTanh)(device.ctx(), tensors)[0]);
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-13));
}

// Bounds relative to the largest entry. float32: 8e-7 measured on the CPU, 2e-5 as for every op. bfloat16: x, weights
// and cotangents enter both sides rounded; pre-activation, activation, their gradient and the result are each rounded,
// at most 2^-8 = 3.9e-3 of an entry (2^-7 where gelu runs in a kernel of its own). Those errors are independent within
// a sum: 4.8e-3 measured on the CPU. tf32: operands are cut to 10 bits behind the leading one, twice 2^-10 of a
// product.
constexpr Tolerance kFp32{2e-5, 2e-5};
constexpr Tolerance kBf16{1.2e-2, 1.2e-2};
constexpr Tolerance kTf32{3e-3, 3e-3};

void check_all(Backend backend, Precision precision, Tolerance tolerance, FusedEpilogues fused = {}) {
  for (const Activation activation : kActivations) {
    for (const Size& size : kSizes) {
      check_parity(backend, precision, mlp_op(activation, fused), inputs_of(size), tolerance);
    }
    check_parity(backend, precision, mlp_op(activation, fused), inputs_of(kTrainingSize), tolerance);
  }
}

TEST_CASE("mlp: the CPU's float32 and bfloat16 match float64") {
  check_all(Backend::Cpu, Precision::Fp32, kFp32);
  check_all(Backend::Cpu, Precision::Bf16, kBf16);
}

TEST_CASE("mlp: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const bool on : {true, false}) {
    CAPTURE(on);
    const FusedEpilogues fused{on, on, on};
    check_all(Backend::Cuda, Precision::Fp32, kFp32, fused);
    check_all(Backend::Cuda, Precision::Tf32, kTf32, fused);
    check_all(Backend::Cuda, Precision::Bf16, kBf16, fused);
  }
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return worst / largest;
}

TEST_CASE("mlp: CUDA epilogues match separate kernels") {
  if (skip_cuda()) return;
  const std::vector<HostTensor> inputs = inputs_of(kTrainingSize);
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    const TestDevice device(Backend::Cuda, precision);
    const Op with = mlp_op(Activation::GeluTanh, {true, true, true});
    const Op without = mlp_op(Activation::GeluTanh, {false, false, false});
    const auto cotangents = random_cotangents(without, inputs);
    const OpResult a = run_op(device, with, inputs, cotangents);
    const OpResult b = run_op(device, without, inputs, cotangents);
    const double bound = precision == Precision::Bf16 ? kBf16.outputs : precision == Precision::Tf32 ? 1e-3 : 2e-5;
    INFO(name_of(precision));
    CHECK(difference(a.outputs[0], b.outputs[0]) <= bound);
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      INFO("gradient of input " << k);
      CHECK(difference(a.gradients[k], b.gradients[k]) <= bound);
    }
  }
}

TEST_CASE("mlp: inference gives the bits of training") {
  for (const Backend backend : {Backend::Cpu, Backend::Cuda}) {
    if (backend == Backend::Cuda && skip_cuda()) continue;
    const TestDevice device(backend, Precision::Fp32);
    const std::vector<HostTensor> inputs = inputs_of(kSizes[3]);
    const Op op = mlp_op(Activation::GeluErf);
    const OpResult training = run_op(device, op, inputs, random_cotangents(op, inputs));
    std::vector<Tensor> tensors;
    for (const HostTensor& input : inputs) tensors.push_back(device.tensor(input));
    CHECK(device.values(op(device.ctx(), tensors)[0]) == training.outputs[0]);
  }
}

TEST_CASE("mlp: captured products give the bits of eager ones") {
  for (const Backend backend : {Backend::Cpu, Backend::Cuda}) {
    if (backend == Backend::Cuda && skip_cuda()) continue;
    for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
      const TestDevice device(backend, precision);
      Stream& stream = *device.ctx().stream;
      std::vector<Tensor> in;
      for (const HostTensor& input : inputs_of(kTrainingSize)) in.push_back(device.tensor(input));
      // fixed outputs: a forward product with gelu, its gradients, and what they need
      const DType dtype = device.ctx().compute_dtype();
      const Tensor y = device.ctx().empty({328, 1024}, dtype);
      const Tensor pre = device.ctx().empty({328, 1024}, dtype);
      const Tensor dhidden = device.ctx().empty({328, 1024}, dtype);
      const Tensor dweight = device.ctx().empty({1024, 256}, DType::F32);
      const Tensor dbias = device.ctx().empty({1024}, DType::F32);
      const Tensor scratch = device.ctx().empty({column_sum_parts(328), 1024}, DType::F32);
      const std::vector<Tensor> results{y, pre, dhidden, dweight, dbias};
      const auto step = [&] {
        const Context& ctx = device.ctx();
        linear_forward(ctx, {in[0].view(),
                             in[1].view(),
                             in[2].view(),
                             y.mutable_view(),
                             pre.mutable_view(),
                             Activation::GeluTanh,
                             precision,
                             {}});
        linear_backward_data(ctx, {in[0].view(),
                                   in[3].view(),
                                   pre.view(),
                                   GradTarget{dhidden.mutable_view(), false},
                                   GradTarget{dbias.mutable_view(), false},
                                   scratch.mutable_view(),
                                   {},
                                   Activation::GeluTanh,
                                   precision,
                                   {}});
        linear_backward_weight(ctx, {dhidden.view(),
                                     in[0].view(),
                                     GradTarget{dweight.mutable_view(), false},
                                     GradTarget{dbias.mutable_view(), true},
                                     scratch.mutable_view(),
                                     precision,
                                     {}});
      };
      const auto bits = [&] {
        std::vector<std::vector<std::byte>> all;
        for (const Tensor& result : results) all.push_back(device.bytes(result));
        return all;
      };
      step();
      const auto eager = bits();
      for (const Tensor& result : results) stream.zero(result.mutable_view().data, result.bytes());
      stream.begin_capture();
      step();
      const auto graph = stream.end_capture();
      graph->replay(stream);
      CHECK(bits() == eager);
      graph->replay(stream);
      CHECK(bits() == eager);
    }
  }
}

TEST_CASE("mlp: inputs that do not fit are refused") {
  const TestDevice device(Backend::Cpu, Precision::Fp32);
  const Context& ctx = device.ctx();
  const Tensor x = device.tensor(randn({2, 5}));
  const MlpWeights good{device.tensor(randn({7, 5})), {}, device.tensor(randn({5, 7})), {}};
  CHECK(mlp(ctx, x, good).shape() == Shape{2, 5});
  MlpWeights bad = good;
  bad.weight2 = device.tensor(randn({5, 6}));
  CHECK_THROWS_WITH_AS(static_cast<void>(mlp(ctx, x, bad)), doctest::Contains("weight2 is [5, 6], expected x [..., 6]"),
                       ArgumentError);
  bad = good;
  bad.bias1 = device.tensor(randn({5}));
  CHECK_THROWS_WITH_AS(static_cast<void>(mlp(ctx, x, bad)), doctest::Contains("bias1 is [5], expected [7]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(static_cast<void>(mlp(ctx, x, good, Activation::None)), doctest::Contains("expected gelu"),
                       ArgumentError);
}

}  // namespace
}  // namespace graft::test
