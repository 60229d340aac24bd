#include "cuda/driver.h"

#include <cuda_runtime_api.h>

#include <string>

#include "engine/error.h"

namespace graft::cuda {
namespace {

/// `version` is the CUDA version whose signature is asked for, as in the typedef's suffix.
template <class Function>
void look_up(Function& function, const char* name, unsigned version) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
#else
  static_cast<void>(version);  // these functions have had one signature only
  const cudaError_t status = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (status != cudaSuccess || result != cudaDriverEntryPointSuccess || found == nullptr) {
    static_cast<void>(cudaGetLastError());
    throw EnvironmentError(std::string("the NVIDIA driver has no function ") + name + "; a newer driver is needed");
  }
  function = reinterpret_cast<Function>(found);
}

Driver look_up_all() {
  Driver driver;
  look_up(driver.get_error_name, "cuGetErrorName", 6000);
  look_up(driver.get_error_string, "cuGetErrorString", 6000);
  look_up(driver.allocation_granularity, "cuMemGetAllocationGranularity", 10020);
  look_up(driver.address_reserve, "cuMemAddressReserve", 10020);
  look_up(driver.address_free, "cuMemAddressFree", 10020);
  look_up(driver.create, "cuMemCreate", 10020);
  look_up(driver.release, "cuMemRelease", 10020);
  look_up(driver.map, "cuMemMap", 10020);
  look_up(driver.unmap, "cuMemUnmap", 10020);
  look_up(driver.set_access, "cuMemSetAccess", 10020);
  return driver;
}

}  // namespace

const Driver& driver() {
  static const Driver found = look_up_all();
  return found;
}

}  // namespace graft::cuda
