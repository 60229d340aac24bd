#include "engine/thread_pool.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "engine/error.h"

namespace graft {
namespace {

thread_local bool inside_body = false;

// Kernels of small models take tens of microseconds, about what waking a sleeping thread costs: a
// worker spins for a while before it sleeps.
constexpr int kSpins = 20000;

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (const std::system_error& error) {
    const std::string reason = error.what();
    const std::size_t started = workers_.size() + 1;
    finish();
    throw EnvironmentError("cannot start " + std::to_string(threads) + " threads (" + reason + "); --threads " +
                           std::to_string(started) + " or fewer fits the process limit");
  }
}

ThreadPool::~ThreadPool() { finish(); }

void ThreadPool::finish() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    ++generation_;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(std::int64_t blocks, const std::function<void(std::int64_t)>& body) {
  if (blocks <= 0) return;
  if (workers_.empty() || blocks == 1 || inside_body) {
    for (std::int64_t block = 0; block < blocks; ++block) body(block);
    return;
  }
  body_ = &body;
  blocks_ = blocks;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    ++generation_;
  }
  if (sleeping_.load() > 0) wake_.notify_all();
  take_blocks();
  while (busy_.load(std::memory_order_acquire) > 0) pause_briefly();
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::take_blocks() {
  inside_body = true;
  for (std::int64_t block; (block = next_.fetch_add(1, std::memory_order_relaxed)) < blocks_;) {
    try {
      (*body_)(block);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (error_ == nullptr) error_ = std::current_exception();
    }
  }
  inside_body = false;
}

void ThreadPool::work() {
  std::uint64_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) pause_briefly();
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      ++sleeping_;
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      --sleeping_;
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    take_blocks();
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace graft
