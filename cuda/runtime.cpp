#include "engine/runtime.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "cuda/architectures.h"
#include "cuda/check.h"
#include "cuda/device_memory.h"
#include "cuda/stream.h"
#include "engine/error.h"
#include "engine/version.h"

namespace graft::cuda {
namespace {

class CudaRuntime final : public Runtime {
 public:
  explicit CudaRuntime(int index) : index_(index) {
    check(cudaSetDevice(index));
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index));
    name_ = properties.name;
    if (!runs_on_current_device()) {
      throw EnvironmentError(fmt::format("GPU {} ({}) has compute capability {}.{}; this graft was compiled for {}",
                                         index, name_, properties.major, properties.minor, compiled_architectures()));
    }
  }

  [[nodiscard]] Device device() const override { return {Backend::Cuda, index_}; }
  [[nodiscard]] std::string device_name() const override { return name_; }
  [[nodiscard]] MemoryInfo memory_info() const override {
    check(cudaSetDevice(index_));
    MemoryInfo info;
    check(cudaMemGetInfo(&info.free, &info.total));
    return info;
  }
  [[nodiscard]] std::unique_ptr<Stream> make_stream() override { return std::make_unique<CudaStream>(index_); }
  [[nodiscard]] std::shared_ptr<Memory> make_pool() override { return std::make_shared<CachingPool>(index_); }
  [[nodiscard]] std::unique_ptr<AddressRange> reserve_range() override { return std::make_unique<DeviceRange>(index_); }
  [[nodiscard]] std::shared_ptr<void> allocate_pinned(std::size_t bytes) override {
    check(cudaSetDevice(index_));
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, std::max<std::size_t>(bytes, 1), cudaHostAllocDefault));
    return {memory, [](void* pointer) { cudaFreeHost(pointer); }};
  }

 private:
  int index_;
  std::string name_;
};

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

/// Empty if a device can be used, else what was found.
std::string why_not() {
  int driver_version = 0;
  int runtime_version = 0;
  static_cast<void>(cudaDriverGetVersion(&driver_version));
  static_cast<void>(cudaRuntimeGetVersion(&runtime_version));
  if (driver_version == 0) return "no NVIDIA driver is installed";

  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    return fmt::format("the NVIDIA driver supports CUDA up to {}, this graft was built with CUDA {}",
                       version_text(driver_version), version_text(runtime_version));
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    return "the NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES set to an empty list?)";
  }
  if (status != cudaSuccess) return fmt::format("CUDA does not start: {}", cudaGetErrorString(status));

  std::string found;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    if (cudaSetDevice(index) != cudaSuccess || cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
      found += fmt::format("{}GPU {} cannot be opened ({})", found.empty() ? "" : "; ", index,
                           cudaGetErrorString(cudaGetLastError()));
      continue;
    }
    if (runs_on_current_device()) return {};
    found += fmt::format("{}GPU {} ({}) has compute capability {}.{}", found.empty() ? "" : "; ", index,
                         properties.name, properties.major, properties.minor);
  }
  return fmt::format("{}; this graft was compiled for {}", found, compiled_architectures());
}

}  // namespace
}  // namespace graft::cuda

// The functions that engine/runtime.cpp looks up by name after it has loaded this library.

/// "<interface> <git>" of this library's build_info(); asked for before anything else. Needs nothing of the program,
/// which may be of another build.
extern "C" const char* graft_cuda_build() {
  static const std::string text = std::string(graft::build_info().interface) + " " + graft::build_info().git;
  return text.c_str();
}

extern "C" int graft_cuda_probe(char* why, std::size_t size) {
  const std::string reason = graft::cuda::why_not();
  static_cast<void>(cudaGetLastError());
  if (size != 0) {
    const std::size_t length = std::min(reason.size(), size - 1);
    std::memcpy(why, reason.data(), length);
    why[length] = '\0';
  }
  return reason.empty() ? 1 : 0;
}

/// Throws EnvironmentError if device `index` does not exist or cannot run this library's kernels.
extern "C" graft::Runtime* graft_cuda_open(int index) {
  int count = 0;
  graft::cuda::check(cudaGetDeviceCount(&count));
  if (index < 0 || index >= count) {
    throw graft::EnvironmentError(fmt::format("GPU {} was asked for, there are {} (0 to {})", index, count, count - 1));
  }
  return new graft::cuda::CudaRuntime(index);
}
