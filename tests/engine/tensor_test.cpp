#include "engine/tensor.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "engine/context.h"
#include "engine/error.h"
#include "tests/support/counting_memory.h"
#include "tests/support/device.h"

namespace graft::test {
namespace {

std::vector<double> ramp(int count) {
  std::vector<double> values;
  for (int i = 0; i < count; ++i) values.push_back(i);
  return values;
}

TEST_CASE("tensor: memory goes back with the last tensor that shares it") {
  TestDevice device;
  const auto memory = std::make_shared<CountingMemory>(device.ctx().memory);
  device.ctx().memory = memory;
  {
    Tensor copy;
    {
      const Tensor x = device.ctx().empty({3, 4}, DType::F32, "queries");
      CHECK(memory->last_name() == "queries");
      CHECK(x.use_count() == 1);
      copy = x;
      CHECK(x.use_count() == 2);
      CHECK(copy.view().data == x.view().data);
    }
    CHECK(memory->blocks() == 1);
    CHECK(copy.use_count() == 1);
  }
  CHECK(memory->blocks() == 0);
}

TEST_CASE("tensor: bytes, and an empty handle") {
  const TestDevice device;
  CHECK(device.ctx().empty({3, 4}, DType::BF16).bytes() == 24);
  CHECK(device.ctx().empty({}, DType::F64).bytes() == 8);
  CHECK(device.ctx().empty({0, 4}, DType::F64).bytes() == 0);
  CHECK_FALSE(static_cast<bool>(Tensor()));
  CHECK_FALSE(static_cast<bool>(Tensor().view()));
}

TEST_CASE("tensor: addresses are aligned to 256 bytes") {
  const TestDevice device;
  std::vector<Tensor> keep;
  for (const std::int64_t n : {1, 3, 100, 1000}) {
    keep.push_back(device.ctx().empty({n}, DType::U8));
    CHECK(reinterpret_cast<std::uintptr_t>(keep.back().view().data) % 256 == 0);
  }
}

TEST_CASE("tensor: reshaping keeps memory and gradient identity") {
  const TestDevice device;
  Tensor x = device.tensor({2, 6}, DType::F32, ramp(12));
  x.set_requires_grad(true);
  const Tensor y = x.reshaped({3, 4});
  CHECK(y.view().data == x.view().data);
  CHECK(y.id() == x.id());
  CHECK(y.requires_grad());
  CHECK(device.values(y) == ramp(12));
  CHECK_THROWS_WITH_AS(static_cast<void>(x.reshaped({5})), doctest::Contains("reshape: [5]"), ArgumentError);
}

TEST_CASE("tensor: a slice is a part of the memory without a gradient") {
  const TestDevice device;
  Tensor x = device.tensor({4, 3}, DType::F64, ramp(12));
  x.set_requires_grad(true);
  const Tensor part = x.slice(1, 2);
  CHECK(part.shape() == Shape{2, 3});
  CHECK(device.values(part) == std::vector<double>{3, 4, 5, 6, 7, 8});
  CHECK(part.id() != x.id());
  CHECK_FALSE(part.requires_grad());
  CHECK(device.values(part.slice(1, 1)) == std::vector<double>{6, 7, 8});
  CHECK(x.slice(4, 0).elements() == 0);
  CHECK_THROWS_WITH_AS(static_cast<void>(x.slice(3, 2)), doctest::Contains("rows 3..5, expected within 0..4"),
                       ArgumentError);
  CHECK_THROWS_AS(static_cast<void>(x.slice(-1, 2)), ArgumentError);
  CHECK_THROWS_AS(static_cast<void>(device.ctx().empty({}, DType::F32).slice(0, 1)), ArgumentError);
}

TEST_CASE("tensor: slices of every rank") {
  const TestDevice device;
  CHECK(device.ctx().empty({4}, DType::F32).slice(1, 2).shape() == Shape{2});
  CHECK(device.ctx().empty({4, 2, 3}, DType::F32).slice(1, 2).shape() == Shape{2, 2, 3});
  CHECK(device.ctx().empty({4, 2, 3, 5}, DType::F32).slice(1, 2).shape() == Shape{2, 2, 3, 5});
  CHECK(device.ctx().empty({4, 2, 3, 5, 7}, DType::F32).slice(1, 2).shape() == Shape{2, 2, 3, 5, 7});
}

TEST_CASE("tensor: identities differ") {
  const TestDevice device;
  std::set<std::uint64_t> ids;
  for (int i = 0; i < 100; ++i) ids.insert(device.ctx().empty({1}, DType::F32).id());
  CHECK(ids.size() == 100);
  CHECK_FALSE(ids.contains(0));  // the id of an empty handle
}

TEST_CASE("context: without memory an allocation names what was wanted") {
  const Context ctx;
  CHECK_THROWS_WITH_AS(static_cast<void>(ctx.empty({2}, DType::F32, "logits")),
                       doctest::Contains("no memory to allocate logits"), ArgumentError);
}

TEST_CASE("context: dtypes of the precisions") {
  Context ctx;
  const auto dtypes = [&](Precision precision) {
    ctx.precision = precision;
    return std::pair(ctx.compute_dtype(), ctx.stream_dtype());
  };
  CHECK(dtypes(Precision::Fp32) == std::pair(DType::F32, DType::F32));
  CHECK(dtypes(Precision::Tf32) == std::pair(DType::F32, DType::F32));
  CHECK(dtypes(Precision::Bf16) == std::pair(DType::BF16, DType::F32));
  CHECK(dtypes(Precision::Fp64) == std::pair(DType::F64, DType::F64));
}

TEST_CASE("bfloat16: rounds to nearest even, keeps infinities and NaN") {
  const auto round_trip = [](float value) { return static_cast<float>(bfloat16(value)); };
  CHECK(round_trip(1.F) == 1.F);
  CHECK(round_trip(-0.F) == 0.F);
  CHECK(std::signbit(round_trip(-0.F)));
  CHECK(round_trip(1.F + 0x1p-8F) == 1.F);                // halfway: to the even neighbour
  CHECK(round_trip(1.F + 3 * 0x1p-8F) == 1.F + 0x1p-6F);  // halfway: to the even neighbour
  CHECK(round_trip(1.F + 0x1.02p-8F) == 1.F + 0x1p-7F);
  CHECK(round_trip(std::numeric_limits<float>::max()) == std::numeric_limits<float>::infinity());
  CHECK(round_trip(-std::numeric_limits<float>::infinity()) == -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(round_trip(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(round_trip(std::numeric_limits<float>::signaling_NaN())));
}

}  // namespace
}  // namespace graft::test
