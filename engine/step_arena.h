#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/runtime.h"
#include "engine/tensor.h"

namespace graft {

/// The memory of one step at fixed addresses. The first pass logs allocations and releases (with the
/// stream in planning mode: addresses are not backed yet); plan() turns lifetimes into offsets; later
/// passes must ask for the same sequence, or throw.
class StepArena final : public Memory {
 public:
  /// `range` is shared by all arenas of a run, whose steps never overlap in time.
  StepArena(std::shared_ptr<AddressRange> range, std::string name);
  ~StepArena() override;

  Block allocate(std::size_t bytes, std::string_view name) override;
  void release(const Block& block) noexcept override;

  void begin_step();
  /// Throws ArgumentError naming every tensor that is still alive.
  void end_step();
  /// Ends logging and maps the memory that the plan needs.
  void plan();
  [[nodiscard]] bool planned() const { return planned_; }
  /// Bytes the plan needs; valid after plan_only() or plan().
  [[nodiscard]] std::size_t planned_bytes() const { return planned_bytes_; }
  /// The plan without mapping memory: what `--dry-run` reports.
  void plan_only();

  struct Usage {
    std::string name;
    std::size_t bytes;      // of all of them
    std::size_t count = 1;  // tensors
  };
  /// What takes most at the plan's peak, biggest first: tensors of one name are counted together, since every layer has
  /// its own.
  [[nodiscard]] std::vector<Usage> largest(std::size_t count) const;

 private:
  struct Entry {
    std::string name;
    std::size_t bytes = 0;
    std::int64_t first = 0;  // event at which it was allocated
    std::int64_t last = -1;  // event at which it was released
    std::size_t offset = 0;
    bool alive = false;
  };
  std::shared_ptr<AddressRange> range_;
  std::string name_;
  std::vector<Entry> entries_;
  std::size_t next_ = 0;    // next allocation in this pass
  std::uint64_t pass_ = 0;  // counts begin_step(); part of a ticket, so that a late release is recognised
  std::int64_t event_ = 0;  // allocations and releases in this pass
  bool in_step_ = false;
  bool planned_ = false;
  bool diverged_ = false;  // a release came at another point than planned; reported by end_step
  std::size_t planned_bytes_ = 0;
};

}  // namespace graft
