#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/basic_kernels.h"
#include "engine/error.h"
#include "engine/runtime.h"
#include "engine/stream.h"
#include "tests/support/device.h"
#include "tests/support/parity.h"

namespace graft::test {
namespace {

std::vector<double> ramp(std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<double>(i % 251) - 100;
  return values;
}

std::vector<double> doubled(std::vector<double> values) {
  for (double& value : values) value *= 2;
  return values;
}

TEST_CASE("CUDA runtime: describes its device") {
  if (skip_cuda()) return;
  const auto runtime = open_runtime({Backend::Cuda, 0});
  CHECK(runtime->device().backend == Backend::Cuda);
  CHECK_FALSE(runtime->device_name().empty());
  const Runtime::MemoryInfo info = runtime->memory_info();
  CHECK(info.total > (std::size_t{1} << 30U));
  CHECK(info.free <= info.total);
  CHECK_THROWS_AS(static_cast<void>(open_runtime({Backend::Cuda, 4096})), EnvironmentError);
}

TEST_CASE("CUDA runtime: bytes survive the way to the device and back") {
  if (skip_cuda()) return;
  const TestDevice device(Backend::Cuda);
  for (const std::size_t count : {1U, 7U, 1000003U}) {
    const Tensor x = device.tensor({static_cast<std::int64_t>(count)}, DType::F32, ramp(count));
    const Tensor y = device.ctx().empty(x.shape(), x.dtype());
    device.ctx().stream->copy(y.mutable_view().data, x.view().data, x.bytes());
    CHECK(device.values(y) == ramp(count));
    device.ctx().stream->zero(y.mutable_view().data, y.bytes());
    CHECK(device.values(y) == std::vector<double>(count, 0.0));
  }
}

TEST_CASE("CUDA runtime: released blocks are used again") {
  if (skip_cuda()) return;
  const auto runtime = open_runtime({Backend::Cuda, 0});
  const auto pool = runtime->make_pool();
  const Block first = pool->allocate(100000, "a");
  CHECK(reinterpret_cast<std::uintptr_t>(first.data) % 256 == 0);
  pool->release(first);
  const Block second = pool->allocate(100001, "b");  // the same size class
  CHECK(second.data == first.data);
  const Block third = pool->allocate(100001, "c");
  CHECK(third.data != second.data);
  const Block empty = pool->allocate(0, "empty");
  CHECK(empty.data != nullptr);
  for (const Block& block : {second, third, empty}) pool->release(block);
}

TEST_CASE("CUDA runtime: memory that cannot be had is an error that says how much was wanted") {
  if (skip_cuda()) return;
  const auto runtime = open_runtime({Backend::Cuda, 0});
  const std::size_t wanted = runtime->memory_info().total * 4;
  CHECK_THROWS_WITH_AS(static_cast<void>(runtime->make_pool()->allocate(wanted, "attention scores")),
                       doctest::Contains("attention scores wants"), EnvironmentError);
  const auto range = runtime->reserve_range();
  CHECK_THROWS_WITH_AS(range->grow(wanted), doctest::Contains(std::to_string(wanted).c_str()), EnvironmentError);
}

TEST_CASE("CUDA runtime: a range grows in place") {
  if (skip_cuda()) return;
  const auto runtime = open_runtime({Backend::Cuda, 0});
  const auto stream = runtime->make_stream();
  const auto range = runtime->reserve_range();
  CHECK(range->mapped() == 0);
  range->grow(1000);
  std::byte* const base = range->base();
  const std::size_t mapped = range->mapped();
  CHECK(mapped >= 1000);
  std::vector<std::uint8_t> out(1000);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::uint8_t>(i);
  stream->upload(base, out.data(), out.size(), "bytes");

  range->grow(mapped + 1);
  CHECK(range->base() == base);
  CHECK(range->mapped() > mapped);
  stream->copy(base + mapped - 500, base, 1000);  // across the seam of the two pieces
  std::vector<std::uint8_t> back(1000);
  stream->download(back.data(), base + mapped - 500, back.size(), "bytes");
  CHECK(back == out);
  const std::size_t before = range->mapped();
  range->grow(10);
  CHECK(range->mapped() == before);
}

TEST_CASE("CUDA runtime: capture runs nothing, replay runs everything") {
  if (skip_cuda()) return;
  const TestDevice device(Backend::Cuda);
  const Context& ctx = device.ctx();
  Stream& stream = *ctx.stream;
  const Tensor x = device.tensor({1000}, DType::F32, ramp(1000));
  const Tensor y = device.tensor({1000}, DType::F32, std::vector<double>(1000, -1));
  const Tensor sum = device.tensor({1000}, DType::F32, std::vector<double>(1000, 0));

  stream.begin_capture();
  CHECK(stream.mode() == Stream::Mode::Capturing);
  stream.copy(y.mutable_view().data, x.view().data, x.bytes());
  add_to(ctx, {sum.mutable_view(), y.view()});
  fill_value(ctx, {y.mutable_view(), 7.0});
  stream.zero(x.mutable_view().data, sizeof(float));
  const std::unique_ptr<Graph> graph = stream.end_capture();
  CHECK(stream.mode() == Stream::Mode::Eager);
  CHECK(graph->launches() == 4);
  CHECK(device.values(y) == std::vector<double>(1000, -1));

  graph->replay(stream);
  graph->replay(stream);
  CHECK(device.values(y) == std::vector<double>(1000, 7));
  std::vector<double> expected = doubled(ramp(1000));
  expected[0] = ramp(1)[0];  // x[0] was zeroed after the first replay had added it
  CHECK(device.values(sum) == expected);
}

TEST_CASE("CUDA runtime: touching a tensor during capture or planning names it, and the stream goes on working") {
  if (skip_cuda()) return;
  const TestDevice device(Backend::Cuda);
  Stream& stream = *device.ctx().stream;
  const Tensor loss = device.tensor({1}, DType::F32, {3});
  float host = 0;
  stream.begin_capture();
  CHECK_THROWS_WITH_AS(stream.download(&host, loss.view().data, 4, "loss"), doctest::Contains("loss"), ArgumentError);
  CHECK_THROWS_WITH_AS(stream.upload(loss.mutable_view().data, &host, 4, "loss"), doctest::Contains("captured"),
                       ArgumentError);
  CHECK_THROWS_AS(stream.begin_capture(), ArgumentError);
  stream.abandon_capture();
  CHECK(device.values(loss) == std::vector<double>{3});

  stream.set_planning(true);
  fill_value(device.ctx(), {loss.mutable_view(), 9.0});
  stream.zero(loss.mutable_view().data, loss.bytes());
  CHECK_THROWS_WITH_AS(stream.download(&host, loss.view().data, 4, "loss"), doctest::Contains("planned"),
                       ArgumentError);
  stream.set_planning(false);
  CHECK(device.values(loss) == std::vector<double>{3});
  CHECK_THROWS_AS(static_cast<void>(stream.end_capture()), ArgumentError);
}

TEST_CASE("CUDA runtime: events order streams, also inside a capture") {
  if (skip_cuda()) return;
  TestDevice device(Backend::Cuda);
  const Context& ctx = device.ctx();
  const auto other = device.runtime().make_stream();
  Context beside = ctx;
  beside.stream = other.get();
  const std::int64_t n = 1 << 22;
  const auto last = static_cast<std::size_t>(n - 1);
  const Tensor x = device.tensor({n}, DType::F32, std::vector<double>(static_cast<std::size_t>(n), 1));
  const auto forked = [&] {
    for (int i = 0; i < 20; ++i) add_to(ctx, {x.mutable_view(), x.view()});
    const auto fork = ctx.stream->record();
    other->wait(*fork);
    add_to(beside, {x.mutable_view(), x.view()});
    const auto join = other->record();
    ctx.stream->wait(*join);
  };
  forked();
  CHECK(device.values(x)[last] == 0x1p21);
  fill_value(ctx, {x.mutable_view(), 1.0});
  ctx.stream->begin_capture();
  forked();
  const auto graph = ctx.stream->end_capture();
  CHECK(graph->launches() == 21);
  graph->replay(*ctx.stream);
  CHECK(device.values(x)[last] == 0x1p21);
}

TEST_CASE("CUDA runtime: an asynchronous copy to pinned memory is there after its event") {
  if (skip_cuda()) return;
  TestDevice device(Backend::Cuda);
  const Tensor x = device.tensor({1000}, DType::F64, ramp(1000));
  const std::shared_ptr<void> pinned = device.runtime().allocate_pinned(x.bytes());
  device.stream().download_async(pinned.get(), x.view().data, x.bytes());
  const auto event = device.stream().record();
  event->synchronize();
  CHECK(event->finished());
  std::vector<double> back(1000);
  std::memcpy(back.data(), pinned.get(), x.bytes());
  CHECK(back == ramp(1000));
}

constexpr DType kFloating[] = {DType::F32, DType::BF16, DType::F64};

TEST_CASE("basic kernels: fill, add and cast in every combination of dtypes") {
  for (const Backend backend : {Backend::Cpu, Backend::Cuda}) {
    if (backend == Backend::Cuda && skip_cuda()) continue;
    const TestDevice device(backend);
    const Context& ctx = device.ctx();
    for (const std::size_t count : {1U, 9U, 4096U, 70001U}) {
      const Shape shape{static_cast<std::int64_t>(count)};
      for (const DType to : kFloating) {
        const Tensor y = ctx.empty(shape, to);
        fill_value(ctx, {y.mutable_view(), 0.5});
        CHECK(device.values(y) == std::vector<double>(count, 0.5));
        for (const DType from : kFloating) {
          const Tensor x = device.tensor(shape, from, ramp(count));  // small integers: exact in all three
          copy_cast(ctx, {y.mutable_view(), x.view()});
          CHECK(device.values(y) == ramp(count));
          add_to(ctx, {y.mutable_view(), x.view()});
          CHECK(device.values(y) == doubled(ramp(count)));
        }
      }
      for (const DType integer : {DType::I32, DType::I64, DType::U8}) {
        const Tensor y = ctx.empty(shape, integer);
        fill_value(ctx, {y.mutable_view(), 5.0});
        CHECK(device.values(y) == std::vector<double>(count, 5));
      }
    }
  }
}

TEST_CASE("basic kernels: a tensor may start between two 16-byte words") {
  for (const Backend backend : {Backend::Cpu, Backend::Cuda}) {
    if (backend == Backend::Cuda && skip_cuda()) continue;
    const TestDevice device(backend);
    const Tensor whole = device.tensor({1001}, DType::F32, ramp(1001));
    const Tensor part = whole.slice(1, 1000);
    const Tensor y = device.ctx().empty(part.shape(), DType::BF16);
    copy_cast(device.ctx(), {y.mutable_view(), part.view()});
    const std::vector<double> all = ramp(1001);
    CHECK(device.values(y) == std::vector<double>(all.begin() + 1, all.end()));
  }
}

TEST_CASE("basic kernels: rounding to bfloat16 is to nearest even") {
  for (const Backend backend : {Backend::Cpu, Backend::Cuda}) {
    if (backend == Backend::Cuda && skip_cuda()) continue;
    const TestDevice device(backend);
    // halfway between neighbours: 1 + 2^-8 goes down to 1, 1 + 3 * 2^-8 up to 1 + 2^-6
    const Tensor x = device.tensor({3}, DType::F32, {1 + 0x1p-8, 1 + 3 * 0x1p-8, -(1 + 0x1p-8)});
    const Tensor y = device.ctx().empty(x.shape(), DType::BF16);
    copy_cast(device.ctx(), {y.mutable_view(), x.view()});
    CHECK(device.values(y) == std::vector<double>{1, 1 + 0x1p-6, -1});
  }
}

}  // namespace
}  // namespace graft::test
