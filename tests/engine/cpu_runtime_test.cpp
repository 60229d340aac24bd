#include "engine/cpu_runtime.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/runtime.h"
#include "tests/support/process_limits.h"

namespace graft::test {
namespace {

constexpr std::size_t kMebibyte = std::size_t{1} << 20U;

TEST_CASE("CPU runtime: describes its device") {
  const auto runtime = open_runtime({Backend::Cpu, 0}, {2});
  CHECK(runtime->device().backend == Backend::Cpu);
  CHECK(runtime->device_name().find("(2 threads)") != std::string::npos);
  const Runtime::MemoryInfo info = runtime->memory_info();
  CHECK(info.total > 0);
  CHECK(info.free <= info.total);
  CHECK(runtime->make_stream()->backend() == Backend::Cpu);
}

TEST_CASE("CPU runtime: pools give aligned blocks, also of no bytes") {
  const auto pool = open_runtime({Backend::Cpu, 0}, {1})->make_pool();
  std::vector<Block> blocks;
  for (const std::size_t bytes : {0U, 1U, 255U, 256U, 257U, 100000U}) {
    blocks.push_back(pool->allocate(bytes, "x"));
    CHECK(blocks.back().data != nullptr);
    CHECK(blocks.back().bytes == bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(blocks.back().data) % 256 == 0);
    std::memset(blocks.back().data, 1, bytes);
  }
  for (const Block& block : blocks) pool->release(block);
}

TEST_CASE("CPU runtime: memory that cannot be had names who wanted it") {
  const auto pool = open_runtime({Backend::Cpu, 0}, {1})->make_pool();
  CHECK_THROWS_WITH_AS(static_cast<void>(pool->allocate(std::size_t{1} << 60U, "scores")),
                       doctest::Contains("out of memory: scores needs"), EnvironmentError);
}

TEST_CASE("CPU runtime: a range grows in place and keeps what it holds") {
  const auto runtime = open_runtime({Backend::Cpu, 0}, {1});
  const auto range = runtime->reserve_range();
  CHECK(range->mapped() == 0);
  range->grow(1000);
  std::byte* const base = range->base();
  CHECK(reinterpret_cast<std::uintptr_t>(base) % 256 == 0);
  std::memset(base, 7, 1000);
  range->grow(1 << 20);
  CHECK(range->base() == base);
  CHECK(range->mapped() >= 1 << 20);
  CHECK(base[999] == std::byte{7});
  std::memset(base, 1, 1 << 20);
  range->grow(10);  // never shrinks
  CHECK(range->mapped() >= 1 << 20);
  CHECK_THROWS_WITH_AS(range->grow(std::size_t{1} << 60U), doctest::Contains("out of memory: a step needs"),
                       EnvironmentError);
  CHECK(range->mapped() >= 1 << 20);
}

TEST_CASE("CPU runtime: a range leaves room to others under a limit on addresses") {
  if (addresses_are_taken()) return;
  const auto runtime = open_runtime({Backend::Cpu, 0}, {2});
  const auto pool = runtime->make_pool();
  {
    const ProcessLimit limit(RLIMIT_AS, memory_in_use().addresses + 3000 * kMebibyte);
    if (!limit.holds()) {
      MESSAGE("skipped: this process may not have 3000 MiB more of addresses");
      return;
    }
    CHECK(address_limit().has_value());
    const auto range = runtime->reserve_range();
    range->grow(512 * kMebibyte);
    std::memset(range->base() + 512 * kMebibyte - 100, 1, 100);
    CHECK_THROWS_WITH_AS(range->grow(1600 * kMebibyte), doctest::Contains("ulimit -v"), OutOfMemoryError);
    pool->release(pool->allocate(1400 * kMebibyte, "half of it"));
  }
  const ProcessLimit limit(RLIMIT_AS, memory_in_use().addresses + 900 * kMebibyte);
  REQUIRE(limit.holds());
  CHECK_THROWS_WITH_AS(static_cast<void>(runtime->reserve_range()), doctest::Contains("ulimit -v"), EnvironmentError);
}

TEST_CASE("CPU runtime: two ranges are apart") {
  const auto runtime = open_runtime({Backend::Cpu, 0}, {1});
  const auto a = runtime->reserve_range();
  const auto b = runtime->reserve_range();
  CHECK(a->base() != b->base());
}

TEST_CASE("CPU runtime: pinned memory can be written") {
  const auto runtime = open_runtime({Backend::Cpu, 0}, {1});
  const std::shared_ptr<void> pinned = runtime->allocate_pinned(100);
  std::memset(pinned.get(), 3, 100);
  CHECK(static_cast<unsigned char*>(pinned.get())[99] == 3);
}

TEST_CASE("paper memory: counts and has nothing behind it") {
  PaperMemory memory;
  const Block a = memory.allocate(std::numeric_limits<std::int32_t>::max() * std::size_t{1000}, "weights");
  const Block b = memory.allocate(10, "bias");
  CHECK(memory.bytes() == a.bytes + 10);
  memory.release(a);
  CHECK(memory.bytes() == 10);
  memory.release(b);
  CHECK(memory.bytes() == 0);
}

}  // namespace
}  // namespace graft::test
