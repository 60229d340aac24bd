#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "engine/stream.h"

namespace graft {

/// Worker threads of a CPU stream.
class ThreadPool;

/// Runs kernels at once, or records them (function and argument block) and replays them. Stands to the
/// rules of CUDA capture, so that they are tested on every machine.
class CpuStream final : public Stream {
 public:
  explicit CpuStream(std::shared_ptr<ThreadPool> pool);
  ~CpuStream() override;

  [[nodiscard]] Backend backend() const override { return Backend::Cpu; }
  void launch(const Launch& launch) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void zero(void* to, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes, std::string_view name) override;
  void upload(void* device, const void* host, std::size_t bytes, std::string_view name) override;
  void download_async(void* host, const void* device, std::size_t bytes) override;
  void synchronize() override {}
  [[nodiscard]] std::unique_ptr<Event> record() override;
  void wait(const Event&) override {}
  void begin_capture() override;
  [[nodiscard]] std::unique_ptr<Graph> end_capture() override;
  void abandon_capture() noexcept override;

  [[nodiscard]] ThreadPool& pool() { return *pool_; }

 private:
  class Recording;
  std::shared_ptr<ThreadPool> pool_;
  std::unique_ptr<Recording> recording_;
};

/// Runs body(block) for block = 0..blocks-1 on the stream's worker threads. What a block computes must
/// not depend on which thread runs it: kernels split reductions by fixed blocks and combine the parts
/// in order, so results are the same for any number of threads.
void parallel_blocks(Stream& stream, std::int64_t blocks, const std::function<void(std::int64_t block)>& body);

/// Splits [0, n) into pieces of at most `grain` and runs body(first, last) on each.
template <class Body>
void parallel_for(Stream& stream, std::int64_t n, std::int64_t grain, Body&& body) {
  if (n <= 0) return;
  const std::int64_t blocks = (n + grain - 1) / grain;
  if (blocks == 1) {
    body(std::int64_t{0}, n);
    return;
  }
  parallel_blocks(stream, blocks, [&](std::int64_t block) {
    const std::int64_t first = block * grain;
    body(first, first + grain < n ? first + grain : n);
  });
}

}  // namespace graft
