#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "engine/philox.h"
#include "engine/require.h"
#include "engine/tape.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/parity.h"
#include "tests/support/random.h"
#include "tests/support/share.h"

namespace graft::test {

HostTensor randn(const Shape& shape, Role role, std::uint64_t seed, double scale) {
  HostTensor result{shape, std::vector<double>(static_cast<std::size_t>(shape.elements())), role, true};
  const Draw draw{seed, RandomDomain::Bootstrap, static_cast<std::uint64_t>(shape.elements()), 77};
  for (std::size_t i = 0; i < result.values.size(); ++i) {
    result.values[i] = scale * static_cast<double>(draw.normal(1, static_cast<std::uint32_t>(i)));
  }
  return result;
}

HostTensor uniform(const Shape& shape, double low, double high, Role role, std::uint64_t seed) {
  HostTensor result{shape, std::vector<double>(static_cast<std::size_t>(shape.elements())), role, true};
  const Draw draw{seed, RandomDomain::Bootstrap, static_cast<std::uint64_t>(shape.elements()), 78};
  for (std::size_t i = 0; i < result.values.size(); ++i) {
    result.values[i] = low + (high - low) * static_cast<double>(draw.uniform(2, static_cast<std::uint32_t>(i)));
  }
  return result;
}

HostTensor integers(const Shape& shape, std::int64_t n, Role role, std::uint64_t seed) {
  HostTensor result{shape, std::vector<double>(static_cast<std::size_t>(shape.elements())), role, false};
  const Draw draw{seed, RandomDomain::Bootstrap, static_cast<std::uint64_t>(shape.elements()), 79};
  for (std::size_t i = 0; i < result.values.size(); ++i) {
    result.values[i] = draw.below(static_cast<std::uint32_t>(n), 3, static_cast<std::uint32_t>(i));
  }
  return result;
}

HostTensor constant(HostTensor tensor) {
  tensor.needs_gradient = false;
  return tensor;
}

DType dtype_of_role(Role role, Precision precision) {
  const DType stream = precision == Precision::Fp64 ? DType::F64 : DType::F32;
  switch (role) {
    case Role::Activation:
    case Role::Weight:
      return precision == Precision::Bf16 ? DType::BF16 : stream;
    case Role::Stream:
    case Role::Master:
      return stream;
    case Role::Integer:
      return DType::I32;
    case Role::Byte:
      return DType::U8;
  }
  return stream;
}

namespace {

template <class T>
void encode(std::byte* to, const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    T value;
    if constexpr (std::is_same_v<T, bfloat16>) {
      value = bfloat16(static_cast<float>(values[i]));
    } else {
      value = static_cast<T>(values[i]);
    }
    std::memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
}

template <class T>
void decode(const std::byte* from, std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    if constexpr (std::is_same_v<T, bfloat16>) {
      values[i] = static_cast<double>(static_cast<float>(value));
    } else {
      values[i] = static_cast<double>(value);
    }
  }
}

template <class Visit>
void visit_dtype(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::F32:
      return visit(float{});
    case DType::BF16:
      return visit(bfloat16{});
    case DType::F64:
      return visit(double{});
    case DType::I32:
      return visit(std::int32_t{});
    case DType::I64:
      return visit(std::int64_t{});
    case DType::U8:
      return visit(std::uint8_t{});
  }
}

std::vector<double> rounded(const std::vector<double>& values, DType dtype) {
  std::vector<double> result = values;
  visit_dtype(dtype, [&](auto type) {
    std::vector<std::byte> bytes(values.size() * sizeof(type));
    encode<decltype(type)>(bytes.data(), values);
    decode<decltype(type)>(bytes.data(), result);
  });
  return result;
}

/// Keeps gradients of parameters in memory of its own.
class TestSink final : public GradientSink {
 public:
  TestSink(const TestDevice& device, bool accumulate) : device_(device), accumulate_(accumulate) {}
  void add(const Tensor& parameter, DType gradient_dtype) {
    const double filler = accumulate_ ? 0.5 : std::numeric_limits<double>::quiet_NaN();
    const std::vector<double> values(static_cast<std::size_t>(parameter.elements()), filler);
    gradients_.emplace(parameter.id(), device_.tensor(parameter.shape(), gradient_dtype, values));
    written_.emplace(parameter.id(), accumulate_);
  }
  GradTarget gradient_target(std::uint64_t id) override {
    const auto found = gradients_.find(id);
    if (found == gradients_.end()) return {};
    return {found->second.mutable_view(), std::exchange(written_[id], true)};
  }
  [[nodiscard]] bool owns(std::uint64_t id) const override { return gradients_.contains(id); }
  [[nodiscard]] std::vector<double> values(std::uint64_t id) const {
    std::vector<double> result = device_.values(gradients_.at(id));
    if (accumulate_) {
      for (double& value : result) value -= 0.5;
    }
    return result;
  }

 private:
  const TestDevice& device_;
  bool accumulate_;
  std::map<std::uint64_t, Tensor> gradients_;
  std::map<std::uint64_t, bool> written_;
};

double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::abs(value));
  return result;
}

/// <cotangents, outputs> in float64 on the CPU.
double projected(const TestDevice& device, const Op& op, const std::vector<HostTensor>& inputs,
                 const std::vector<std::vector<double>>& cotangents) {
  std::vector<Tensor> tensors;
  for (const HostTensor& input : inputs) tensors.push_back(device.tensor(input));
  const std::vector<Tensor> outputs = op(device.ctx(), tensors);
  double sum = 0;
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    const std::vector<double> values = device.values(outputs[o]);
    for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * cotangents[o][i];
  }
  return sum;
}

std::vector<HostTensor> moved(const std::vector<HostTensor>& inputs, const std::vector<std::vector<double>>& direction,
                              double step) {
  std::vector<HostTensor> result = inputs;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    for (std::size_t i = 0; i < direction[k].size(); ++i) result[k].values[i] += step * direction[k][i];
  }
  return result;
}

/// Derivative along a direction: central differences at two steps, extrapolated.
double difference_quotient(const TestDevice& device, const Op& op, const std::vector<HostTensor>& inputs,
                           const std::vector<std::vector<double>>& cotangents,
                           const std::vector<std::vector<double>>& direction) {
  const auto central = [&](double h) {
    return (projected(device, op, moved(inputs, direction, h), cotangents) -
            projected(device, op, moved(inputs, direction, -h), cotangents)) /
           (2 * h);
  };
  constexpr double kStep = 1e-3;
  return (4 * central(kStep / 2) - central(kStep)) / 3;
}

}  // namespace

double relative_error(const std::vector<double>& got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(got[i] - expected[i]);
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, difference);
  }
  const double scale = largest(expected);
  return scale == 0 ? worst : worst / scale;
}

TestDevice::TestDevice(Backend backend, Precision precision, int threads)
    : runtime_(open_runtime({backend, 0}, {threads})), stream_(runtime_->make_stream()) {
  ctx_.backend = backend;
  ctx_.stream = stream_.get();
  ctx_.memory = runtime_->make_pool();
  ctx_.run_memory = ctx_.memory;
  ctx_.precision = precision;
}
TestDevice::~TestDevice() = default;

Tensor TestDevice::tensor(const Shape& shape, DType dtype, const std::vector<double>& values) const {
  require(static_cast<std::int64_t>(values.size()) == shape.elements(), "test tensor: {} values for {}", values.size(),
          shape.str());
  Tensor result = ctx_.empty_run(shape, dtype, "test tensor");
  std::vector<std::byte> host(result.bytes());
  visit_dtype(dtype, [&](auto type) { encode<decltype(type)>(host.data(), values); });
  ctx_.stream->upload(result.mutable_view().data, host.data(), host.size(), "test tensor");
  return result;
}

Tensor TestDevice::tensor(const HostTensor& host) const {
  Tensor result = tensor(host.shape, dtype_of_role(host.role, ctx_.precision), host.values);
  result.set_requires_grad(host.needs_gradient && is_floating(result.dtype()));
  return result;
}

std::vector<double> TestDevice::values(ConstView view) const {
  const auto count = static_cast<std::size_t>(view.shape.elements());
  std::vector<std::byte> host(count * size_of(view.dtype));
  ctx_.stream->download(host.data(), view.data, host.size(), "test tensor");
  std::vector<double> result(count);
  visit_dtype(view.dtype, [&](auto type) { decode<decltype(type)>(host.data(), result); });
  return result;
}

std::vector<double> TestDevice::values(const Tensor& tensor) const { return values(tensor.view()); }

std::vector<std::byte> TestDevice::bytes(const Tensor& tensor) const {
  std::vector<std::byte> host(tensor.bytes());
  ctx_.stream->download(host.data(), tensor.view().data, host.size(), "test tensor");
  return host;
}

OpResult run_op(const TestDevice& device, const Op& op, const std::vector<HostTensor>& inputs,
                const std::vector<std::vector<double>>& cotangents, bool accumulate) {
  std::vector<Tensor> tensors;
  TestSink sink(device, accumulate);
  const auto is_parameter = [](const HostTensor& input) {
    return (input.role == Role::Weight || input.role == Role::Master) && input.needs_gradient;
  };
  for (const HostTensor& input : inputs) {
    tensors.push_back(device.tensor(input));
    if (is_parameter(input)) sink.add(tensors.back(), device.ctx().stream_dtype());
  }
  Tape tape;
  const Context recording = device.ctx().with_tape(tape);
  const std::vector<Tensor> outputs = op(recording, tensors);
  OpResult result;
  std::vector<Tape::Seed> seeds;
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    result.outputs.push_back(device.values(outputs[o]));
    if (!outputs[o].requires_grad()) continue;
    seeds.push_back({outputs[o], device.tensor(outputs[o].shape(), outputs[o].dtype(), cotangents[o])});
  }
  const Grads grads = tape.backward_from(recording, seeds, &sink);
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    if (is_parameter(inputs[k])) {
      result.gradients.push_back(sink.values(tensors[k].id()));
    } else if (tensors[k].requires_grad() && grads.has(tensors[k])) {
      result.gradients.push_back(device.values(grads.of(tensors[k])));
    } else {
      result.gradients.emplace_back();
    }
  }
  return result;
}

std::vector<std::vector<double>> random_cotangents(const Op& op, const std::vector<HostTensor>& inputs) {
  const TestDevice device(Backend::Cpu, Precision::Fp64, 1);
  std::vector<Tensor> tensors;
  for (const HostTensor& input : inputs) tensors.push_back(device.tensor(input));
  std::vector<std::vector<double>> result;
  std::uint64_t seed = 1000;
  for (const Tensor& output : op(device.ctx(), tensors)) {
    result.push_back(randn(output.shape(), Role::Activation, seed++).values);
  }
  return result;
}

double gradcheck(const Op& op, const std::vector<HostTensor>& inputs) {
  const TestDevice device(Backend::Cpu, Precision::Fp64);
  const std::vector<std::vector<double>> cotangents = random_cotangents(op, inputs);
  const OpResult result = run_op(device, op, inputs, cotangents);
  const OpResult accumulated = run_op(device, op, inputs, cotangents, true);
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    if (relative_error(accumulated.gradients[k], result.gradients[k]) > 1e-12) {
      MESSAGE(fmt::format("gradcheck: accumulated and stored gradients of input {} differ", k));
      return std::numeric_limits<double>::infinity();
    }
  }

  const auto differentiable = [&](std::size_t k) { return inputs[k].needs_gradient && !result.gradients[k].empty(); };
  double worst = 0;
  for (std::uint64_t trial = 0; trial < 3; ++trial) {
    std::vector<std::vector<double>> direction(inputs.size());
    double analytic = 0;
    double scale = 0;
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (!differentiable(k)) continue;
      direction[k] = randn(inputs[k].shape, Role::Activation, 5000 + 100 * trial + k).values;
      for (std::size_t i = 0; i < direction[k].size(); ++i) analytic += direction[k][i] * result.gradients[k][i];
      scale += norm(result.gradients[k]);
    }
    const double numeric = difference_quotient(device, op, inputs, cotangents, direction);
    const double denominator = std::max({std::abs(analytic), std::abs(numeric), 0.1 * scale, 1e-8});
    const double error = std::abs(analytic - numeric) / denominator;
    worst = std::isfinite(error) ? std::max(worst, error) : std::numeric_limits<double>::infinity();
  }
  if (worst < 1e-7) return worst;

  for (std::size_t k = 0; k < inputs.size(); ++k) {  // which entry is wrong?
    if (!differentiable(k)) continue;
    double worst_entry = -1;
    std::string report;
    for (std::size_t i = 0; i < std::min<std::size_t>(inputs[k].values.size(), 500); ++i) {
      std::vector<std::vector<double>> direction(inputs.size());
      direction[k].assign(inputs[k].values.size(), 0);
      direction[k][i] = 1;
      const double numeric = difference_quotient(device, op, inputs, cotangents, direction);
      const double difference = std::abs(numeric - result.gradients[k][i]);
      if (!(difference <= worst_entry)) {
        worst_entry = difference;
        report = fmt::format("gradcheck: input {} of shape {}, worst entry {}: analytic {:.12g}, numeric {:.12g}", k,
                             inputs[k].shape.str(), i, result.gradients[k][i], numeric);
      }
    }
    MESSAGE(report);
  }
  return worst;
}

void check_parity(Backend backend, Precision precision, const Op& op, const std::vector<HostTensor>& inputs,
                  Tolerance tolerance, const GradientScale& scale) {
  if (backend == Backend::Cuda && !in_share()) return;
  std::vector<HostTensor> rounded_inputs = inputs;
  for (HostTensor& input : rounded_inputs) input.values = rounded(input.values, dtype_of_role(input.role, precision));
  const TestDevice device(backend, precision);
  std::vector<std::vector<double>> cotangents = random_cotangents(op, rounded_inputs);
  {  // round the cotangents to the dtypes the outputs have on the device
    std::vector<Tensor> tensors;
    for (const HostTensor& input : rounded_inputs) tensors.push_back(device.tensor(input));
    const std::vector<Tensor> outputs = op(device.ctx(), tensors);
    for (std::size_t o = 0; o < outputs.size(); ++o) cotangents[o] = rounded(cotangents[o], outputs[o].dtype());
  }
  const TestDevice reference_device(Backend::Cpu, Precision::Fp64);
  const OpResult expected = run_op(reference_device, op, rounded_inputs, cotangents);
  const OpResult got = run_op(device, op, rounded_inputs, cotangents);
  // Not under a tool, which sees nothing in the second run that it did not see in the first.
  const OpResult again = is_shared() ? got : run_op(device, op, rounded_inputs, cotangents);
  const OpResult accumulated = run_op(device, op, rounded_inputs, cotangents, true);

  const std::string label = fmt::format("{} {} ", name_of(backend), name_of(precision));
  for (std::size_t o = 0; o < expected.outputs.size(); ++o) {
    const double error = relative_error(got.outputs[o], expected.outputs[o]);
    INFO(label << "output " << o << " relative error " << error << ", first input " << inputs[0].shape.str());
    CHECK(error <= tolerance.outputs);
    CHECK(got.outputs[o] == again.outputs[o]);
  }
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    if (expected.gradients[k].empty()) continue;
    double error = relative_error(got.gradients[k], expected.gradients[k]);
    if (scale.scale && k == scale.input) {
      const double own = largest(expected.gradients[k]);
      if (own > 0) error *= own / std::max(own, scale.scale(expected));
    }
    INFO(label << "gradient of input " << k << " " << inputs[k].shape.str() << " relative error " << error
               << ", first input " << inputs[0].shape.str());
    CHECK(error <= tolerance.gradients);
    CHECK(got.gradients[k] == again.gradients[k]);
    const double drift = relative_error(accumulated.gradients[k], got.gradients[k]);
    INFO("accumulated against stored: " << drift);
    CHECK(drift <= 1e-5 + 1e-6 / (1e-30 + largest(got.gradients[k])));
  }
}

bool skip_cuda() {
  static const bool skip = [] {
    std::string why;
    if (cuda_available(&why)) return false;
    MESSAGE("CUDA cases skipped: " << why);
    return true;
  }();
  return skip;
}

}  // namespace graft::test
