#include "engine/step_graph.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/basic_kernels.h"
#include "engine/error.h"
#include "tests/support/parity.h"
#include "tests/support/small_run.h"

namespace graft::test {
namespace {

StepGraph train_graph(SmallRun& run, const std::shared_ptr<AddressRange>& range) {
  return {run.device().ctx(), range, "train step", [&run](const Context& ctx) { run.train(ctx); }};
}

void check_captured_equals_eager(Backend backend, Precision precision) {
  INFO(std::string(name_of(backend)) << " " << std::string(name_of(precision)));
  SmallRun eager(backend, precision);
  SmallRun captured(backend, precision);
  const std::vector<std::byte> start = eager.fingerprint();
  StepGraph eager_graph = train_graph(eager, eager.device().runtime().reserve_range());
  StepGraph captured_graph = train_graph(captured, captured.device().runtime().reserve_range());
  eager_graph.plan();
  captured_graph.plan();
  CHECK(captured.fingerprint() == start);  // planning runs nothing
  CHECK(eager_graph.arena().planned_bytes() == captured_graph.arena().planned_bytes());

  captured_graph.run_eager();
  const std::vector<std::byte> one = captured.fingerprint();
  const std::uint64_t before = captured.device().stream().launches();
  captured_graph.capture();
  CHECK(captured_graph.captured());
  CHECK(captured_graph.launches() > 0);
  // A launch of graft's is one entry of a CPU graph; of a CUDA graph it may be several nodes.
  const std::uint64_t recorded = captured.device().stream().launches() - before;
  if (backend == Backend::Cpu) CHECK(recorded == captured_graph.launches());
  CHECK(recorded <= captured_graph.launches());
  CHECK(captured.fingerprint() == one);  // neither does capturing

  eager_graph.run_eager();
  CHECK(eager.fingerprint() == one);
  for (int step = 1; step < 6; ++step) {
    eager_graph.run_eager();
    captured_graph.replay();
    CHECK(eager.fingerprint() == captured.fingerprint());
  }
  CHECK(captured.steps() == 6);
  CHECK(captured.fingerprint() != one);

  // Without an arena the results are the same, too.
  SmallRun plain(backend, precision);
  for (int step = 0; step < 6; ++step) plain.train(plain.device().ctx());
  CHECK(plain.fingerprint() == captured.fingerprint());
}

/// Training alternates with an evaluation that needs more memory and is planned later, in the same range.
void check_shared_range(Backend backend) {
  SmallRun alone(backend);
  StepGraph alone_graph = train_graph(alone, alone.device().runtime().reserve_range());
  alone_graph.plan();
  alone_graph.capture();
  for (int step = 0; step < 4; ++step) alone_graph.replay();

  SmallRun run(backend);
  const std::shared_ptr<AddressRange> range = run.device().runtime().reserve_range();
  StepGraph train = train_graph(run, range);
  train.plan();
  train.capture();
  train.replay();
  std::byte* const base = range->base();
  const std::size_t mapped = range->mapped();
  CHECK(mapped >= train.arena().planned_bytes());

  const auto large = static_cast<std::int64_t>(mapped / sizeof(float));
  const Tensor sum = run.device().tensor({large}, DType::F32, std::vector<double>(static_cast<std::size_t>(large), 0));
  StepGraph other(run.device().ctx(), range, "evaluation", [&](const Context& ctx) {
    const Tensor a = ctx.empty({large}, DType::F32, "a");
    const Tensor b = ctx.empty({large}, DType::F32, "b");
    fill_value(ctx, {a.mutable_view(), 1.0});
    fill_value(ctx, {b.mutable_view(), 2.0});
    add_to(ctx, {a.mutable_view(), b.view()});
    add_to(ctx, {sum.mutable_view(), a.view()});
  });
  other.plan();
  CHECK(range->base() == base);
  CHECK(range->mapped() > mapped);
  other.capture();
  for (int step = 1; step < 4; ++step) {
    other.replay();
    train.replay();
  }
  CHECK(run.fingerprint() == alone.fingerprint());
  const std::vector<double> values = run.device().values(sum);
  CHECK(values.front() == 9);
  CHECK(values.back() == 9);
}

TEST_CASE("step graph: captured equals eager") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16, Precision::Fp64}) {
    check_captured_equals_eager(Backend::Cpu, precision);
  }
}

TEST_CASE("step graph: captured equals eager on CUDA") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    check_captured_equals_eager(Backend::Cuda, precision);
  }
}

TEST_CASE("step graph: two graphs share a range that grows") { check_shared_range(Backend::Cpu); }

TEST_CASE("step graph: two CUDA graphs share a range that grows") {
  if (skip_cuda()) return;
  check_shared_range(Backend::Cuda);
}

TEST_CASE("step graph: training learns") {
  SmallRun run(Backend::Cpu);
  StepGraph graph = train_graph(run, run.device().runtime().reserve_range());
  graph.plan();
  graph.capture();
  graph.replay();
  const double first = run.loss();
  for (int step = 0; step < 60; ++step) graph.replay();
  CHECK(run.loss() < 0.7 * first);
}

TEST_CASE("step graph: a plan for a report maps nothing") {
  SmallRun run(Backend::Cpu);
  const std::shared_ptr<AddressRange> range = run.device().runtime().reserve_range();
  StepGraph graph = train_graph(run, range);
  graph.plan_only();
  CHECK(graph.arena().planned_bytes() > 0);
  CHECK(range->mapped() == 0);
  CHECK_FALSE(graph.arena().largest(3).empty());
  CHECK_THROWS_AS(graph.run_eager(), ArgumentError);
}

TEST_CASE("step graph: an unplanned step cannot run, an uncaptured one not be replayed") {
  SmallRun run(Backend::Cpu);
  StepGraph graph = train_graph(run, run.device().runtime().reserve_range());
  CHECK_THROWS_WITH_AS(graph.run_eager(), doctest::Contains("before it was planned"), ArgumentError);
  CHECK_THROWS_WITH_AS(graph.capture(), doctest::Contains("before it was planned"), ArgumentError);
  graph.plan();
  CHECK_THROWS_WITH_AS(graph.replay(), doctest::Contains("before it was captured"), ArgumentError);
  CHECK_FALSE(graph.captured());
  CHECK(graph.launches() == 0);
}

void check_failed_capture(Backend backend) {
  SmallRun run(backend);
  Stream& stream = run.device().stream();
  bool reading = false;
  StepGraph graph(run.device().ctx(), run.device().runtime().reserve_range(), "train step", [&](const Context& ctx) {
    const Tensor loss = ctx.empty({1}, DType::F32, "loss");
    fill_value(ctx, {loss.mutable_view(), 2.0});
    float host = 0;
    if (reading) ctx.stream->download(&host, loss.view().data, sizeof(host), "training loss");
    run.train(ctx);
  });
  reading = true;
  CHECK_THROWS_WITH_AS(graph.plan(), doctest::Contains("training loss"), ArgumentError);
  CHECK(stream.mode() == Stream::Mode::Eager);
  reading = false;
  graph.plan();
  reading = true;
  CHECK_THROWS_WITH_AS(graph.capture(), doctest::Contains("training loss"), ArgumentError);
  CHECK(stream.mode() == Stream::Mode::Eager);
  CHECK_FALSE(graph.captured());
  CHECK_NOTHROW(graph.run_eager());
  reading = false;
  graph.capture();
  graph.replay();
  CHECK(run.steps() == 2);
}

TEST_CASE("step graph: a step that cannot be captured says so, and the stream goes on working") {
  check_failed_capture(Backend::Cpu);
}

TEST_CASE("step graph: a step that cannot be captured says so on CUDA, and the stream goes on working") {
  if (skip_cuda()) return;
  check_failed_capture(Backend::Cuda);
}

TEST_CASE("step graph: a tensor that outlives the step is named") {
  Tensor kept;
  TestDevice owner;
  StepGraph graph(owner.ctx(), owner.runtime().reserve_range(), "train step",
                  [&](const Context& ctx) { kept = ctx.empty({4}, DType::F32, "hidden state"); });
  CHECK_THROWS_WITH_AS(graph.plan(), doctest::Contains("hidden state (16 bytes)"), ArgumentError);
  CHECK(owner.stream().mode() == Stream::Mode::Eager);
}

TEST_CASE("step graph: keeps its memory for as long as it may run") {
  TestDevice device;
  const Tensor result = device.tensor({3}, DType::F32, {0, 0, 0});
  std::weak_ptr<AddressRange> watch;
  {
    std::unique_ptr<StepGraph> graph;
    {
      const std::shared_ptr<AddressRange> range = device.runtime().reserve_range();
      watch = range;
      graph = std::make_unique<StepGraph>(device.ctx(), range, "step", [&](const Context& ctx) {
        const Tensor x = ctx.empty({3}, DType::F32, "x");
        fill_value(ctx, {x.mutable_view(), 4.0});
        add_to(ctx, {result.mutable_view(), x.view()});
      });
    }
    graph->plan();
    graph->capture();
    graph->replay();
    CHECK_FALSE(watch.expired());
  }
  CHECK(watch.expired());
  CHECK(device.values(result) == std::vector<double>{4, 4, 4});
}

}  // namespace
}  // namespace graft::test
