#pragma once

#include <cudaTypedefs.h>

namespace graft::cuda {

/// The driver's functions that the runtime library has no counterpart of, looked up at run time, so that
/// nothing links against the driver and the library loads on a machine without one.
struct Driver {
  PFN_cuGetErrorName_v6000 get_error_name = nullptr;
  PFN_cuGetErrorString_v6000 get_error_string = nullptr;
  PFN_cuMemGetAllocationGranularity_v10020 allocation_granularity = nullptr;
  PFN_cuMemAddressReserve_v10020 address_reserve = nullptr;
  PFN_cuMemAddressFree_v10020 address_free = nullptr;
  PFN_cuMemCreate_v10020 create = nullptr;
  PFN_cuMemRelease_v10020 release = nullptr;
  PFN_cuMemMap_v10020 map = nullptr;
  PFN_cuMemUnmap_v10020 unmap = nullptr;
  PFN_cuMemSetAccess_v10020 set_access = nullptr;
};

/// Looked up once. Throws EnvironmentError naming the function that the driver lacks.
[[nodiscard]] const Driver& driver();

}  // namespace graft::cuda
