#include "engine/tape.h"

#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/basic_kernels.h"
#include "engine/error.h"
#include "tests/support/counting_memory.h"
#include "tests/support/device.h"

namespace graft::test {
namespace {

using Values = std::vector<double>;

void leave(const Context& ctx, const GradTarget& target, ConstView gradient) {
  if (!target) return;
  if (target.accumulate) {
    add_to(ctx, {target.view, gradient});
  } else {
    copy_cast(ctx, {target.view, gradient});
  }
}

Tensor copy_of(const Context& ctx, const Tensor& x) {
  Tensor y = ctx.empty(x.shape(), x.dtype(), "y");
  copy_cast(ctx, {y.mutable_view(), x.view()});
  return y;
}

/// y = 2 x. Writes its gradient; `targets` gets whether it was to store (false) or to add (true).
Tensor doubled(const Context& ctx, const Tensor& x, std::vector<bool>* targets = nullptr) {
  Tensor y = copy_of(ctx, x);
  add_to(ctx, {y.mutable_view(), x.view()});
  ctx.tape->record("doubled", {x}, y, [x = GradRef(x), targets](const Context& c, Grads& grads, const GradRef& dy) {
    Tensor twice = copy_of(c, grads.tensor(dy));
    add_to(c, {twice.mutable_view(), grads.of(dy)});
    const GradTarget target = grads.into(x);
    if (targets != nullptr) targets->push_back(target.accumulate);
    leave(c, target, twice.view());
  });
  return y;
}

/// y = a + b. Passes its gradient on unchanged.
Tensor added(const Context& ctx, const Tensor& a, const Tensor& b) {
  Tensor y = copy_of(ctx, a);
  add_to(ctx, {y.mutable_view(), b.view()});
  ctx.tape->record("added", {a, b}, y,
                   [a = GradRef(a), b = GradRef(b)](const Context&, Grads& grads, const GradRef& dy) {
                     grads.pass(a, grads.tensor(dy));
                     grads.pass(b, grads.tensor(dy));
                   });
  return y;
}

struct Fixture {
  TestDevice device;
  Tape tape;
  Context ctx = device.ctx().with_tape(tape);

  [[nodiscard]] Tensor leaf(const Values& values, DType dtype = DType::F32) const {
    Tensor x = plain(values, dtype);
    x.set_requires_grad(true);
    return x;
  }
  [[nodiscard]] Tensor plain(const Values& values, DType dtype = DType::F32) const {
    return device.tensor({static_cast<std::int64_t>(values.size())}, dtype, values);
  }
};

/// Keeps the gradients of the parameters it is told of.
class Sink final : public GradientSink {
 public:
  void add(const Tensor& parameter, Tensor gradient) { kept_[parameter.id()] = {std::move(gradient), false}; }
  GradTarget gradient_target(std::uint64_t id) override {
    const auto found = kept_.find(id);
    if (found == kept_.end()) return {};
    return {found->second.first.mutable_view(), std::exchange(found->second.second, true)};
  }
  [[nodiscard]] bool owns(std::uint64_t id) const override { return kept_.contains(id); }

 private:
  std::map<std::uint64_t, std::pair<Tensor, bool>> kept_;
};

TEST_CASE("tape: one consumer stores its gradient") {
  Fixture f;
  const Tensor x = f.leaf({1, 2});
  std::vector<bool> targets;
  const Tensor y = doubled(f.ctx, x, &targets);
  CHECK(y.requires_grad());
  const Grads grads = f.tape.backward_from(f.ctx, {{y, f.plain({3, 4})}});
  CHECK(f.device.values(grads.of(x)) == Values{6, 8});
  CHECK(targets == std::vector<bool>{false});
}

TEST_CASE("tape: the second consumer adds") {
  Fixture f;
  const Tensor x = f.leaf({1, 2});
  std::vector<bool> targets;
  const Tensor y = doubled(f.ctx, x, &targets);
  const Tensor z = doubled(f.ctx, x, &targets);
  const Grads grads = f.tape.backward_from(f.ctx, {{y, f.plain({3, 4})}, {z, f.plain({10, 20})}});
  CHECK(f.device.values(grads.of(x)) == Values{26, 48});
  CHECK(targets == std::vector<bool>{false, true});
}

TEST_CASE("tape: gradients flow through several ops") {
  Fixture f;
  const Tensor x = f.leaf({1});
  const Tensor a = doubled(f.ctx, x);
  const Tensor b = doubled(f.ctx, a);
  const Tensor loss = added(f.ctx, added(f.ctx, a, b), b);  // 2x + 4x + 4x
  CHECK(f.tape.size() == 4);
  const Grads grads = f.tape.backward(f.ctx, loss);
  CHECK(f.device.values(loss) == Values{10});
  CHECK(f.device.values(grads.of(x)) == Values{10});
  CHECK(f.tape.size() == 0);
  CHECK_FALSE(grads.has(a));  // gradients between ops are dropped
  CHECK_FALSE(grads.has(loss));
}

TEST_CASE("tape: a gradient that was passed on is copied before somebody adds to it") {
  Fixture f;
  const Tensor a = f.leaf({1, 1});
  const Tensor b = f.leaf({1, 1});
  const Tensor z = doubled(f.ctx, b);
  const Tensor y = added(f.ctx, a, b);  // backward: a and b share y's gradient, then z adds to b's
  const Tensor seed = f.plain({10, 20});
  const Grads grads = f.tape.backward_from(f.ctx, {{z, f.plain({1, 1})}, {y, seed}});
  CHECK(f.device.values(grads.of(b)) == Values{12, 22});
  CHECK(f.device.values(grads.of(a)) == Values{10, 20});
  CHECK(f.device.values(seed) == Values{10, 20});
  CHECK(grads.of(a).data == seed.view().data);  // no copy where none is needed
  CHECK(grads.of(b).data != seed.view().data);
}

TEST_CASE("tape: passing the same gradient twice to one tensor adds") {
  Fixture f;
  const Tensor x = f.leaf({1});
  const Tensor y = added(f.ctx, x, x);
  const Tensor seed = f.plain({5});
  const Grads grads = f.tape.backward_from(f.ctx, {{y, seed}});
  CHECK(f.device.values(grads.of(x)) == Values{10});
  CHECK(f.device.values(seed) == Values{5});
}

TEST_CASE("tape: a gradient passed on in another dtype is cast") {
  Fixture f;
  const Tensor a = f.leaf({1});
  Tensor y = f.plain({1}, DType::F64);
  f.tape.record("cast", {a}, y,
                [a = GradRef(a)](const Context&, Grads& grads, const GradRef& dy) { grads.pass(a, grads.tensor(dy)); });
  const Grads grads = f.tape.backward_from(f.ctx, {{y, f.plain({0.1}, DType::F64)}});
  CHECK(grads.of(a).dtype == DType::F32);
  CHECK(f.device.values(grads.of(a)) == Values{static_cast<double>(0.1F)});
}

TEST_CASE("tape: a passed gradient of another size is refused") {
  Fixture f;
  const Tensor a = f.leaf({1, 2});
  Tensor y = f.plain({1});
  f.tape.record("sum", {a}, y,
                [a = GradRef(a)](const Context&, Grads& grads, const GradRef& dy) { grads.pass(a, grads.tensor(dy)); });
  CHECK_THROWS_WITH_AS(static_cast<void>(f.tape.backward(f.ctx, y)),
                       doctest::Contains("a gradient of shape [1] for a tensor of shape [2]"), ArgumentError);
}

TEST_CASE("tape: what a node saved is free right after it ran") {
  Fixture f;
  const auto memory = std::make_shared<CountingMemory>(f.ctx.memory);
  f.ctx.memory = memory;
  const Tensor x = f.leaf({1});
  std::vector<int> alive;
  Tensor y = x;
  for (int i = 0; i < 3; ++i) {
    const Tensor saved = f.ctx.empty({1000}, DType::F32, "saved");
    Tensor next = copy_of(f.ctx, y);
    f.tape.record("link", {y}, next,
                  [saved, input = GradRef(y), memory, &alive](const Context&, Grads& grads, const GradRef& dy) {
                    alive.push_back(static_cast<int>(memory->bytes() / saved.bytes()));
                    grads.pass(input, grads.tensor(dy));
                  });
    y = next;
  }
  static_cast<void>(f.tape.backward(f.ctx, y));
  CHECK(alive == std::vector<int>{3, 2, 1});
}

TEST_CASE("tape: nothing is recorded where no input needs a gradient") {
  Fixture f;
  const Tensor y = doubled(f.ctx, f.plain({1}));
  CHECK(f.tape.size() == 0);
  CHECK_FALSE(y.requires_grad());
  CHECK_THROWS_WITH_AS(static_cast<void>(f.tape.backward(f.ctx, y)), doctest::Contains("needs a gradient"),
                       ArgumentError);
}

TEST_CASE("tape: an input that needs no gradient has no target") {
  Fixture f;
  const Tensor a = f.leaf({1});
  const Tensor b = f.plain({2});
  const Grads grads = f.tape.backward(f.ctx, added(f.ctx, a, doubled(f.ctx, b)));
  CHECK(grads.has(a));
  CHECK_FALSE(grads.has(b));
  CHECK_FALSE(static_cast<bool>(grads.of(b)));
  CHECK_FALSE(static_cast<bool>(grads.tensor(b)));
}

TEST_CASE("tape: ops nobody asks are skipped, and an unused output has no gradient") {
  Fixture f;
  const Tensor x = f.leaf({1});
  int runs = 0;
  Tensor first = copy_of(f.ctx, x);
  Tensor second = copy_of(f.ctx, x);
  Tensor absent;
  f.tape.record("pair", {x}, {&first, &second, &absent},
                [x = GradRef(x), a = GradRef(first), b = GradRef(second), &runs](const Context&, Grads& grads) {
                  ++runs;
                  CHECK(grads.has(a));
                  CHECK_FALSE(grads.has(b));
                  CHECK_FALSE(static_cast<bool>(grads.of(b)));
                  grads.pass(x, grads.tensor(a));
                });
  CHECK(second.requires_grad());
  std::vector<bool> unused;
  static_cast<void>(doubled(f.ctx, second, &unused));
  const Grads grads = f.tape.backward(f.ctx, first);
  CHECK(runs == 1);
  CHECK(unused.empty());
  CHECK(f.device.values(grads.of(x)) == Values{1});
}

TEST_CASE("tape: a loss has one element") {
  Fixture f;
  const Tensor y = doubled(f.ctx, f.leaf({1, 2, 3}));
  CHECK_THROWS_WITH_AS(static_cast<void>(f.tape.backward(f.ctx, y)), doctest::Contains("the loss has shape [3]"),
                       ArgumentError);
}

TEST_CASE("tape: backward is not recorded itself") {
  Fixture f;
  const Tensor x = f.leaf({1});
  Tensor y = copy_of(f.ctx, x);
  f.tape.record("probe", {x}, y, [](const Context& c, Grads&, const GradRef&) { CHECK(c.tape == nullptr); });
  static_cast<void>(f.tape.backward(f.ctx, y));
}

TEST_CASE("tape: the gradients of parameters go to the sink, first stored and then added") {
  Fixture f;
  const Tensor weight = f.leaf({1, 2}, DType::BF16);
  const Tensor other = f.leaf({1, 2}, DType::BF16);
  const Tensor buffer = f.plain({777, 777});  // float32, whatever was there before
  Sink sink;
  sink.add(weight, buffer);
  std::vector<bool> targets;
  const Tensor y = doubled(f.ctx, weight, &targets);
  const Tensor z = doubled(f.ctx, weight, &targets);
  const Tensor w = added(f.ctx, weight, other);
  const Grads grads = f.tape.backward_from(
      f.ctx,
      {{y, f.plain({1, 2}, DType::BF16)}, {z, f.plain({10, 20}, DType::BF16)}, {w, f.plain({100, 200}, DType::BF16)}},
      &sink);
  CHECK(f.device.values(buffer) == Values{122, 244});
  CHECK(targets == std::vector<bool>{true, true});  // the passed gradient was the first
  CHECK_FALSE(grads.has(weight));
  CHECK(f.device.values(grads.of(other)) == Values{100, 200});
  CHECK(grads.of(other).dtype == DType::BF16);
  CHECK(grads.sink() == &sink);
}

TEST_CASE("tape: an output may be given several gradients to start from") {
  Fixture f;
  const Tensor x = f.leaf({1});
  const Tensor y = doubled(f.ctx, x);
  const Tensor seed = f.plain({1});
  const Grads grads = f.tape.backward_from(f.ctx, {{y, seed}, {y, f.plain({4})}});
  CHECK(f.device.values(grads.of(x)) == Values{10});
  CHECK(f.device.values(seed) == Values{1});
}

/// Reads columns [first, first + count) of x as a tensor of their own, for tests of gradients in parts.
Tensor columns_of(const Context& ctx, const Tensor& x, std::int64_t first, std::int64_t count, double factor) {
  Tensor y = ctx.empty({x.shape()[0], count}, x.dtype(), "columns");
  ctx.tape->record("columns", {x}, y, [=, x = GradRef(x)](const Context&, Grads& grads, const GradRef& dy) {
    const GradTarget dx = grads.into_columns(x, first, count);
    for (std::int64_t row = 0; row < x.shape[0]; ++row) {
      for (std::int64_t column = 0; column < count; ++column) {
        const float value = static_cast<float>(factor) * grads.of(dy).as<float>()[row * count + column];
        float& to = dx.view.as<float>()[row * x.shape[1] + first + column];
        to = dx.accumulate ? to + value : value;
      }
    }
  });
  return y;
}

TEST_CASE("tape: a gradient is written in parts, and what nobody wrote is zeroed") {
  Fixture f;
  Tensor x = f.leaf({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}).reshaped({2, 5});
  const Tensor ones = f.plain({1, 1, 1, 1}).reshaped({2, 2});
  SUBCASE("at the end of the walk") {
    const Tensor a = columns_of(f.ctx, x, 1, 2, 2);
    const Tensor b = columns_of(f.ctx, x, 1, 2, 3);
    const Grads grads = f.tape.backward_from(f.ctx, {{a, ones}, {b, ones}});
    CHECK(f.device.values(grads.of(x)) == Values{0, 5, 5, 0, 0, 0, 5, 5, 0, 0});
  }
  SUBCASE("before the node that made the tensor reads it") {
    const Tensor made = doubled(f.ctx, x).reshaped({2, 5});
    const Tensor a = columns_of(f.ctx, made, 0, 2, 1);
    const Tensor b = columns_of(f.ctx, made, 3, 2, 10);
    const Grads grads = f.tape.backward_from(f.ctx, {{a, ones}, {b, ones}});
    CHECK(f.device.values(grads.of(x)) == Values{2, 2, 0, 20, 20, 2, 2, 0, 20, 20});
  }
  SUBCASE("a whole gradient is added to") {
    const Tensor a = columns_of(f.ctx, x, 3, 2, 1);
    const Tensor b = doubled(f.ctx, x);
    const Tensor seed = f.plain({1, 1, 1, 1, 1, 1, 1, 1, 1, 1}).reshaped(b.shape());
    const Grads grads = f.tape.backward_from(f.ctx, {{a, ones}, {b, seed}});
    CHECK(f.device.values(grads.of(x)) == Values{2, 2, 2, 3, 3, 2, 2, 2, 3, 3});
  }
  SUBCASE("parts that overlap are refused") {
    const Tensor a = columns_of(f.ctx, x, 0, 2, 1);
    const Tensor b = columns_of(f.ctx, x, 1, 2, 1);
    CHECK_THROWS_WITH_AS(static_cast<void>(f.tape.backward_from(f.ctx, {{a, ones}, {b, ones}})),
                         doctest::Contains("overlap"), ArgumentError);
  }
}

}  // namespace
}  // namespace graft::test
