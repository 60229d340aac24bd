#pragma once

namespace graft {

/// What this program was built from and with. Written by the build; every field is a plain string.
struct BuildInfo {
  const char* version;        // "0.1.0"
  const char* git;            // 12 digits of the commit, "+dirty" if files were changed; "unknown" without git
  const char* interface;      // version and a hash of the headers that program and CUDA library share
  const char* compiler;       // "GNU 12.2.0"
  const char* build_type;     // "Release"
  const char* flags;          // of the C++ compiler
  const char* cuda;           // version of nvcc; empty without the CUDA backend
  const char* architectures;  // of the CUDA kernels, "80,90a"; empty without the CUDA backend
};

[[nodiscard]] const BuildInfo& build_info();

}  // namespace graft
