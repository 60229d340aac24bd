#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "engine/device.h"
#include "engine/stream.h"
#include "engine/tensor.h"

namespace graft {

/// A range of device addresses reserved once and filled with memory as plans grow, so that training,
/// evaluation and decoding steps of any shape alternate without copies.
class AddressRange {
 public:
  virtual ~AddressRange() = default;
  [[nodiscard]] virtual std::byte* base() const = 0;
  /// Makes at least `bytes` bytes from base() usable. Throws EnvironmentError, saying how much was
  /// wanted and how much there is.
  virtual void grow(std::size_t bytes) = 0;
  [[nodiscard]] virtual std::size_t mapped() const = 0;
};

/// One device of one backend: its memory and its streams. Owned by the run; several may coexist.
class Runtime {
 public:
  virtual ~Runtime() = default;
  [[nodiscard]] virtual Device device() const = 0;
  /// "NVIDIA H100 80GB HBM3" or the CPU's model name.
  [[nodiscard]] virtual std::string device_name() const = 0;
  /// Free and total bytes of the device's memory.
  struct MemoryInfo {
    std::size_t free = 0;
    std::size_t total = 0;
  };
  [[nodiscard]] virtual MemoryInfo memory_info() const = 0;
  [[nodiscard]] virtual std::unique_ptr<Stream> make_stream() = 0;
  /// A pool of plain allocations.
  [[nodiscard]] virtual std::shared_ptr<Memory> make_pool() = 0;
  [[nodiscard]] virtual std::unique_ptr<AddressRange> reserve_range() = 0;
  /// Host memory that asynchronous copies can write to.
  [[nodiscard]] virtual std::shared_ptr<void> allocate_pinned(std::size_t bytes) = 0;
};

struct RuntimeOptions {
  int threads = 0;  // CPU worker threads; 0: as many as the process may use
};

/// Opens a device. The CUDA backend is a library of its own, loaded here and not before. Throws
/// EnvironmentError saying what was looked for and found when there is no usable GPU.
[[nodiscard]] std::unique_ptr<Runtime> open_runtime(Device device, const RuntimeOptions& options = {});

/// Why the library at `path` cannot serve this program: it was built for another interface; empty if it can. Both
/// builds as "<interface> <git>", see BuildInfo; `library` is empty if it does not say.
[[nodiscard]] std::string backend_mismatch(const std::string& path, std::string_view library, std::string_view program);

/// Whether a CUDA device can be used; if not, `why` says what was found.
[[nodiscard]] bool cuda_available(std::string* why = nullptr);

}  // namespace graft
