#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/context.h"
#include "engine/runtime.h"
#include "engine/stream.h"
#include "engine/tensor.h"
#include "tests/support/random.h"

namespace graft::test {

/// A device with a stream, a pool and a context: what a test runs ops on.
class TestDevice {
 public:
  explicit TestDevice(Backend backend = Backend::Cpu, Precision precision = Precision::Fp32, int threads = 0);
  ~TestDevice();

  [[nodiscard]] const Context& ctx() const { return ctx_; }
  [[nodiscard]] Context& ctx() { return ctx_; }
  [[nodiscard]] Runtime& runtime() { return *runtime_; }
  [[nodiscard]] Stream& stream() { return *stream_; }

  /// A tensor of the given dtype holding the values.
  [[nodiscard]] Tensor tensor(const Shape& shape, DType dtype, const std::vector<double>& values) const;
  /// The tensor of an input in this device's precision.
  [[nodiscard]] Tensor tensor(const HostTensor& host) const;
  [[nodiscard]] std::vector<double> values(const Tensor& tensor) const;
  [[nodiscard]] std::vector<double> values(ConstView view) const;
  /// Raw bytes, for bit-for-bit comparisons.
  [[nodiscard]] std::vector<std::byte> bytes(const Tensor& tensor) const;

 private:
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Stream> stream_;
  Context ctx_;
};

/// dtype of an input with this role.
[[nodiscard]] DType dtype_of_role(Role role, Precision precision);

}  // namespace graft::test
