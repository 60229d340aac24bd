#include "ops/linear.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Size {
  Shape x;
  std::int64_t out;
};

// one element, ragged, padded to 8, more than one tile of the CPU's products in every direction
const Size kSizes[] = {{Shape{1, 1}, 1}, {Shape{3, 5}, 7}, {Shape{5}, 3}, {Shape{2, 3, 16}, 24}, {Shape{130, 72}, 200}};
// more rows than one part of a column sum, as in training; one long reduction
const Size kTrainingSizes[] = {{Shape{4, 82, 256}, 768}, {Shape{5000, 8}, 8}};

std::vector<HostTensor> inputs_of(const Size& size, bool bias) {
  const std::int64_t in = size.x.columns();
  std::vector<HostTensor> inputs{randn(size.x), randn({size.out, in}, Role::Weight, 2, 1 / std::sqrt(double(in)))};
  if (bias) inputs.push_back(randn({size.out}, Role::Weight, 3));
  return inputs;
}

Op linear_op(FusedEpilogues fused = {}) {
  return [fused](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{linear(ctx, in[0], in[1], in.size() > 2 ? in[2] : Tensor(), fused)};
  };
}

TEST_CASE("linear: matches its formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const Tensor x = device.tensor({2, 3}, DType::F64, {1, 2, 3, 4, 5, 6});
  const Tensor weight = device.tensor({2, 3}, DType::F64, {1, 0, -1, 2, 1, 0});
  const Tensor bias = device.tensor({2}, DType::F64, {10, 20});
  CHECK(device.values(linear(device.ctx(), x, weight, bias)) == std::vector<double>{8, 24, 8, 33});
  CHECK(device.values(linear(device.ctx(), x, weight)) == std::vector<double>{-2, 4, -2, 13});
}

TEST_CASE("linear: gradients match finite differences") {
  for (const Size& size : kSizes) {
    for (const bool bias : {false, true}) {
      CAPTURE(size.x.str());
      CAPTURE(bias);
      CHECK(gradcheck(linear_op(), inputs_of(size, bias)) < 1e-7);
    }
  }
}

// Bounds relative to the largest entry. float32: sums of up to 5000 products, 2e-5 as for every op. bfloat16: operands
// enter both sides rounded, sums are float32, so what differs is the rounding of the result, at most 2^-8 = 3.9e-3 of
// it; with a bias that cuBLASLt does not add itself the product is rounded before, and 2^-7 bounds both. tf32: both
// operands of each product cut to 10 bits behind the leading one, at most 2 * 2^-10 of a product, where nothing
// cancels.
constexpr Tolerance kFp32{2e-5, 2e-5};
constexpr Tolerance kBf16{7.9e-3, 4e-3};
constexpr Tolerance kTf32{2e-3, 2e-3};

void check_all(Backend backend, Precision precision, Tolerance tolerance, FusedEpilogues fused = {}) {
  for (const Size& size : kSizes) check_parity(backend, precision, linear_op(fused), inputs_of(size, true), tolerance);
  for (const Size& size : kTrainingSizes) {
    check_parity(backend, precision, linear_op(fused), inputs_of(size, true), tolerance);
  }
  check_parity(backend, precision, linear_op(fused), inputs_of(kSizes[4], false), tolerance);
}

TEST_CASE("linear: the CPU's float32 and bfloat16 match float64") {
  check_all(Backend::Cpu, Precision::Fp32, kFp32);
  check_all(Backend::Cpu, Precision::Bf16, {4e-3, 4e-3});
}

TEST_CASE("linear: CUDA matches CPU") {
  if (skip_cuda()) return;
  for (const bool on : {true, false}) {
    CAPTURE(on);
    const FusedEpilogues fused{on, on, on};
    check_all(Backend::Cuda, Precision::Fp32, kFp32, fused);
    check_all(Backend::Cuda, Precision::Tf32, kTf32, fused);
    check_all(Backend::Cuda, Precision::Bf16, kBf16, fused);
  }
}

TEST_CASE("linear: CUDA adds a float32 bias in bf16") {
  if (skip_cuda()) return;
  std::vector<HostTensor> inputs = inputs_of(kTrainingSizes[0], true);
  inputs[2].role = Role::Master;
  check_parity(Backend::Cuda, Precision::Bf16, linear_op(), inputs, kBf16);
}

TEST_CASE("linear: the thread count changes no bit") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16, Precision::Fp64}) {
    const std::vector<HostTensor> inputs = inputs_of(kTrainingSizes[0], true);
    const auto cotangents = random_cotangents(linear_op(), inputs);
    const TestDevice one(Backend::Cpu, precision, 1);
    const TestDevice four(Backend::Cpu, precision, 4);
    const OpResult a = run_op(one, linear_op(), inputs, cotangents);
    const OpResult b = run_op(four, linear_op(), inputs, cotangents);
    CHECK(a.outputs == b.outputs);
    CHECK(a.gradients == b.gradients);
  }
}

TEST_CASE("linear: zero columns of padding change nothing and get zero gradients") {
  HostTensor x = randn({6, 5});
  HostTensor weight = randn({3, 5}, Role::Weight, 2);
  const auto padded = [](const HostTensor& tensor, std::int64_t rows, std::int64_t columns) {
    HostTensor result = tensor;
    result.shape = {rows, columns};
    result.values.assign(static_cast<std::size_t>(rows * columns), 0);
    const std::int64_t from = tensor.shape[1];
    for (std::int64_t r = 0; r < tensor.shape[0]; ++r) {
      std::copy_n(tensor.values.begin() + r * from, from, result.values.begin() + r * columns);
    }
    return result;
  };
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const HostTensor dy = randn({6, 3}, Role::Activation, 4);
  const OpResult plain = run_op(device, linear_op(), {x, weight}, {dy.values});
  const OpResult wide = run_op(device, linear_op(), {padded(x, 6, 8), padded(weight, 8, 8)}, {padded(dy, 6, 8).values});
  for (std::int64_t r = 0; r < 6; ++r) {
    for (std::int64_t c = 0; c < 8; ++c) {
      const double got = wide.outputs[0][static_cast<std::size_t>(r * 8 + c)];
      const double expected = c < 3 ? plain.outputs[0][static_cast<std::size_t>(r * 3 + c)] : 0.0;
      CHECK(got == doctest::Approx(expected).epsilon(1e-14));
    }
  }
  for (std::int64_t r = 0; r < 8; ++r) {
    for (std::int64_t c = 0; c < 8; ++c) {
      const double got = wide.gradients[1][static_cast<std::size_t>(r * 8 + c)];
      const bool inside = r < 3 && c < 5;
      const double expected = inside ? plain.gradients[1][static_cast<std::size_t>(r * 5 + c)] : 0.0;
      CHECK(got == doctest::Approx(expected).epsilon(1e-14));
    }
  }
}

TEST_CASE("linear: inputs that do not fit are refused") {
  const TestDevice device(Backend::Cpu, Precision::Fp32);
  const Context& ctx = device.ctx();
  const Tensor x = device.tensor(randn({2, 5}));
  const Tensor weight = device.tensor(randn({7, 5}, Role::Weight));
  const auto message = [&](const Tensor& a, const Tensor& w, const Tensor& b) {
    try {
      static_cast<void>(linear(ctx, a, w, b));
    } catch (const ArgumentError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  CHECK(message(device.tensor(randn({2, 4})), weight, {}).find("expected x [..., 5]") != std::string::npos);
  CHECK(message(x, device.tensor(randn({7})), {}).find("expected [out, in]") != std::string::npos);
  CHECK(message(x, weight, device.tensor(randn({5}))).find("expected [7]") != std::string::npos);
  CHECK(message(x, weight, Tensor()) == "no error");
  CHECK(message({}, weight, {}).find("expected [..., in]") != std::string::npos);

  const TestDevice half(Backend::Cpu, Precision::Bf16);
  const Tensor x_f32 = half.tensor({2, 5}, DType::F32, std::vector<double>(10));
  const Tensor weight_bf16 = half.tensor(randn({7, 5}, Role::Weight));
  CHECK_THROWS_WITH_AS(static_cast<void>(linear(half.ctx(), x_f32, weight_bf16)),
                       doctest::Contains("x is float32, expected bfloat16 in bf16"), ArgumentError);
}

TEST_CASE("linear: an absent gradient target leaves the other gradients as they are") {
  const std::vector<HostTensor> inputs = inputs_of(kSizes[4], true);
  const auto cotangents = random_cotangents(linear_op(), inputs);
  for (const Backend backend : {Backend::Cpu, Backend::Cuda}) {
    if (backend == Backend::Cuda && skip_cuda()) continue;
    const TestDevice device(backend, Precision::Fp32);
    const OpResult all = run_op(device, linear_op(), inputs, cotangents);
    for (std::size_t absent = 0; absent < inputs.size(); ++absent) {
      std::vector<HostTensor> fewer = inputs;
      fewer[absent] = constant(fewer[absent]);
      const OpResult some = run_op(device, linear_op(), fewer, cotangents);
      for (std::size_t k = 0; k < inputs.size(); ++k) {
        if (k == absent) continue;
        double worst = 0;
        double largest = 0;
        for (std::size_t i = 0; i < all.gradients[k].size(); ++i) {
          worst = std::max(worst, std::abs(all.gradients[k][i] - some.gradients[k][i]));
          largest = std::max(largest, std::abs(all.gradients[k][i]));
        }
        CHECK(some.gradients[k].size() == all.gradients[k].size());
        CHECK(worst <= 1e-6 * largest);
      }
    }
  }
}

}  // namespace
}  // namespace graft::test
