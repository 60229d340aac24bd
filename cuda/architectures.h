#pragma once

#include <string>

namespace graft::cuda {

/// "sm_80, sm_90": what the kernels were compiled for.
[[nodiscard]] std::string compiled_architectures();

/// Whether the current device can run this library's kernels. Throws nothing; creates the device's context.
[[nodiscard]] bool runs_on_current_device();

}  // namespace graft::cuda
