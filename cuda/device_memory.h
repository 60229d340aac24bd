#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

#include <cuda.h>

#include "engine/runtime.h"
#include "engine/tensor.h"

namespace graft::cuda {

/// Plain device memory that is kept for reuse: a released block serves the next request of its size
/// class, and nothing goes back to the driver while there is enough. Reuse is not ordered against other
/// streams: a block may be released once the work that touches it is enqueued on the stream that the
/// next owner uses too, or has finished.
class CachingPool final : public Memory {
 public:
  explicit CachingPool(int device) : device_(device) {}
  ~CachingPool() override;
  CachingPool(const CachingPool&) = delete;
  CachingPool& operator=(const CachingPool&) = delete;

  Block allocate(std::size_t bytes, std::string_view name) override;
  void release(const Block& block) noexcept override;

  /// What a request of `bytes` takes: a multiple of 256, in steps of about an eighth (at most 2 MiB).
  [[nodiscard]] static std::size_t size_class(std::size_t bytes);

 private:
  void free_cached() noexcept;
  int device_;
  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;  // by size class
};

/// A range of addresses as large as the device's memory; physical memory is mapped into it piece by piece.
class DeviceRange final : public AddressRange {
 public:
  explicit DeviceRange(int device);
  ~DeviceRange() override;
  DeviceRange(const DeviceRange&) = delete;
  DeviceRange& operator=(const DeviceRange&) = delete;

  [[nodiscard]] std::byte* base() const override { return reinterpret_cast<std::byte*>(base_); }
  void grow(std::size_t bytes) override;
  [[nodiscard]] std::size_t mapped() const override { return mapped_; }

 private:
  struct Piece {
    CUmemGenericAllocationHandle handle;
    std::size_t bytes;
  };
  int device_;
  CUdeviceptr base_ = 0;
  std::size_t reserved_ = 0;
  std::size_t granularity_ = 0;
  std::size_t mapped_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace graft::cuda
