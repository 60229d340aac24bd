#include "ops/cross_entropy.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/error.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Case {
  Shape logits;
  std::int64_t columns;
  double scale;
};

// one class; ragged; padded columns; large logits; more columns than a warp, more rows than a block
const std::vector<Case> kCases = {{Shape{1, 1}, 0, 1},
                                  {Shape{3, 33}, 0, 1},
                                  {Shape{2, 5, 128}, 101, 1},
                                  {Shape{21, 16}, 11, 30},
                                  {Shape{3000, 8}, 5, 1}};

std::vector<HostTensor> inputs_of(const Case& c) {
  const std::int64_t classes = c.columns == 0 ? c.logits.columns() : c.columns;
  HostTensor labels = integers({c.logits.rows()}, classes);
  for (std::size_t i = 1; i < labels.values.size(); i += 4) labels.values[i] = kIgnoredLabel;
  return {randn(c.logits, Role::Activation, 1, c.scale), labels};
}

Op op_of(const Case& c) {
  return [columns = c.columns](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{cross_entropy(ctx, in[0], in[1], columns)};
  };
}

void check_all_parities(Backend backend) {
  for (const Case& c : kCases) {
    check_parity(backend, Precision::Fp32, op_of(c), inputs_of(c), {2e-5, 2e-5});
    // the loss is float32; the gradient is rounded once to bfloat16, by at most 2^-8 = 3.9e-3
    check_parity(backend, Precision::Bf16, op_of(c), inputs_of(c), {2e-5, 4e-3});
  }
}

TEST_CASE("cross_entropy: matches its formula") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const Case& c : kCases) {
    const std::vector<HostTensor> inputs = inputs_of(c);
    const std::int64_t stored = c.logits.columns();
    const std::int64_t classes = c.columns == 0 ? stored : c.columns;
    double sum = 0;
    double count = 0;
    for (std::size_t row = 0; row < inputs[1].values.size(); ++row) {
      const double label = inputs[1].values[row];
      if (label == kIgnoredLabel) continue;
      const double* const logits = inputs[0].values.data() + row * static_cast<std::size_t>(stored);
      const double largest = *std::max_element(logits, logits + classes);
      double exponentials = 0;
      for (std::int64_t k = 0; k < classes; ++k) exponentials += std::exp(logits[k] - largest);
      sum += largest + std::log(exponentials) - logits[static_cast<std::int64_t>(label)];
      count += 1;
    }
    const OpResult got = run_op(device, op_of(c), inputs, {{1.0}});
    CHECK(got.outputs[0][0] == doctest::Approx(sum / count).epsilon(1e-13));
  }
}

TEST_CASE("cross_entropy: gradients match finite differences") {
  for (const Case& c : kCases) {
    CAPTURE(c.logits.str());
    if (c.scale == 1) CHECK(gradcheck(op_of(c), inputs_of(c)) < 1e-7);
  }
}

TEST_CASE("cross_entropy: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("cross_entropy: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("cross_entropy: ignored rows, padding, and rows without a valid label") {
  const auto check = [](Backend backend) {
    const TestDevice device(backend);
    const Case c{Shape{2, 8}, 3, 1};
    std::vector<HostTensor> inputs = inputs_of(c);
    inputs[1].values = {2, kIgnoredLabel};
    const OpResult one = run_op(device, op_of(c), inputs, {{1.0}});
    for (std::size_t i = 0; i < 16; ++i) CHECK((one.gradients[0][i] == 0) == (i >= 3));
    inputs[1].values = {kIgnoredLabel, kIgnoredLabel};
    const OpResult none = run_op(device, op_of(c), inputs, {{1.0}});
    CHECK(none.outputs[0][0] == 0);
    CHECK(none.gradients[0] == std::vector<double>(16, 0.0));
    inputs[1].values = {0, 3};
    CHECK(std::isnan(run_op(device, op_of(c), inputs, {{1.0}}).outputs[0][0]));
  };
  check(Backend::Cpu);
  if (!skip_cuda()) check(Backend::Cuda);
}

TEST_CASE("cross_entropy: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  CHECK_THROWS_WITH_AS(cross_entropy(ctx, zeros({4, 8}), zeros({3}, DType::I32)),
                       doctest::Contains("labels are [3], expected 4: one for every row of logits [4, 8]"),
                       ArgumentError);
  CHECK_THROWS_WITH_AS(cross_entropy(ctx, zeros({4, 8}), zeros({4})),
                       doctest::Contains("labels are float32, expected int32"), ArgumentError);
  CHECK_THROWS_WITH_AS(cross_entropy(ctx, zeros({4, 8}), zeros({4}, DType::I32), 9),
                       doctest::Contains("9 valid columns of 8"), ArgumentError);
}

}  // namespace
}  // namespace graft::test
