#pragma once

#include <cstdint>

namespace graft {

enum class Backend : std::uint8_t { Cpu, Cuda };
inline constexpr int kBackends = 2;

[[nodiscard]] constexpr const char* name_of(Backend backend) { return backend == Backend::Cpu ? "cpu" : "cuda"; }

/// A backend and which of its devices; a value, owned by nobody.
struct Device {
  Backend backend = Backend::Cpu;
  int index = 0;
};

/// How matrix products and activations are computed; chosen at run time.
enum class Precision : std::uint8_t { Fp32, Tf32, Bf16, Fp64 };

[[nodiscard]] constexpr const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::Fp32:
      return "fp32";
    case Precision::Tf32:
      return "tf32";
    case Precision::Bf16:
      return "bf16";
    case Precision::Fp64:
      return "fp64";
  }
  return "?";
}

}  // namespace graft
