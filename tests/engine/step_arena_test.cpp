#include "engine/step_arena.h"

#include <doctest/doctest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/context.h"
#include "engine/error.h"
#include "tests/support/device.h"

namespace graft::test {
namespace {

/// An arena, and a context whose step tensors come from it.
struct Fixture {
  TestDevice device;
  std::shared_ptr<AddressRange> range{device.runtime().reserve_range()};
  std::shared_ptr<StepArena> arena = std::make_shared<StepArena>(range, "train step");
  Context ctx = device.ctx();

  Fixture() { ctx.memory = arena; }
  void run(const std::function<void()>& step) {
    arena->begin_step();
    step();
    arena->end_step();
  }
  void plan(const std::function<void()>& step) {
    device.stream().set_planning(true);
    run(step);
    device.stream().set_planning(false);
    arena->plan();
  }
  [[nodiscard]] Tensor take(std::int64_t floats, const char* name) const {
    return ctx.empty({floats}, DType::F32, name);
  }
};

TEST_CASE("step arena: later passes get the same addresses, and memory that follows is shared") {
  Fixture f;
  std::vector<const void*> seen;
  const auto step = [&] {
    seen.clear();
    Tensor a = f.take(1000, "a");
    seen.push_back(a.view().data);
    {
      const Tensor b = f.take(500, "b");
      seen.push_back(b.view().data);
    }
    const Tensor c = f.take(500, "c");
    seen.push_back(c.view().data);
    a = Tensor();
    const Tensor d = f.take(900, "d");
    seen.push_back(d.view().data);
  };
  f.plan(step);
  CHECK(f.arena->planned());
  CHECK(f.arena->planned_bytes() == 4096 + 2048);
  CHECK(f.range->mapped() >= f.arena->planned_bytes());
  f.run(step);
  const std::vector<const void*> first = seen;
  CHECK(first[0] == f.range->base());
  CHECK(first[1] == first[2]);
  CHECK(first[3] == first[0]);
  f.run(step);
  CHECK(seen == first);
}

TEST_CASE("step arena: values survive beside other tensors of the step") {
  Fixture f;
  std::vector<double> got;
  const auto step = [&] {
    const Tensor a = f.take(3, "a");
    const Tensor b = f.take(3, "b");
    if (!f.arena->planned()) return;
    const std::vector<float> ones = {1, 1, 1};
    const std::vector<float> twos = {2, 2, 2};
    f.device.stream().upload(a.mutable_view().data, ones.data(), 12, "a");
    f.device.stream().upload(b.mutable_view().data, twos.data(), 12, "b");
    got = f.device.values(a);
  };
  f.plan(step);
  f.run(step);
  CHECK(got == std::vector<double>{1, 1, 1});
}

TEST_CASE("step arena: another size than planned names both tensors") {
  Fixture f;
  std::int64_t size = 8;
  const auto step = [&] { static_cast<void>(f.take(size, "scores")); };
  f.plan(step);
  size = 9;
  CHECK_THROWS_WITH_AS(
      f.run(step), doctest::Contains("train step: allocation 0 is scores of 36 bytes, planned was scores of 32 bytes"),
      ArgumentError);
  size = 8;
  CHECK_NOTHROW(f.run(step));  // the arena goes on working
}

TEST_CASE("step arena: more and fewer allocations than planned") {
  Fixture f;
  int count = 2;
  const auto step = [&] {
    for (int i = 0; i < count; ++i) static_cast<void>(f.take(8, i == 2 ? "third" : "x"));
  };
  f.plan(step);
  count = 3;
  CHECK_THROWS_WITH_AS(f.run(step), doctest::Contains("third (32 bytes) is one allocation more than the 2 planned"),
                       ArgumentError);
  count = 1;
  CHECK_THROWS_WITH_AS(f.run(step), doctest::Contains("1 allocations, planned were 2"), ArgumentError);
}

TEST_CASE("step arena: another order of releases is an error") {
  Fixture f;
  bool swapped = false;
  bool more = false;
  const auto step = [&] {
    Tensor a = f.take(8, "a");
    Tensor b = f.take(8, "b");
    (swapped ? b : a) = Tensor();
    (swapped ? a : b) = Tensor();
    if (more) static_cast<void>(f.take(8, "c"));
  };
  f.plan(step);
  swapped = true;
  CHECK_THROWS_WITH_AS(f.run(step), doctest::Contains("released in another order than planned"), ArgumentError);
  swapped = false;
  CHECK_NOTHROW(f.run(step));
}

TEST_CASE("step arena: a tensor that is released later than planned is reported with the next allocation") {
  Fixture f;
  bool late = false;
  const auto step = [&] {
    Tensor a = f.take(8, "a");
    if (!late) a = Tensor();
    const Tensor b = f.take(8, "b");
  };
  f.plan(step);
  late = true;
  CHECK_THROWS_WITH_AS(f.run(step), doctest::Contains("b"), ArgumentError);
}

TEST_CASE("step arena: what is alive at the end of a step is named") {
  Fixture f;
  Tensor kept;
  bool keep = true;
  const auto step = [&] {
    Tensor loss = f.take(1, "running loss");
    const Tensor other = f.take(16, "scratch");
    if (keep) kept = loss;
  };
  f.device.stream().set_planning(true);
  CHECK_THROWS_WITH_AS(f.run(step), doctest::Contains("running loss (4 bytes)"), ArgumentError);
  // A second try while the tensor of the first is still held: its late release is nobody else's.
  keep = false;
  CHECK_NOTHROW(f.run([&] {
    const Tensor a = f.take(32, "a");
    kept = Tensor();
    const Tensor b = f.take(32, "b");
  }));
  f.device.stream().set_planning(false);
  f.arena->plan();
  CHECK(f.arena->planned_bytes() == 512);

  Fixture g;
  const auto leaking = [&] {
    const Tensor x = g.take(4, "x");
    if (keep) kept = x;
  };
  g.plan(leaking);
  keep = true;
  CHECK_THROWS_WITH_AS(g.run(leaking), doctest::Contains("x (16 bytes)"), ArgumentError);
  kept = Tensor();
}

TEST_CASE("step arena: allocating outside a step, and planning inside one") {
  Fixture f;
  CHECK_THROWS_WITH_AS(static_cast<void>(f.take(4, "mask")), doctest::Contains("mask was allocated outside a step"),
                       ArgumentError);
  f.arena->begin_step();
  CHECK_THROWS_WITH_AS(f.arena->plan(), doctest::Contains("planning inside a step"), ArgumentError);
}

TEST_CASE("step arena: a plan alone maps nothing") {
  Fixture f;
  f.device.stream().set_planning(true);
  f.run([&] { static_cast<void>(f.take(1 << 20, "x")); });
  f.device.stream().set_planning(false);
  f.arena->plan_only();
  CHECK(f.arena->planned_bytes() == std::size_t{4} << 20U);
  CHECK(f.range->mapped() == 0);
  CHECK_FALSE(f.arena->planned());
}

TEST_CASE("step arena: the largest tensors at the peak, biggest first") {
  Fixture f;
  f.plan([&] {
    { const Tensor early = f.take(4000, "early"); }
    const Tensor a = f.take(1000, "a");
    const Tensor b = f.take(2000, "b");
    const Tensor c = f.take(1500, "c");
    const Tensor another = f.take(700, "a");
  });
  const std::vector<StepArena::Usage> all = f.arena->largest(10);
  REQUIRE(all.size() == 3);
  CHECK(all[0].name == "b");
  CHECK(all[0].bytes == 8000);
  CHECK(all[0].count == 1);
  CHECK(all[1].name == "a");
  CHECK(all[1].bytes == 6800);
  CHECK(all[1].count == 2);
  CHECK(all[2].name == "c");
  CHECK(f.arena->largest(1).size() == 1);
}

TEST_CASE("step arena: an empty step") {
  Fixture f;
  f.plan([] {});
  CHECK(f.arena->planned_bytes() == 0);
  CHECK_NOTHROW(f.run([] {}));
  CHECK(f.arena->largest(3).empty());
}

}  // namespace
}  // namespace graft::test
