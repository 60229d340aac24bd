#include "engine/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "engine/cpu_stream.h"
#include "tests/support/device.h"

namespace graft::test {
namespace {

TEST_CASE("thread pool: every block runs exactly once") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const std::int64_t blocks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> counts(static_cast<std::size_t>(blocks));
      pool.run(blocks, [&](std::int64_t block) { ++counts[static_cast<std::size_t>(block)]; });
      for (const auto& count : counts) CHECK(count == 1);
    }
  }
}

TEST_CASE("thread pool: many short runs in a row") {
  ThreadPool pool(3);
  std::int64_t total = 0;
  for (int round = 0; round < 2000; ++round) {
    std::atomic<std::int64_t> sum{0};
    pool.run(5, [&](std::int64_t block) { sum += block; });
    total += sum;
  }
  CHECK(total == 2000 * 10);
}

TEST_CASE("thread pool: sleeping workers wake up") {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // longer than a worker spins
    std::atomic<int> count{0};
    pool.run(50, [&](std::int64_t) { ++count; });
    CHECK(count == 50);
  }
}

TEST_CASE("thread pool: a call from within a body runs on the calling thread") {
  ThreadPool pool(3);
  std::atomic<int> inner{0};
  std::atomic<int> elsewhere{0};
  pool.run(8, [&](std::int64_t) {
    const std::thread::id caller = std::this_thread::get_id();
    pool.run(4, [&](std::int64_t) {
      ++inner;
      if (std::this_thread::get_id() != caller) ++elsewhere;
    });
  });
  CHECK(inner == 32);
  CHECK(elsewhere == 0);
}

TEST_CASE("thread pool: the first exception comes back, and the pool goes on working") {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 20; ++round) {
      CHECK_THROWS_WITH_AS(pool.run(100,
                                    [&](std::int64_t block) {
                                      if (block == 37) throw std::runtime_error("block 37");
                                    }),
                           "block 37", std::runtime_error);
      std::atomic<int> count{0};
      CHECK_NOTHROW(pool.run(100, [&](std::int64_t) { ++count; }));
      CHECK(count == 100);
    }
    CHECK_THROWS_AS(pool.run(10, [](std::int64_t) { throw std::runtime_error("all"); }), std::runtime_error);
  }
}

TEST_CASE("thread pool: 0 threads are as many as there are") {
  ThreadPool pool(0);
  CHECK(pool.threads() >= 1);
}

TEST_CASE("thread pool: parallel_for covers the range in pieces of at most the grain") {
  TestDevice device(Backend::Cpu, Precision::Fp32, 3);
  for (const std::int64_t n : {0, 1, 9, 10, 11, 100}) {
    std::vector<std::atomic<int>> counts(static_cast<std::size_t>(n));
    std::atomic<bool> fits{true};
    parallel_for(device.stream(), n, 10, [&](std::int64_t first, std::int64_t last) {
      if (first % 10 != 0 || last - first > 10 || last <= first) fits = false;
      for (std::int64_t i = first; i < last; ++i) ++counts[static_cast<std::size_t>(i)];
    });
    CHECK(fits);
    for (const auto& count : counts) CHECK(count == 1);
  }
}

}  // namespace
}  // namespace graft::test
