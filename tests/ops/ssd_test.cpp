#include "ops/ssd.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/tape.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

struct Size {
  std::int64_t batch, tokens, heads, head_dim, groups, state;

  [[nodiscard]] std::int64_t inner() const { return heads * head_dim; }
  [[nodiscard]] std::int64_t shared() const { return groups * state; }
  [[nodiscard]] Shape states() const { return {batch, heads, head_dim, state}; }
};

enum class Skip { None, Heads, Channels };

/// Where the parts lie in the packed tensors.
enum class Packing {
  Apart,      // x | B | C, step sizes and gate in tensors of their own without other columns
  Mamba,      // x | B | C and, in one tensor, gate | what was convolved | step sizes
  Scattered,  // C, x and B in this order with columns between them, others around step sizes and gate
};

/// Which optional parts a case has.
struct Form {
  bool gate = false, bias = true, initial = false, final_state = false;
  Skip skip = Skip::Heads;
  Packing packing = Packing::Mamba;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};

constexpr Form kPlain{false, false, false, false, Skip::None, Packing::Apart};
constexpr Form kMamba{};
constexpr Form kGated{true, true, false, false, Skip::Heads};
constexpr Form kFull{true, true, true, true, Skip::Channels, Packing::Scattered};
constexpr Form kLimited{false, true, true, true, Skip::Heads, Packing::Apart, 0.3, 0.9};
constexpr Form kStates{false, false, true, true, Skip::None, Packing::Mamba};

struct Columns {
  std::int64_t x = 0, b = 0, c = 0, xbc_row = 0;
  std::int64_t dt = 0, dt_row = 0, z = 0, z_row = 0;
};

Columns columns_of(Size size, Form form) {
  const std::int64_t inner = size.inner(), shared = size.shared();
  Columns columns{0, inner, inner + shared, inner + 2 * shared, 0, size.heads, 0, inner};
  if (form.packing == Packing::Mamba) {
    columns.dt = 2 * inner + 2 * shared;
    columns.dt_row = columns.z_row = columns.dt + size.heads;
  } else if (form.packing == Packing::Scattered) {
    columns.c = 1;
    columns.x = columns.c + shared + 2;
    columns.b = columns.x + inner + 3;
    columns.xbc_row = columns.b + shared + 1;
    columns.dt = 2;
    columns.dt_row = size.heads + 3;
    columns.z = 1;
    columns.z_row = inner + 2;
  }
  return columns;
}

/// xbc, dt, a_log and what the form has of dt_bias, skip, z and initial state.
std::vector<HostTensor> ssd_inputs(Size size, Form form) {
  const Columns columns = columns_of(size, form);
  std::vector<HostTensor> inputs{randn({size.batch, size.tokens, columns.xbc_row}, Role::Activation, 1),
                                 randn({size.batch, size.tokens, columns.dt_row}, Role::Activation, 2),
                                 uniform({size.heads}, -2.0, 1.0, Role::Master, 3)};
  if (form.bias) inputs.push_back(uniform({size.heads}, -0.5, 0.5, Role::Master, 4));
  if (form.skip == Skip::Heads) inputs.push_back(randn({size.heads}, Role::Master, 5));
  if (form.skip == Skip::Channels) inputs.push_back(randn({size.heads, size.head_dim}, Role::Master, 5));
  if (form.gate && form.packing != Packing::Mamba) {
    inputs.push_back(randn({size.batch, size.tokens, columns.z_row}, Role::Activation, 6));
  }
  if (form.initial) inputs.push_back(randn(size.states(), Role::Stream, 7));
  return inputs;
}

SsdInputs ssd_arguments(Size size, Form form, const std::vector<Tensor>& in) {
  const Columns columns = columns_of(size, form);
  SsdInputs inputs;
  inputs.xbc = in[0];
  inputs.x_offset = columns.x;
  inputs.b_offset = columns.b;
  inputs.c_offset = columns.c;
  inputs.dt = in[1];
  inputs.dt_offset = columns.dt;
  inputs.a_log = in[2];
  inputs.heads = size.heads;
  inputs.head_dim = size.head_dim;
  inputs.groups = size.groups;
  inputs.state = size.state;
  std::size_t next = 3;
  if (form.bias) inputs.dt_bias = in[next++];
  if (form.skip != Skip::None) inputs.skip = in[next++];
  if (form.gate) inputs.z = form.packing == Packing::Mamba ? in[1] : in[next++];
  inputs.z_offset = columns.z;
  if (form.initial) inputs.initial_state = in[next++];
  inputs.want_final_state = form.final_state;
  inputs.dt_min = form.dt_min;
  inputs.dt_max = form.dt_max;
  return inputs;
}

std::vector<Tensor> outputs_of(const Ssd& result) {
  if (!result.final_state) return {result.y};
  return {result.y, result.final_state};
}

Op ssd_op(Size size, Form form) {
  return [=](const Context& ctx, const std::vector<Tensor>& in) {
    return outputs_of(ssd(ctx, ssd_arguments(size, form, in)));
  };
}

struct Solution {
  std::vector<double> y, final_state;
};

/// The definition, one number after the other.
Solution recurrence(Size size, Form form, const std::vector<HostTensor>& in) {
  const Columns columns = columns_of(size, form);
  const auto at = [](const HostTensor& tensor, std::int64_t row, std::int64_t column) {
    return tensor.values[static_cast<std::size_t>(row * tensor.shape.columns() + column)];
  };
  std::size_t next = 3;
  const HostTensor* const bias = form.bias ? &in[next++] : nullptr;
  const HostTensor* const skip = form.skip != Skip::None ? &in[next++] : nullptr;
  const HostTensor* z = nullptr;
  if (form.gate) z = form.packing == Packing::Mamba ? &in[1] : &in[next++];
  Solution solution;
  solution.y.resize(static_cast<std::size_t>(size.batch * size.tokens * size.inner()));
  solution.final_state.assign(static_cast<std::size_t>(size.states().elements()), 0.0);
  if (form.initial) solution.final_state = in[next].values;
  for (std::int64_t sequence = 0; sequence < size.batch; ++sequence) {
    for (std::int64_t head = 0; head < size.heads; ++head) {
      const std::int64_t group = head * size.groups / size.heads;
      double* const states = solution.final_state.data() + (sequence * size.heads + head) * size.head_dim * size.state;
      for (std::int64_t t = 0; t < size.tokens; ++t) {
        const std::int64_t row = sequence * size.tokens + t;
        const double raw =
            at(in[1], row, columns.dt + head) + (bias ? bias->values[static_cast<std::size_t>(head)] : 0);
        const double step = std::clamp(std::log(1 + std::exp(raw)), form.dt_min, form.dt_max);
        const double decay = std::exp(-step * std::exp(in[2].values[static_cast<std::size_t>(head)]));
        for (std::int64_t p = 0; p < size.head_dim; ++p) {
          const std::int64_t channel = head * size.head_dim + p;
          const double x = at(in[0], row, columns.x + channel);
          double y = 0;
          if (skip) y = x * skip->values[static_cast<std::size_t>(form.skip == Skip::Heads ? head : channel)];
          for (std::int64_t n = 0; n < size.state; ++n) {
            double& h = states[p * size.state + n];
            h = decay * h + step * x * at(in[0], row, columns.b + group * size.state + n);
            y += h * at(in[0], row, columns.c + group * size.state + n);
          }
          if (z) y *= at(*z, row, columns.z + channel) / (1 + std::exp(-at(*z, row, columns.z + channel)));
          solution.y[static_cast<std::size_t>(row * size.inner() + channel)] = y;
        }
      }
    }
  }
  return solution;
}

std::vector<Tensor> tensors_of(const TestDevice& device, const std::vector<HostTensor>& inputs) {
  std::vector<Tensor> tensors;
  for (const HostTensor& input : inputs) tensors.push_back(device.tensor(input));
  return tensors;
}

TEST_CASE("ssd: matches the recurrence") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const double unlimited = std::numeric_limits<double>::infinity();
  for (const Size size : {Size{1, 1, 1, 1, 1, 1}, Size{2, 5, 4, 3, 2, 4}, Size{2, 37, 6, 5, 1, 16},
                          Size{1, 128, 2, 4, 2, 7}, Size{2, 129, 2, 3, 1, 20}, Size{1, 300, 4, 2, 2, 5}}) {
    for (const Form form : {kPlain, kMamba, kGated, kFull, kLimited, kStates,
                            Form{true, false, true, false, Skip::None, Packing::Apart, 0.5, unlimited}}) {
      CAPTURE(size.tokens);
      CAPTURE(size.groups);
      CAPTURE(form.gate);
      CAPTURE(form.initial);
      const std::vector<HostTensor> inputs = ssd_inputs(size, form);
      const Ssd result = ssd(device.ctx(), ssd_arguments(size, form, tensors_of(device, inputs)));
      const Solution expected = recurrence(size, form, inputs);
      CHECK(relative_error(device.values(result.y), expected.y) < 1e-13);
      CHECK(static_cast<bool>(result.final_state) == form.final_state);
      if (form.final_state) CHECK(relative_error(device.values(result.final_state), expected.final_state) < 1e-13);
    }
  }
}

TEST_CASE("ssd: a constant input gives the geometric series") {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::int64_t tokens = 150;  // beyond one chunk
  const double dt = 0.3, a = -0.7;
  SsdInputs in;
  in.xbc = device.tensor({1, tokens, 3}, DType::F64, std::vector<double>(static_cast<std::size_t>(3 * tokens), 1.0));
  in.b_offset = 1;
  in.c_offset = 2;
  in.dt = device.tensor({1, tokens, 1}, DType::F64,
                        std::vector<double>(static_cast<std::size_t>(tokens), std::log(std::expm1(dt))));
  in.a_log = device.tensor({1}, DType::F64, {std::log(-a)});
  const std::vector<double> y = device.values(ssd(device.ctx(), in).y);
  const double decay = std::exp(dt * a);
  for (std::size_t t = 0; t < y.size(); ++t) {
    CHECK(y[t] == doctest::Approx(dt * (1 - std::pow(decay, double(t) + 1)) / (1 - decay)).epsilon(1e-13));
  }
}

/// Moves step sizes away from where clamping starts and ends: no finite difference may cross it.
std::vector<HostTensor> away_from_limits(Size size, Form form, std::vector<HostTensor> inputs) {
  const Columns columns = columns_of(size, form);
  for (std::int64_t row = 0; row < inputs[1].shape.rows(); ++row) {
    for (std::int64_t head = 0; head < size.heads; ++head) {
      double& raw = inputs[1].values[static_cast<std::size_t>(row * columns.dt_row + columns.dt + head)];
      const double bias = form.bias ? inputs[3].values[static_cast<std::size_t>(head)] : 0;
      for (const double limit : {form.dt_min, form.dt_max}) {
        const double edge = std::log(std::expm1(limit)) - bias;
        if (std::abs(raw - edge) < 0.1) raw = edge + (raw < edge ? -0.1 : 0.1);
      }
    }
  }
  return inputs;
}

TEST_CASE("ssd: gradients match finite differences") {
  for (const Size size : {Size{1, 1, 1, 1, 1, 1}, Size{2, 5, 4, 3, 2, 4}, Size{1, 33, 18, 2, 2, 17},
                          Size{2, 131, 2, 3, 1, 5}, Size{1, 257, 4, 2, 2, 3}}) {
    for (const Form form : {kPlain, kMamba, kGated, kFull, kLimited, kStates}) {
      CAPTURE(size.tokens);
      CAPTURE(form.gate);
      CAPTURE(form.bias);
      CAPTURE(form.initial);
      CHECK(gradcheck(ssd_op(size, form), away_from_limits(size, form, ssd_inputs(size, form))) < 1e-7);
    }
  }
}

TEST_CASE("ssd: gradients of one output alone match finite differences") {
  for (const std::int64_t tokens : {9, 140}) {
    const Size size{2, tokens, 2, 3, 1, 4};
    for (const std::size_t output : {0, 1}) {
      for (const Form form : {kFull, kStates}) {
        const Op op = [=](const Context& ctx, const std::vector<Tensor>& in) {
          return std::vector<Tensor>{outputs_of(ssd(ctx, ssd_arguments(size, form, in)))[output]};
        };
        CAPTURE(tokens);
        CAPTURE(output);
        CHECK(gradcheck(op, ssd_inputs(size, form)) < 1e-7);
      }
    }
  }
}

TEST_CASE("ssd: gradients flow through a state that is handed on") {
  const Size size{1, 7, 2, 3, 1, 4};
  const Op op = [=](const Context& ctx, const std::vector<Tensor>& in) {
    const Ssd first = ssd(ctx, ssd_arguments(size, kStates, {in[0], in[1], in[2], in[3]}));
    const Ssd second = ssd(ctx, ssd_arguments(size, kStates, {in[4], in[5], in[2], first.final_state}));
    return std::vector<Tensor>{first.y, second.y, second.final_state};
  };
  std::vector<HostTensor> inputs = ssd_inputs(size, kStates);
  inputs.push_back(randn(inputs[0].shape, Role::Activation, 11));
  inputs.push_back(randn(inputs[1].shape, Role::Activation, 12));
  CHECK(gradcheck(op, inputs) < 1e-7);
}

TEST_CASE("ssd: gradients that nobody wants are left out and the others stay the same") {
  const Size size{2, 140, 4, 3, 2, 4};
  const std::vector<HostTensor> inputs = ssd_inputs(size, kFull);
  const Op op = ssd_op(size, kFull);
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

/// Steps [first, first + count) of every sequence of a [B, T, row] tensor.
HostTensor steps(const HostTensor& tensor, std::int64_t first, std::int64_t count) {
  HostTensor part = tensor;
  const std::int64_t tokens = tensor.shape[1], row = tensor.shape[2];
  part.shape = {tensor.shape[0], count, row};
  part.values.clear();
  for (std::int64_t sequence = 0; sequence < tensor.shape[0]; ++sequence) {
    const auto begin = tensor.values.begin() + (sequence * tokens + first) * row;
    part.values.insert(part.values.end(), begin, begin + count * row);
  }
  return part;
}

void check_split(Backend backend, Precision precision, double tolerance) {
  const TestDevice device(backend, precision);
  for (const std::int64_t first : {1, 60, 128, 200}) {
    CAPTURE(first);
    const Size size{2, 205, 4, 16, 2, 16};
    const std::vector<HostTensor> inputs = ssd_inputs(size, kFull);
    const Ssd whole = ssd(device.ctx(), ssd_arguments(size, kFull, tensors_of(device, inputs)));
    const HostTensor y{{size.batch, size.tokens, size.inner()}, device.values(whole.y)};

    std::vector<HostTensor> head = inputs, tail = inputs;
    for (const std::size_t k : {0, 1, 5}) {
      head[k] = steps(inputs[k], 0, first);
      tail[k] = steps(inputs[k], first, size.tokens - first);
    }
    const Ssd before = ssd(device.ctx(), ssd_arguments(size, kFull, tensors_of(device, head)));
    std::vector<Tensor> rest = tensors_of(device, tail);
    rest.back() = before.final_state;
    const Ssd after = ssd(device.ctx(), ssd_arguments(size, kFull, rest));
    CHECK(relative_error(device.values(before.y), steps(y, 0, first).values) < tolerance);
    CHECK(relative_error(device.values(after.y), steps(y, first, size.tokens - first).values) < tolerance);
    CHECK(relative_error(device.values(after.final_state), device.values(whole.final_state)) < tolerance);
  }
}

TEST_CASE("ssd: a sequence in two parts is the whole sequence") {
  check_split(Backend::Cpu, Precision::Fp64, 1e-13);
  check_split(Backend::Cpu, Precision::Fp32, 2e-5);
}

TEST_CASE("ssd: a sequence in two parts on CUDA is the whole sequence") {
  if (skip_cuda()) return;
  check_split(Backend::Cuda, Precision::Fp32, 1e-4);
}

// Largest errors on the CPU: float32 2.4e-7 in outputs and 2e-6 in gradients; bfloat16 3.3e-3 and 3.6e-3, where inputs
// enter both sides rounded and all arithmetic is float32, so that the rounding of results, at most 2^-8 = 3.9e-3, is
// all there is. On the GPU the exponents of decays are differences of sums of dt A within a chunk, up to 400 here,
// which float32 keeps to 2.4e-5; bfloat16 rounds the operands of products within a chunk too, and tf32 those of
// gradients to 2^-11.
Tolerance tolerance_of(Backend backend, Precision precision) {
  if (backend == Backend::Cpu) return precision == Precision::Bf16 ? Tolerance{4e-3, 4e-3} : Tolerance{2e-6, 1e-5};
  if (precision == Precision::Bf16) return {1e-2, 2e-2};
  return precision == Precision::Tf32 ? Tolerance{2e-3, 4e-3} : Tolerance{5e-5, 1e-4};
}

void check_precisions(Backend backend, Size size, Form form, const std::vector<HostTensor>& inputs,
                      Tolerance least = {}) {
  CAPTURE(size.tokens);
  CAPTURE(size.head_dim);
  CAPTURE(size.state);
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    if (precision == Precision::Tf32 && backend == Backend::Cpu) continue;  // the same code as fp32
    const Tolerance usual = tolerance_of(backend, precision);
    check_parity(backend, precision, ssd_op(size, form), inputs,
                 {std::max(usual.outputs, least.outputs), std::max(usual.gradients, least.gradients)});
  }
}

// every head size and number of states of the CUDA kernels, full and partly filled; lengths around a chunk of 128
const std::vector<std::pair<Size, Form>> kParityCases = {
    {{1, 1, 1, 1, 1, 1}, kMamba},     {{2, 1, 2, 64, 1, 16}, kFull},      {{2, 7, 4, 16, 2, 4}, kFull},
    {{1, 7, 3, 5, 1, 3}, kLimited},   {{2, 82, 4, 32, 1, 16}, kGated},    {{1, 82, 2, 128, 2, 64}, kFull},
    {{3, 110, 8, 64, 1, 16}, kMamba}, {{1, 110, 4, 64, 2, 64}, kFull},    {{1, 110, 2, 64, 1, 128}, kStates},
    {{2, 128, 2, 64, 1, 64}, kPlain}, {{1, 128, 4, 16, 4, 16}, kLimited}, {{1, 129, 2, 64, 2, 16}, kFull},
    {{2, 129, 3, 32, 1, 64}, kMamba}, {{1, 129, 2, 5, 2, 12}, kFull},     {{2, 205, 4, 64, 1, 16}, kGated},
    {{1, 205, 2, 32, 2, 128}, kFull}, {{1, 205, 1, 128, 1, 16}, kStates}, {{1, 300, 2, 64, 1, 256}, kFull},
    {{2, 300, 9, 16, 3, 16}, kFull},  {{1, 300, 2, 96, 1, 4}, kLimited},  {{2, 256, 6, 20, 2, 33}, kPlain},
    {{1, 300, 16, 5, 1, 256}, kMamba}};

void check_all_parities(Backend backend) {
  for (const auto& [size, form] : kParityCases) check_precisions(backend, size, form, ssd_inputs(size, form));
}

TEST_CASE("ssd: float32 and bfloat16 match float64") { check_all_parities(Backend::Cpu); }

TEST_CASE("ssd: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_parities(Backend::Cuda);
}

TEST_CASE("ssd: a batch as in training: CUDA matches CPU") {
  if (skip_cuda()) return;
  const Size size{16, 110, 32, 64, 1, 16};
  check_precisions(Backend::Cuda, size, kMamba, ssd_inputs(size, kMamba));
}

void check_extreme_steps(Backend backend) {
  const Size size{1, 150, 10, 16, 1, 16};
  const Form form{true, true, true, true, Skip::Heads, Packing::Apart};
  std::vector<HostTensor> inputs = ssd_inputs(size, form);
  // step sizes from far below the least float32 to beyond softplus' threshold, decays from none to all, gates of either
  // extreme
  const double raw_steps[] = {-200, -90, -30, -15, -1, 0, 19.5, 19.99, 20.5, 60};
  for (std::size_t i = 0; i < inputs[1].values.size(); ++i) inputs[1].values[i] = raw_steps[(i + i / 10) % 10];
  for (double& bias : inputs[3].values) bias = 0;
  const double gates[] = {-150, -40, 0, 3, 40};
  for (std::size_t i = 0; i < inputs[5].values.size(); ++i) inputs[5].values[i] = gates[i % 5];
  // sums of dt A reach 4000 in a chunk here, and float32 keeps their differences to 2.4e-4
  const bool cuda = backend == Backend::Cuda;
  check_precisions(backend, size, form, inputs, cuda ? Tolerance{5e-4, 1e-3} : Tolerance{});
}

TEST_CASE("ssd: tiny and huge step sizes") { check_extreme_steps(Backend::Cpu); }

TEST_CASE("ssd: tiny and huge step sizes: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_extreme_steps(Backend::Cuda);
}

/// One NaN among the step sizes, or in a_log, is in all outputs of its head from there on and in no others: limits of
/// step sizes and exponents do not replace it.
void check_nan(Backend backend, Precision precision, Size size, Form form) {
  CAPTURE(size.head_dim);
  const TestDevice device(backend, precision);
  const Columns columns = columns_of(size, form);
  const auto run = [&](const std::vector<HostTensor>& inputs) {
    return device.values(ssd(device.ctx(), ssd_arguments(size, form, tensors_of(device, inputs))).y);
  };
  const auto check = [&](const std::vector<double>& y, std::int64_t head, std::int64_t first) {
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < size.tokens * size.inner(); ++i) {
      const bool poisoned = i / size.inner() >= first && i % size.inner() / size.head_dim == head;
      wrong += std::isnan(y[static_cast<std::size_t>(i)]) == poisoned ? 0 : 1;
    }
    CHECK(wrong == 0);
  };
  const std::vector<HostTensor> inputs = ssd_inputs(size, form);
  check(run(inputs), size.heads, 0);
  for (const std::int64_t at : {0, 21, 130}) {
    CAPTURE(at);
    std::vector<HostTensor> poisoned = inputs;
    poisoned[1].values[static_cast<std::size_t>(at * columns.dt_row + columns.dt + 1)] = std::nan("");
    check(run(poisoned), 1, at);
  }
  std::vector<HostTensor> poisoned = inputs;
  poisoned[2].values[1] = std::nan("");
  check(run(poisoned), 1, 0);
}

void check_all_nan(Backend backend) {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
    for (const Form& form : {kMamba, kLimited}) {
      check_nan(backend, precision, {1, 150, 3, 64, 1, 16}, form);
      check_nan(backend, precision, {1, 150, 2, 5, 1, 3}, form);
    }
  }
}

TEST_CASE("ssd: NaN in a step size or a decay reaches all later outputs") { check_all_nan(Backend::Cpu); }

TEST_CASE("ssd: NaN in a step size or a decay reaches all later outputs: CUDA matches CPU") {
  if (skip_cuda()) return;
  check_all_nan(Backend::Cuda);
}

void check_causality(Backend backend, Precision precision) {
  const Size size{1, 140, 4, 16, 2, 16};
  const Form form{true, true, true, false, Skip::Heads, Packing::Apart};
  const TestDevice device(backend, precision);
  for (const std::int64_t changed : {21, 130}) {
    std::vector<HostTensor> inputs = ssd_inputs(size, form);
    const auto run = [&] {
      return device.values(ssd(device.ctx(), ssd_arguments(size, form, tensors_of(device, inputs))).y);
    };
    const std::vector<double> before = run();
    for (const std::size_t k : {0, 1, 5}) {
      const std::int64_t row = inputs[k].shape.columns();
      for (std::int64_t i = changed * row; i < size.tokens * row; ++i)
        inputs[k].values[static_cast<std::size_t>(i)] += 1;
    }
    const std::vector<double> after = run();
    const auto end = static_cast<std::ptrdiff_t>(changed * size.inner());
    CHECK(std::equal(before.begin(), before.begin() + end, after.begin()));
    CHECK_FALSE(std::equal(before.begin() + end, before.end(), after.begin() + end));
  }
}

TEST_CASE("ssd: later steps do not touch earlier outputs") {
  check_causality(Backend::Cpu, Precision::Fp32);
  check_causality(Backend::Cpu, Precision::Bf16);
}

TEST_CASE("ssd: later steps do not touch earlier outputs on CUDA") {
  if (skip_cuda()) return;
  check_causality(Backend::Cuda, Precision::Fp32);
  check_causality(Backend::Cuda, Precision::Bf16);
}

TEST_CASE("ssd: results do not depend on the number of threads") {
  const Size size{3, 140, 12, 5, 2, 16};
  const std::vector<HostTensor> inputs = ssd_inputs(size, kFull);
  const Op op = ssd_op(size, kFull);
  const auto cotangents = random_cotangents(op, inputs);
  const OpResult one = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 1), op, inputs, cotangents);
  const OpResult three = run_op(TestDevice(Backend::Cpu, Precision::Fp32, 3), op, inputs, cotangents);
  CHECK(one.outputs == three.outputs);
  CHECK(one.gradients == three.gradients);
}

TEST_CASE("ssd: head blocks divide the heads of a group") {
  CHECK(ssd_head_block(32, 1) == 8);
  CHECK(ssd_head_block(12, 2) == 6);
  CHECK(ssd_head_block(14, 1) == 7);
  CHECK(ssd_head_block(11, 1) == 1);
  CHECK(ssd_head_block(18, 2) == 3);
  CHECK(ssd_head_block(5, 5) == 1);
}

TEST_CASE("ssd: what does not fit is refused") {
  const TestDevice device;
  const Context& ctx = device.ctx();
  const auto zeros = [&](const Shape& shape, DType dtype = DType::F32) {
    return device.tensor(shape, dtype, std::vector<double>(static_cast<std::size_t>(shape.elements())));
  };
  SsdInputs good;  // z | x | B | C | dt as Mamba-2 packs them, 4 heads of 3 channels, 2 groups of 5 states
  good.xbc = zeros({2, 3, 32});
  good.b_offset = 12;
  good.c_offset = 22;
  good.dt = zeros({2, 3, 48});
  good.dt_offset = 44;
  good.z = good.dt;
  good.a_log = zeros({4});
  good.heads = 4;
  good.head_dim = 3;
  good.groups = 2;
  good.state = 5;
  CHECK_NOTHROW(ssd(ctx, good));
  const auto refused = [&](const char* message, auto&& change) {
    SsdInputs bad = good;
    change(bad);
    CHECK_THROWS_WITH_AS(ssd(ctx, bad), doctest::Contains(message), ArgumentError);
  };
  refused("ssd: xbc is [6, 32], expected [B, T, row]", [&](auto& in) { in.xbc = zeros({6, 32}); });
  refused("xbc is empty, expected [B, T, row]", [&](auto& in) { in.xbc = Tensor(); });
  refused("xbc is bfloat16, expected float32 in fp32", [&](auto& in) { in.xbc = zeros({2, 3, 32}, DType::BF16); });
  refused("dt is [2, 4, 48], expected [2, 3, row]", [&](auto& in) { in.dt = zeros({2, 4, 48}); });
  refused("dt is empty, expected [2, 3, row]", [&](auto& in) { in.dt = Tensor(); });
  refused("z is [1, 3, 12], expected [2, 3, row]", [&](auto& in) { in.z = zeros({1, 3, 12}); });
  refused("a_log is [5], expected [4]", [&](auto& in) { in.a_log = zeros({5}); });
  refused("a_log is empty, expected [4]", [&](auto& in) { in.a_log = Tensor(); });
  refused("heads = 0, expected at least 1", [&](auto& in) { in.heads = 0; });
  refused("head_dim = 0, expected at least 1", [&](auto& in) { in.head_dim = 0; });
  refused("groups = 3, expected a divisor of the 4 heads", [&](auto& in) { in.groups = 3; });
  refused("state = 257, expected 1 to 256", [&](auto& in) { in.state = 257; });
  refused("dt_min = 0.5 and dt_max = 0.1, expected 0 <= dt_min <= dt_max", [&](auto& in) {
    in.dt_min = 0.5;
    in.dt_max = 0.1;
  });
  refused("x is columns -1 to 10 of xbc, expected columns within its 32", [&](auto& in) { in.x_offset = -1; });
  refused("C is columns 23 to 32 of xbc, expected columns within its 32", [&](auto& in) { in.c_offset = 23; });
  refused("the step size is columns 45 to 48 of dt, expected columns within its 48",
          [&](auto& in) { in.dt_offset = 45; });
  refused("the gate is columns 37 to 48 of z, expected columns within its 48", [&](auto& in) { in.z_offset = 37; });
  refused("x is columns 0 to 11 of xbc and B columns 11 to 20, expected columns of their own",
          [&](auto& in) { in.b_offset = 11; });
  refused("B is columns 12 to 21 of xbc and C columns 21 to 30, expected columns of their own",
          [&](auto& in) { in.c_offset = 21; });
  refused("the step size is columns 44 to 47 of dt and the gate columns 33 to 44, expected columns of their own",
          [&](auto& in) { in.z_offset = 33; });
  refused("dt_bias is bfloat16, expected float32", [&](auto& in) { in.dt_bias = zeros({4}, DType::BF16); });
  refused("skip is [12], expected [4] or [4, 3]", [&](auto& in) { in.skip = zeros({12}); });
  refused("initial_state is [2, 4, 5, 3], expected [2, 4, 3, 5]", [&](auto& in) {
    in.initial_state = zeros({2, 4, 5, 3});
  });
}

}  // namespace
}  // namespace graft::test
