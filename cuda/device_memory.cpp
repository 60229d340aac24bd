#include "cuda/device_memory.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <optional>

#include "cuda/check.h"
#include "cuda/driver.h"
#include "engine/error.h"

namespace graft::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kLargestStep = std::size_t{2} << 20U;

std::size_t rounded_up(std::size_t n, std::size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

std::string text_of(std::size_t bytes) {
  if (bytes >= std::size_t{1} << 30U) return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1U << 30U));
  return fmt::format("{:.2f} MiB", static_cast<double>(bytes) / (1U << 20U));
}

/// `mapped`: what a range has already, if it is one that wants more.
[[noreturn]] void throw_out_of_memory(int device, std::string_view name, std::size_t wanted,
                                      std::optional<std::size_t> mapped = std::nullopt) {
  std::size_t free = 0;
  std::size_t total = 0;
  static_cast<void>(cudaMemGetInfo(&free, &total));
  static_cast<void>(cudaGetLastError());
  throw OutOfMemoryError(
      fmt::format("out of GPU memory: {} wants {} ({} bytes), {} ({} bytes) of {} are free on device {}", name,
                  text_of(wanted), wanted, text_of(free), free, text_of(total), device),
      mapped ? *mapped + free : 0);
}

CUmemAllocationProp properties_of(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

}  // namespace

std::size_t CachingPool::size_class(std::size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  const std::size_t step = std::clamp(std::bit_floor(bytes) / 8, kAlignment, kLargestStep);
  return rounded_up(bytes, step);
}

CachingPool::~CachingPool() { free_cached(); }

Block CachingPool::allocate(std::size_t bytes, std::string_view name) {
  const std::size_t size = size_class(bytes);
  const std::lock_guard lock(mutex_);
  if (const auto found = free_.find(size); found != free_.end() && !found->second.empty()) {
    void* data = found->second.back();
    found->second.pop_back();
    return {data, bytes, size};
  }
  check(cudaSetDevice(device_));
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, size);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    free_cached();
    status = cudaMalloc(&data, size);
  }
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw_out_of_memory(device_, name, bytes);
  }
  check(status);
  return {data, bytes, size};
}

void CachingPool::release(const Block& block) noexcept {
  if (block.data == nullptr) return;
  const std::lock_guard lock(mutex_);
  try {
    free_[static_cast<std::size_t>(block.ticket)].push_back(block.data);
  } catch (...) {  // no host memory for the list
    cudaFree(block.data);
  }
}

/// cudaFree waits for the device, so nothing that still runs loses its memory.
void CachingPool::free_cached() noexcept {
  for (const auto& [size, blocks] : free_) {
    for (void* block : blocks) cudaFree(block);
  }
  free_.clear();
  static_cast<void>(cudaGetLastError());
}

DeviceRange::DeviceRange(int device) : device_(device) {
  check(cudaSetDevice(device));
  check(cudaFree(nullptr));  // creates the device's context, which the driver's functions work in
  const CUmemAllocationProp properties = properties_of(device);
  check(driver().allocation_granularity(&granularity_, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total));
  reserved_ = rounded_up(total, granularity_);
  check(driver().address_reserve(&base_, reserved_, granularity_, 0, 0));
}

DeviceRange::~DeviceRange() {
  static_cast<void>(cudaSetDevice(device_));
  static_cast<void>(cudaDeviceSynchronize());  // unmapping does not wait for kernels that use the memory
  CUdeviceptr at = base_;
  for (const Piece& piece : pieces_) {
    static_cast<void>(driver().unmap(at, piece.bytes));
    static_cast<void>(driver().release(piece.handle));
    at += piece.bytes;
  }
  if (base_ != 0) static_cast<void>(driver().address_free(base_, reserved_));
}

void DeviceRange::grow(std::size_t bytes) {
  if (bytes <= mapped_) return;
  const std::size_t more = rounded_up(bytes, granularity_) - mapped_;
  check(cudaSetDevice(device_));
  if (more > reserved_ - mapped_) throw_out_of_memory(device_, "the memory of a step", bytes, mapped_);

  const CUmemAllocationProp properties = properties_of(device_);
  CUmemGenericAllocationHandle handle{};
  const CUresult created = driver().create(&handle, more, &properties, 0);
  if (created == CUDA_ERROR_OUT_OF_MEMORY) throw_out_of_memory(device_, "the memory of a step", more, mapped_);
  check(created);
  const CUdeviceptr at = base_ + mapped_;
  const CUresult mapped = driver().map(at, more, 0, handle, 0);
  if (mapped != CUDA_SUCCESS) {
    static_cast<void>(driver().release(handle));
    check(mapped);
  }
  CUmemAccessDesc access{};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  const CUresult accessible = driver().set_access(at, more, &access, 1);
  if (accessible != CUDA_SUCCESS) {
    static_cast<void>(driver().unmap(at, more));
    static_cast<void>(driver().release(handle));
    check(accessible);
  }
  pieces_.push_back({handle, more});
  mapped_ += more;
}

}  // namespace graft::cuda
