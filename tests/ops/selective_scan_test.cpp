#include "ops/selective_scan.h"

#include <doctest/doctest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/reference/selective_scan.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Size {
  std::int64_t batch, tokens, width, state;
};

/// Which optional inputs a case has, and what lies before, between and after the columns it reads.
struct Form {
  bool gate = true, skip = true, bias = true, softplus = true;
  std::int64_t b_first = 0, c_first = -1, bc_after = 0;  // c_first < 0: right after B
  std::int64_t z_first = 0, z_after = 0;
};

constexpr Form kPlain{false, false, false, false};
constexpr Form kPacked{true, true, true, true, 3, -1, 2, 5, 1};
constexpr Form kAligned{true, true, true, true, 8, -1, 8, 8, 4};  // the CUDA kernels may move four channels at once

std::int64_t c_offset(Size size, Form form) { return form.c_first < 0 ? form.b_first + size.state : form.c_first; }
std::int64_t bc_row(Size size, Form form) {
  return std::max(form.b_first, c_offset(size, form)) + size.state + form.bc_after;
}

/// u, delta, a_log, bc and what the form has of skip, delta_bias and z.
std::vector<HostTensor> scan_inputs(Size size, Form form) {
  const Shape shape{size.batch, size.tokens, size.width};
  std::vector<HostTensor> inputs{
      randn(shape, Role::Activation, 1),
      // without softplus, step sizes have to be positive for the states to stay bounded
      form.softplus ? randn(shape, Role::Activation, 2) : uniform(shape, 0.05, 1.0, Role::Activation, 2),
      uniform({size.width, size.state}, -1.5, 1.0, Role::Master, 3),
      randn({size.batch, size.tokens, bc_row(size, form)}, Role::Activation, 4)};
  if (form.skip) inputs.push_back(randn({size.width}, Role::Master, 5));
  if (form.bias) inputs.push_back(uniform({size.width}, 0.0, 0.5, Role::Master, 6));
  if (form.gate) {
    inputs.push_back(randn({size.batch, size.tokens, form.z_first + size.width + form.z_after}, Role::Activation, 7));
  }
  return inputs;
}

SelectiveScanInputs scan_arguments(Size size, Form form, const std::vector<Tensor>& in) {
  SelectiveScanInputs inputs{in[0], in[1], in[2], in[3]};
  inputs.b_offset = form.b_first;
  inputs.c_offset = c_offset(size, form);
  std::size_t next = 4;
  if (form.skip) inputs.skip = in[next++];
  if (form.bias) inputs.delta_bias = in[next++];
  if (form.gate) inputs.z = in[next++];
  inputs.z_offset = form.z_first;
  inputs.softplus = form.softplus;
  return inputs;
}

Op scan_op(Size size, Form form) {
  return [=](const Context& ctx, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{selective_scan(ctx, scan_arguments(size, form, in))};
  };
}

/// Columns [first, first + count) of every row.
std::vector<double> columns(const HostTensor& packed, std::int64_t first, std::int64_t count) {
  std::vector<double> result;
  const std::int64_t row = packed.shape.columns();
  for (std::int64_t r = 0; r < packed.shape.rows(); ++r) {
    for (std::int64_t i = 0; i < count; ++i) {
      result.push_back(packed.values[static_cast<std::size_t>(r * row + first + i)]);
    }
  }
  return result;
}

ScanProblem problem_of(Size size, Form form, const std::vector<HostTensor>& in) {
  ScanProblem problem{size.batch, size.tokens, size.width, size.state, in[0].values, in[1].values, in[2].values,
                      {},         {},          {},         {},         {},           form.softplus};
  for (double& a : problem.a) a = -std::exp(a);
  problem.b = columns(in[3], form.b_first, size.state);
  problem.c = columns(in[3], c_offset(size, form), size.state);
  std::size_t next = 4;
  if (form.skip) problem.skip = in[next++].values;
  if (form.bias) problem.bias = in[next++].values;
  if (form.gate) problem.z = columns(in[next++], form.z_first, size.width);
  return problem;
}

// float32: sums over up to 300 steps, 512 channels and 128 states. bfloat16: inputs enter both sides rounded and all
// arithmetic is float32, so what differs is the rounding of results, at most 2^-8 = 3.9e-3 of them.
constexpr Tolerance kFloatTolerance{2e-5, 2e-5};
constexpr Tolerance kBf16Tolerance{4e-3, 4e-3};

// each number of lanes and states a thread of the CUDA kernels, full and partly filled; lengths around a tile of 16
const std::vector<std::pair<Size, Form>> kParityCases = {{{1, 1, 1, 1}, {}},
                                                         {{2, 2, 3, 4}, kPacked},
                                                         {{1, 15, 32, 16}, {}},
                                                         {{2, 16, 100, 16}, kPacked},
                                                         {{1, 17, 512, 16}, {}},
                                                         {{3, 82, 100, 16}, kPlain},
                                                         {{2, 82, 512, 16}, {}},
                                                         {{1, 110, 3, 20}, kPacked},
                                                         {{2, 33, 100, 20}, kPacked},
                                                         {{1, 300, 32, 64}, {}},
                                                         {{2, 17, 100, 64}, kPacked},
                                                         {{1, 110, 32, 128}, kPacked},
                                                         {{1, 40, 9, 256}, {}},
                                                         {{2, 300, 1, 16}, kPacked},
                                                         {{1, 82, 3, 1}, {}},
                                                         {{1, 300, 512, 4}, kPacked},
                                                         {{96, 18, 700, 8}, {}},
                                                         {{48, 18, 700, 16}, kPlain},
                                                         {{2, 16, 32, 12}, {true, false, true, true, 20, 0, 4, 0, 0}},
                                                         {{2, 7, 36, 5}, kAligned},
                                                         {{1, 82, 132, 1}, kAligned},
                                                         {{2, 50, 132, 16}, kAligned},
                                                         {{3, 110, 72, 32}, kAligned},
                                                         {{1, 35, 68, 64}, {false, true, false, true}},
                                                         {{2, 19, 20, 100}, kAligned},
                                                         {{1, 21, 12, 256}, kPlain},
                                                         {{64, 19, 513, 16}, kPacked},
                                                         {{64, 19, 516, 16}, kAligned}};

void check_all_parities(Backend backend) {
  for (const auto& [size, form] : kParityCases) {
    // the large batches are there for the choice of a CUDA kernel
    if (backend == Backend::Cpu && size.batch > 3) continue;
    CAPTURE(size.batch);
    CAPTURE(size.tokens);
    CAPTURE(size.width);
    CAPTURE(size.state);
    const Op op = scan_op(size, form);
    const std::vector<HostTensor> inputs = scan_inputs(size, form);
    check_parity(backend, Precision::Fp32, op, inputs, kFloatTolerance);
    check_parity(backend, Precision::Tf32, op, inputs, kFloatTolerance);
    check_parity(backend, Precision::Bf16, op, inputs, kBf16Tolerance);
  }
}

TEST_CASE("selective_scan: matches the sequential reference") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  for (const Size size : {Size{1, 1, 1, 1}, Size{2, 5, 3, 4}, Size{1, 33, 6, 16}, Size{2, 50, 140, 20}}) {
    for (const Form form : {Form{}, kPlain, kPacked, Form{false, true, false, true}}) {
      CAPTURE(size.tokens);
      const std::vector<HostTensor> inputs = scan_inputs(size, form);
      std::vector<Tensor> in;
      for (const HostTensor& input : inputs) in.push_back(device.tensor(input));
      SelectiveScanInputs bound = scan_arguments(size, form, in);
      bound.final_state = device.ctx().empty({size.batch, size.width, size.state}, DType::F64, "final state");
      const std::vector<double> y = device.values(selective_scan(device.ctx(), bound));
      const ScanSolution expected = sequential_scan(problem_of(size, form, inputs));
      CHECK(relative_error(y, expected.y) < 1e-13);
      CHECK(relative_error(device.values(bound.final_state), expected.final_state) < 1e-13);
    }
  }
}

TEST_CASE("selective_scan: a constant input gives the geometric series") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::int64_t tokens = 40;
  const std::vector<double> ones(static_cast<std::size_t>(tokens), 1.0);
  const double dt = 0.3, a = -0.7;
  SelectiveScanInputs in;
  in.u = device.tensor({1, tokens, 1}, DType::F64, ones);
  in.delta = device.tensor({1, tokens, 1}, DType::F64, std::vector<double>(ones.size(), dt));
  in.a_log = device.tensor({1, 1}, DType::F64, {std::log(-a)});
  in.bc = device.tensor({1, tokens, 2}, DType::F64, std::vector<double>(2 * ones.size(), 1.0));
  in.c_offset = 1;
  in.softplus = false;
  const std::vector<double> y = device.values(selective_scan(device.ctx(), in));
  const double decay = std::exp(dt * a);
  for (std::size_t t = 0; t < y.size(); ++t) {
    CHECK(y[t] == doctest::Approx(dt * (1 - std::pow(decay, double(t) + 1)) / (1 - decay)).epsilon(1e-13));
  }
}

TEST_CASE("selective_scan: gradients match finite differences") {
  for (const Size size : {Size{1, 1, 1, 1}, Size{2, 5, 3, 4}, Size{1, 33, 6, 16}, Size{2, 17, 140, 2}}) {
    for (const Form form : {Form{}, kPlain, kPacked, Form{true, false, false, true}, Form{false, true, true, true},
                            Form{true, true, false, false}, Form{true, true, true, true, size.state + 1, 0, 1, 2, 2}}) {
      CAPTURE(size.tokens);
      CAPTURE(form.gate);
      CAPTURE(form.skip);
      CAPTURE(form.bias);
      CAPTURE(form.softplus);
      CHECK(gradcheck(scan_op(size, form), scan_inputs(size, form)) < 1e-7);
    }
  }
}

TEST_CASE("selective_scan: gradients that nobody wants are left out and the others stay the same") {
  const Size size{2, 19, 5, 4};
  const std::vector<HostTensor> inputs = scan_inputs(size, kPacked);
  const Op op = scan_op(size, kPacked);
  const auto cotangents = random_cotangents(op, inputs);
  const TestDevice device;
  const OpResult all = run_op(device, op, inputs, cotangents);
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    std::vector<HostTensor> fewer = inputs;
    fewer[k] = constant(fewer[k]);
    const OpResult some = run_op(device, op, fewer, cotangents);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (i != k) CHECK(some.gradients[i] == all.gradients[i]);
    }
  }
}

TEST_CASE("selective_scan: one packed tensor feeds several parts") {
  // gate and input of one projection [B, T, 2 D], B and C of another that also holds the step sizes
  const std::int64_t width = 6, state = 3;
  const Op op = [=](const Context& ctx, const std::vector<Tensor>& in) {
    SelectiveScanInputs first{in[0], in[1], in[2], in[3]};
    first.b_offset = 2;
    first.c_offset = 2 + state;
    first.z = in[4];
    first.z_offset = width;
    SelectiveScanInputs second = first;
    second.u = selective_scan(ctx, first);
    second.z_offset = 0;  // its own columns of z, the same columns of bc
    return std::vector<Tensor>{selective_scan(ctx, second)};
  };
  const std::vector<HostTensor> inputs{
      randn({2, 20, width}, Role::Activation, 1), randn({2, 20, width}, Role::Activation, 2),
      uniform({width, state}, -1.0, 1.0, Role::Master, 3), randn({2, 20, 2 + 2 * state}, Role::Activation, 4),
      randn({2, 20, 2 * width}, Role::Activation, 5)};
  CHECK(gradcheck(op, inputs) < 1e-7);
}

TEST_CASE("selective_scan: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("selective_scan: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

void check_extreme_steps(Backend backend) {
  const Size size{1, 40, 33, 16};
  std::vector<HostTensor> inputs = scan_inputs(size, Form{});
  // step sizes from far below the least float32 to beyond softplus' threshold, gates of either extreme
  const double deltas[] = {-200, -90, -30, -15, -1, 0, 19.5, 19.99, 20.5, 60};
  for (std::size_t i = 0; i < inputs[1].values.size(); ++i) inputs[1].values[i] = deltas[i % 10];
  const double gates[] = {-150, -40, 0, 3, 40};
  for (std::size_t i = 0; i < inputs[6].values.size(); ++i) inputs[6].values[i] = gates[i % 5];
  check_parity(backend, Precision::Fp32, scan_op(size, Form{}), inputs, kFloatTolerance);
  check_parity(backend, Precision::Bf16, scan_op(size, Form{}), inputs, kBf16Tolerance);
}

TEST_CASE("selective_scan: tiny and huge step sizes") { check_extreme_steps(Backend::Cpu); }

TEST_CASE("selective_scan: tiny and huge step sizes: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_extreme_steps(Backend::Cuda);
}

void check_final_state(Backend backend) {
  for (const Size size : {Size{2, 37, 40, 16}, Size{1, 16, 5, 20}, Size{1, 3, 7, 100}}) {
    const std::vector<HostTensor> inputs = scan_inputs(size, kPacked);
    const TestDevice device(backend, Precision::Fp32);
    std::vector<Tensor> in;
    for (const HostTensor& input : inputs) in.push_back(device.tensor(input));
    SelectiveScanInputs bound = scan_arguments(size, kPacked, in);
    bound.final_state = device.ctx().empty({size.batch, size.width, size.state}, DType::F32, "final state");
    const std::vector<double> y = device.values(selective_scan(device.ctx(), bound));
    const ScanSolution expected = sequential_scan(problem_of(size, kPacked, inputs));
    CHECK(relative_error(y, expected.y) < 2e-5);
    CHECK(relative_error(device.values(bound.final_state), expected.final_state) < 2e-5);
  }
}

TEST_CASE("selective_scan: the final state is the one after the last step") { check_final_state(Backend::Cpu); }

TEST_CASE("selective_scan: the final state: CUDA matches the sequential reference") {
  if (skip_cuda()) return;
  check_final_state(Backend::Cuda);
}

TEST_CASE("selective_scan: later steps do not touch earlier outputs") {
  const Size size{1, 40, 8, 16};
  std::vector<HostTensor> inputs = scan_inputs(size, Form{});
  const TestDevice device;
  const auto run = [&] {
    std::vector<Tensor> in;
    for (const HostTensor& input : inputs) in.push_back(device.tensor(input));
    return device.values(selective_scan(device.ctx(), scan_arguments(size, Form{}, in)));
  };
  const std::vector<double> before = run();
  const std::int64_t changed = 21;
  for (const std::size_t k : {0, 1, 3, 6}) {
    const std::int64_t row = inputs[k].shape.columns();
    for (std::int64_t i = changed * row; i < (changed + 1) * row; ++i)
      inputs[k].values[static_cast<std::size_t>(i)] += 1;
  }
  const std::vector<double> after = run();
  const auto end = static_cast<std::ptrdiff_t>(changed * size.width);
  CHECK(std::equal(before.begin(), before.begin() + end, after.begin()));
  CHECK_FALSE(std::equal(before.begin() + end, before.end(), after.begin() + end));
}

TEST_CASE("selective_scan: results do not depend on the number of threads") {
  const Size size{3, 30, 300, 16};
  const std::vector<HostTensor> inputs = scan_inputs(size, kPacked);
  const Op op = scan_op(size, kPacked);
  const auto cotangents = random_cotangents(op, inputs);
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), op, inputs, cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), op, inputs, cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("selective_scan: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  SelectiveScanInputs good{zeros({2, 3, 4}), zeros({2, 3, 4}), zeros({4, 5}), zeros({2, 3, 10}), 0, 5};
  good.z = zeros({2, 3, 8});
  good.z_offset = 4;
  CHECK_NOTHROW(selective_scan(ctx, good));
  const auto refused = [&](const char* message, auto&& change) {
    SelectiveScanInputs bad = good;
    change(bad);
    CHECK_THROWS_WITH_AS(selective_scan(ctx, bad), doctest::Contains(message), ArgumentError);
  };
  refused("selective_scan: u is [6, 4], expected [B, T, D]", [&](auto& in) { in.u = zeros({6, 4}); });
  refused("u is empty, expected [B, T, D]", [&](auto& in) { in.u = Tensor(); });
  refused("u is bfloat16, expected float32 in fp32", [&](auto& in) { in.u = zeros({2, 3, 4}, DType::BF16); });
  refused("delta is [2, 3, 5], expected [2, 3, 4]", [&](auto& in) { in.delta = zeros({2, 3, 5}); });
  refused("a_log is [5, 4], expected [4, N]", [&](auto& in) { in.a_log = zeros({5, 4}); });
  refused("a_log has 257 states a channel, expected 1 to 256", [&](auto& in) { in.a_log = zeros({4, 257}); });
  refused("bc is [2, 4, 10], expected [2, 3, row]", [&](auto& in) { in.bc = zeros({2, 4, 10}); });
  refused("B is columns -1 to 3 of bc, expected columns within its 10", [&](auto& in) { in.b_offset = -1; });
  refused("C is columns 6 to 10 of bc, expected columns within its 10", [&](auto& in) { in.c_offset = 6; });
  refused("B starts at column 0 and C at column 4 of bc, expected 5 columns", [&](auto& in) { in.c_offset = 4; });
  refused("skip is [5], expected [4]", [&](auto& in) { in.skip = zeros({5}); });
  refused("delta_bias is bfloat16, expected float32", [&](auto& in) { in.delta_bias = zeros({4}, DType::BF16); });
  refused("the gate is columns 5 to 8 of z, expected columns within its 8", [&](auto& in) { in.z_offset = 5; });
  refused("final_state is [2, 4, 4], expected [2, 4, 5]", [&](auto& in) { in.final_state = zeros({2, 4, 4}); });
}

}  // namespace
}  // namespace graft::test
