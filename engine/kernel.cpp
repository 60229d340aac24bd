#include "engine/kernel.h"

#include <fmt/format.h>

#include "engine/error.h"

namespace graft {

void throw_missing_kernel(const char* name, Backend backend) {
  throw DeviceError(
      fmt::format("{}: no kernel for the backend {}, expected one to be registered", name, name_of(backend)));
}

}  // namespace graft
