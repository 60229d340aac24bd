#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <source_location>
#include <string>

namespace graft::cuda {

/// Throws DeviceError with the library's message and the caller's file and line unless `status` is success.
/// blas.h has the overload for cuBLAS.
void check(cudaError_t status, std::source_location where = std::source_location::current());
void check(CUresult status, std::source_location where = std::source_location::current());

/// "linear.cu:40: <message>" as a DeviceError; what the overloads of check() throw.
[[noreturn]] void throw_device_error(const std::string& message, const std::source_location& where);

}  // namespace graft::cuda
