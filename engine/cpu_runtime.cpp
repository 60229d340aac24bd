#include "engine/cpu_runtime.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/cpu_stream.h"
#include "engine/error.h"
#include "engine/thread_pool.h"

namespace graft {
namespace {

constexpr std::size_t kAlignment = 256;

std::size_t padded(std::size_t bytes) { return std::max(bytes + kAlignment - 1, kAlignment) / kAlignment * kAlignment; }

std::size_t physical_memory() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

/// Bytes of addresses that the process has taken.
std::size_t addresses_in_use() {
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

/// What a range leaves to others under a limit on addresses: parameters, files, and for each thread the buffer that
/// OpenBLAS takes at its first product (128 MiB, which it asks for for ever if there are none) and a heap.
std::size_t kept_for_others(int threads) {
  return (std::size_t{512} << 20U) + static_cast<std::size_t>(threads) * (std::size_t{256} << 20U);
}

/// Bytes of addresses to reserve for steps.
std::size_t range_bytes(int threads) {
  const std::optional<std::size_t> limit = address_limit();
  if (!limit) return physical_memory();
  const std::size_t used = addresses_in_use();
  const std::size_t left = *limit > used ? *limit - used : 0;
  const std::size_t kept = std::max(kept_for_others(threads), left / 2);
  if (left <= kept) {
    throw EnvironmentError(fmt::format(
        "cannot reserve addresses for a step: the limit of {} bytes (ulimit -v) leaves {}, and the rest of the "
        "program, with --threads {}, needs {}; {}lift it: ulimit -v unlimited",
        *limit, left, threads, kept, threads > 1 ? "use fewer threads, or " : ""));
  }
  return std::min(physical_memory(), (left - kept) / kAlignment * kAlignment);
}

class CpuPool final : public Memory {
 public:
  Block allocate(std::size_t bytes, std::string_view name) override {
    void* data = std::aligned_alloc(kAlignment, padded(bytes));
    if (data == nullptr) {
      throw OutOfMemoryError(
          fmt::format("out of memory: {} needs {} bytes; use a smaller batch or model", name, bytes));
    }
    return {data, bytes, 0};
  }
  void release(const Block& block) noexcept override { std::free(block.data); }
};

class CpuAddressRange final : public AddressRange {
 public:
  explicit CpuAddressRange(int threads) : reserved_(range_bytes(threads)) {
    void* base = mmap(nullptr, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
      throw EnvironmentError(fmt::format("cannot reserve {} bytes of addresses: {}", reserved_, std::strerror(errno)));
    }
    base_ = static_cast<std::byte*>(base);
  }
  ~CpuAddressRange() override { munmap(base_, reserved_); }
  CpuAddressRange(const CpuAddressRange&) = delete;
  CpuAddressRange& operator=(const CpuAddressRange&) = delete;

  [[nodiscard]] std::byte* base() const override { return base_; }
  void grow(std::size_t bytes) override {
    if (bytes <= mapped_) return;
    if (bytes > reserved_ || mprotect(base_, bytes, PROT_READ | PROT_WRITE) != 0) {
      throw OutOfMemoryError(
          fmt::format("out of memory: a step needs {} bytes, {} {}", bytes,
                      address_limit() ? "the limit on addresses (ulimit -v) leaves it" : "this machine has", reserved_),
          reserved_);
    }
    mapped_ = bytes;
  }
  [[nodiscard]] std::size_t mapped() const override { return mapped_; }

 private:
  std::size_t reserved_;
  std::byte* base_ = nullptr;
  std::size_t mapped_ = 0;
};

class CpuRuntime final : public Runtime {
 public:
  explicit CpuRuntime(const RuntimeOptions& options) : threads_(std::make_shared<ThreadPool>(options.threads)) {}

  [[nodiscard]] Device device() const override { return {Backend::Cpu, 0}; }
  [[nodiscard]] std::string device_name() const override {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
      if (line.starts_with("model name")) {
        const auto colon = line.find(": ");
        if (colon != std::string::npos) {
          return fmt::format("{} ({} threads)", line.substr(colon + 2), threads_->threads());
        }
      }
    }
    return fmt::format("CPU ({} threads)", threads_->threads());
  }
  [[nodiscard]] MemoryInfo memory_info() const override {
    return {static_cast<std::size_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)),
            physical_memory()};
  }
  [[nodiscard]] std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuStream>(threads_); }
  [[nodiscard]] std::shared_ptr<Memory> make_pool() override { return std::make_shared<CpuPool>(); }
  [[nodiscard]] std::unique_ptr<AddressRange> reserve_range() override {
    return std::make_unique<CpuAddressRange>(threads_->threads());
  }
  [[nodiscard]] std::shared_ptr<void> allocate_pinned(std::size_t bytes) override {
    return {std::aligned_alloc(kAlignment, padded(bytes)), [](void* data) { std::free(data); }};
  }

 private:
  std::shared_ptr<ThreadPool> threads_;
};

}  // namespace

std::optional<std::size_t> address_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  return static_cast<std::size_t>(limit.rlim_cur);
}

std::unique_ptr<Runtime> make_cpu_runtime(const RuntimeOptions& options) {
  return std::make_unique<CpuRuntime>(options);
}

Block PaperMemory::allocate(std::size_t bytes, std::string_view) {
  alignas(kAlignment) static std::byte nowhere[kAlignment];  // never read, never written
  bytes_ += bytes;
  return {nowhere, bytes, 0};
}
void PaperMemory::release(const Block& block) noexcept { bytes_ -= block.bytes; }

}  // namespace graft
