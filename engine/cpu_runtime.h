#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "engine/runtime.h"

namespace graft {

/// The CPU as a device: host memory, worker threads.
[[nodiscard]] std::unique_ptr<Runtime> make_cpu_runtime(const RuntimeOptions& options);

/// Bytes of addresses that this process may have (ulimit -v); none if there is no limit.
[[nodiscard]] std::optional<std::size_t> address_limit();

/// Memory that is only counted: addresses without anything behind them, for planning a run on paper.
class PaperMemory final : public Memory {
 public:
  Block allocate(std::size_t bytes, std::string_view name) override;
  void release(const Block& block) noexcept override;
  /// Bytes in use now.
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

}  // namespace graft
