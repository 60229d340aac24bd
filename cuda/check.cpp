#include "cuda/check.h"

#include <string_view>

#include "cuda/driver.h"
#include "engine/error.h"

namespace graft::cuda {

void throw_device_error(const std::string& message, const std::source_location& where) {
  const std::string_view path = where.file_name();
  const std::size_t slash = path.find_last_of('/');
  throw DeviceError(std::string(slash == std::string_view::npos ? path : path.substr(slash + 1)) + ":" +
                    std::to_string(where.line()) + ": " + message);
}

void check(cudaError_t status, std::source_location where) {
  if (status == cudaSuccess) [[likely]]
    return;
  static_cast<void>(cudaGetLastError());  // the error is reported here; the next check must not see it again
  throw_device_error(std::string("CUDA: ") + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")", where);
}

void check(CUresult status, std::source_location where) {
  if (status == CUDA_SUCCESS) [[likely]]
    return;
  const char* name = nullptr;
  const char* text = nullptr;
  driver().get_error_name(status, &name);
  driver().get_error_string(status, &text);
  throw_device_error(std::string("CUDA driver: ") + (text == nullptr ? "unknown error" : text) + " (" +
                         (name == nullptr ? std::to_string(static_cast<int>(status)) : name) + ")",
                     where);
}

}  // namespace graft::cuda
