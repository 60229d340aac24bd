#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/tensor.h"

namespace graft::test {

/// Passes allocations on and keeps count of what is alive.
class CountingMemory final : public Memory {
 public:
  explicit CountingMemory(std::shared_ptr<Memory> below) : below_(std::move(below)) {}

  Block allocate(std::size_t bytes, std::string_view name) override {
    const Block block = below_->allocate(bytes, name);
    ++blocks_;
    bytes_ += bytes;
    peak_ = std::max(peak_, bytes_);
    last_name_ = name;
    return block;
  }
  void release(const Block& block) noexcept override {
    --blocks_;
    bytes_ -= block.bytes;
    below_->release(block);
  }

  [[nodiscard]] int blocks() const { return blocks_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t peak() const { return peak_; }
  /// What the latest block was called.
  [[nodiscard]] const std::string& last_name() const { return last_name_; }

 private:
  std::shared_ptr<Memory> below_;
  int blocks_ = 0;
  std::size_t bytes_ = 0;
  std::size_t peak_ = 0;
  std::string last_name_;
};

}  // namespace graft::test
