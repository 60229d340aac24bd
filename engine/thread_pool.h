#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace graft {

/// Threads that share out numbered blocks of work. Which thread runs which block is not fixed, so a
/// block's result must depend on its number alone.
class ThreadPool {
 public:
  /// `threads` includes the caller; 0: as many as the process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Runs body(0) .. body(blocks - 1), returns when all are done, and rethrows the first exception. A
  /// call from within a body runs on the calling thread. One thread at a time may call it.
  void run(std::int64_t blocks, const std::function<void(std::int64_t)>& body);

  [[nodiscard]] int threads() const { return static_cast<int>(workers_.size()) + 1; }

 private:
  void work();
  void take_blocks();
  void finish();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> generation_{0};  // counts calls of run(); workers wait for it to change
  std::atomic<bool> stop_{false};
  std::atomic<int> sleeping_{0};

  const std::function<void(std::int64_t)>* body_ = nullptr;
  std::int64_t blocks_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::exception_ptr error_;
};

}  // namespace graft
