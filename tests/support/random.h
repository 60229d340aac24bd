#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/shape.h"

namespace graft::test {

/// What an input is to an op; decides its dtype in each precision and how its gradient is kept.
enum class Role : std::uint8_t {
  Activation,  // compute dtype; gradient of the same dtype
  Stream,      // residual stream and statistics: float32 (float64 in fp64)
  Weight,      // compute dtype; gradient float32 (float64 in fp64), kept by a sink like a parameter's
  Master,      // float32 (float64 in fp64) parameter; gradient of the same dtype, kept by a sink
  Integer,     // int32, no gradient
  Byte,        // uint8, no gradient
};

/// An input of a test, on the host.
struct HostTensor {
  Shape shape;
  std::vector<double> values;
  Role role = Role::Activation;
  bool needs_gradient = true;
};

/// Standard normals times `scale`; reproducible.
[[nodiscard]] HostTensor randn(const Shape& shape, Role role = Role::Activation, std::uint64_t seed = 1,
                               double scale = 1.0);
/// Uniform on [low, high).
[[nodiscard]] HostTensor uniform(const Shape& shape, double low, double high, Role role = Role::Activation,
                                 std::uint64_t seed = 1);
/// Integers in [0, n).
[[nodiscard]] HostTensor integers(const Shape& shape, std::int64_t n, Role role = Role::Integer,
                                  std::uint64_t seed = 1);
/// An input that is not differentiated.
[[nodiscard]] HostTensor constant(HostTensor tensor);

}  // namespace graft::test
