#include "train/step.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/step_graph.h"
#include "engine/stream.h"
#include "tests/support/parity.h"
#include "tests/support/share.h"
#include "tests/train/tiny_run.h"
#include "train/metrics.h"

namespace graft::test {
namespace {

enum class Mode { Captured, Eager, Pool };

/// Everything that training leaves behind, as bits.
struct Trace {
  std::vector<MetricsRow> rows;
  std::vector<std::uint64_t> hashes;  // of the weights, after each step
  std::vector<std::byte> buffers;     // weights, gradients, moments and the bfloat16 copy at the end
  StepState state;
  std::size_t graphs = 0;
};

std::vector<std::byte> bytes_of(const Context& ctx, const Tensor& tensor) {
  std::vector<std::byte> bytes(tensor ? tensor.bytes() : 0);
  if (!bytes.empty()) ctx.stream->download(bytes.data(), tensor.view().data, bytes.size(), "buffer");
  return bytes;
}

/// Trains as Trainer does: one graph a number of points, its first step eager. Mode::Pool has no arena at all, so that
/// tensors that should not share memory cannot.
Trace train(const RunConfig& config, Backend backend, Mode mode, int threads = 1) {
  TinySession tiny(config, backend, threads);
  Session& session = tiny.session;
  Experiment& experiment = tiny.experiment;
  const Context& ctx = session.ctx();
  session.initialize();
  MetricsRing metrics(ctx, session.runtime(), 1024);
  const StepParts parts = step_parts(experiment, metrics);
  Trace trace;
  std::unique_ptr<StepGraph> graph;
  std::int64_t graph_points = 0;
  for (std::int64_t step = 0; step < config.train.steps; ++step) {
    const std::int64_t points = experiment.task->points_at(static_cast<std::uint64_t>(step));
    if (mode == Mode::Pool) {
      train_step(ctx, parts, points);
    } else {
      const bool fresh = graph == nullptr || points != graph_points;
      if (fresh) {
        graph = std::make_unique<StepGraph>(ctx, session.range(), "training step",
                                            [parts, points](const Context& c) { train_step(c, parts, points); });
        graph_points = points;
        graph->plan();
        ++trace.graphs;
      }
      if (mode == Mode::Eager || fresh) {
        graph->run_eager();
      } else {
        if (!graph->captured()) graph->capture();
        graph->replay();
      }
    }
    trace.hashes.push_back(experiment.params.hash(ctx));
  }
  metrics.request(ctx, static_cast<std::uint64_t>(config.train.steps));
  trace.rows = *metrics.take();
  trace.state = session.state().read(ctx);
  const ParameterStore& params = experiment.params;
  for (const Tensor* buffer : {&params.weights(), &params.gradients(), &params.first_moments(),
                               &params.second_moments(), &params.compute_copy()}) {
    const std::vector<std::byte> bytes = bytes_of(ctx, *buffer);
    trace.buffers.insert(trace.buffers.end(), bytes.begin(), bytes.end());
  }
  return trace;
}

/// Bit for bit, so that equal NaNs are equal.
template <class T>
bool same_bits(const T& a, const T& b) {
  const auto bytes_a = std::bit_cast<std::array<std::byte, sizeof(T)>>(a);
  return bytes_a == std::bit_cast<std::array<std::byte, sizeof(T)>>(b);
}

void check_same(const Trace& a, const Trace& b) {
  REQUIRE(a.rows.size() == b.rows.size());
  std::size_t step = 0;
  while (step < a.hashes.size() && a.hashes[step] == b.hashes[step] && same_bits(a.rows[step], b.rows[step])) {
    ++step;
  }
  CHECK(step == a.hashes.size());  // the first step that differs
  CHECK(a.buffers == b.buffers);
  CHECK(same_bits(a.state, b.state));
}

/// That the run went through what it is to go through.
void check_eventful(const Trace& trace, const RunConfig& config) {
  CHECK(trace.rows.size() == static_cast<std::size_t>(config.train.steps));
  CHECK(trace.state.step == static_cast<std::uint64_t>(config.train.steps));
  CHECK(trace.state.updates == trace.state.step);
  CHECK(trace.state.skipped == 0);
  CHECK(trace.rows.front().learning_rate == 0);
  CHECK(trace.rows[6].learning_rate == config.optimizer.lr);
  CHECK(trace.rows.back().learning_rate < 0.5 * config.optimizer.lr);
  bool clipped = false;
  bool unclipped = false;
  for (std::size_t i = 0; i < trace.rows.size(); ++i) {
    CHECK(trace.rows[i].step == static_cast<double>(i + 1));
    (trace.rows[i].gradient_norm > config.optimizer.clip ? clipped : unclipped) = true;
    if (i > 0) CHECK(trace.rows[i].loss != trace.rows[i - 1].loss);
    if (i > 1) CHECK(trace.hashes[i] != trace.hashes[i - 1]);
  }
  CHECK(clipped);
  CHECK(unclipped);
}

void check_capture(Backend backend, Precision precision) {
  // A norm that some steps exceed and others do not.
  const RunConfig config =
      tiny_config({fmt::format("train.precision={}", name_of(precision)), "optimizer.clip=6", "train.steps=64"});
  CAPTURE(name_of(precision));
  std::optional<Trace> captured;
  for (const auto& [mode, what] :
       {std::pair{Mode::Eager, "eager"}, {Mode::Pool, "without an arena"}, {Mode::Captured, "captured again"}}) {
    CAPTURE(std::string(what));
    if (!in_share(fmt::format("{} {}", name_of(precision), what))) continue;
    if (!captured) {
      captured = train(config, backend, Mode::Captured);
      check_eventful(*captured, config);
      CHECK(captured->graphs == 4);
    }
    check_same(*captured, train(config, backend, mode));
  }
}

TEST_CASE("step: captured equals eager, bit for bit, while rate, data and curriculum change") {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16, Precision::Fp64, Precision::Tf32}) {
    check_capture(Backend::Cpu, precision);
  }
}

TEST_CASE("step: CUDA: captured equals eager, bit for bit, while rate, data and curriculum change") {
  if (skip_cuda()) return;
  for (const Precision precision : {Precision::Fp32, Precision::Tf32, Precision::Bf16}) {
    check_capture(Backend::Cuda, precision);
  }
}

TEST_CASE("step: CUDA: a model of common size gives the same bits captured, eager and again") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "tf32", "bf16"}) {
    CAPTURE(precision);
    if (!in_share(precision)) continue;
    const RunConfig config =
        tiny_config({fmt::format("train.precision={}", precision), "model.width=128", "model.heads=8", "task.dim=20",
                     "task.points=41", "task.curriculum.dims_start=5", "task.curriculum.points_start=35",
                     "task.curriculum.points_increment=2", "train.batch=64"});
    const Trace captured = train(config, Backend::Cuda, Mode::Captured);
    CHECK(captured.graphs == 4);
    check_same(captured, train(config, Backend::Cuda, Mode::Eager));
    check_same(captured, train(config, Backend::Cuda, Mode::Captured));
  }
}

TEST_CASE("step: any number of CPU threads gives the same bits") {
  for (const char* precision : {"fp32", "bf16", "fp64"}) {
    CAPTURE(precision);
    const RunConfig config = tiny_config({fmt::format("train.precision={}", precision), "train.steps=6",
                                          "task.curriculum.points_start=4", "model.width=64", "train.batch=32"});
    const Trace one = train(config, Backend::Cpu, Mode::Captured, 1);
    for (const int threads : {2, 5}) {
      CAPTURE(threads);
      check_same(one, train(config, Backend::Cpu, Mode::Captured, threads));
    }
  }
}

TEST_CASE("step: another seed is another run") {
  const Trace first = train(tiny_config({"train.steps=3"}), Backend::Cpu, Mode::Captured);
  const Trace second = train(tiny_config({"train.steps=3", "run.seed=6"}), Backend::Cpu, Mode::Captured);
  CHECK(first.hashes.back() != second.hashes.back());
  CHECK(first.rows.front().loss != second.rows.front().loss);
}

TEST_CASE("step: two runs in one process do not touch each other") {
  const RunConfig config = tiny_config({"train.steps=20"});
  const Trace alone = train(config, Backend::Cpu, Mode::Captured);

  TinySession first(config);
  TinySession second(tiny_config({"train.steps=20", "run.seed=99", "train.precision=bf16"}));
  std::array<std::unique_ptr<MetricsRing>, 2> rings;
  std::array<TinySession*, 2> runs = {&first, &second};
  std::array<std::unique_ptr<StepGraph>, 2> graphs;
  std::array<std::int64_t, 2> points = {};
  for (std::size_t i = 0; i < 2; ++i) {
    runs[i]->session.initialize();
    rings[i] = std::make_unique<MetricsRing>(runs[i]->session.ctx(), runs[i]->session.runtime(), 128);
  }
  for (std::uint64_t step = 0; step < 20; ++step) {
    for (std::size_t i = 0; i < 2; ++i) {
      Experiment& experiment = runs[i]->experiment;
      const std::int64_t now = experiment.task->points_at(step);
      if (now != points[i]) {
        const StepParts parts = step_parts(experiment, *rings[i]);
        graphs[i] = std::make_unique<StepGraph>(runs[i]->session.ctx(), runs[i]->session.range(), "training step",
                                                [parts, now](const Context& ctx) { train_step(ctx, parts, now); });
        points[i] = now;
        graphs[i]->plan();
        graphs[i]->capture();
      }
      graphs[i]->replay();
    }
    CHECK(first.experiment.params.hash(first.session.ctx()) == alone.hashes[step]);
  }
}

TEST_CASE("step: two half batches with global example numbers make the gradient of the whole one") {
  const RunConfig config = tiny_config({"train.precision=fp64"});
  const auto gradient = [&](std::int64_t batch, std::int64_t first) {
    TinySession tiny(config);
    tiny.session.initialize();
    MetricsRing metrics(tiny.session.ctx(), tiny.session.runtime(), 4);
    const StepParts parts{tiny.experiment.task.get(),
                          tiny.experiment.model.get(),
                          &tiny.experiment.params,
                          &metrics,
                          {.clip = 0},
                          {},
                          {RandomDomain::Train, batch, first, false}};
    train_step(tiny.session.ctx(), parts, 5);
    std::vector<double> values(static_cast<std::size_t>(tiny.experiment.params.flat_elements()));
    tiny.session.ctx().stream->download(values.data(), tiny.experiment.params.gradients().view().data,
                                        values.size() * sizeof(double), "gradients");
    return values;
  };
  const std::vector<double> whole = gradient(8, 0);
  const std::vector<double> low = gradient(4, 0);
  const std::vector<double> high = gradient(4, 4);
  double error = 0;
  double size = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    error = std::max(error, std::abs(whole[i] - 0.5 * (low[i] + high[i])));
    size = std::max(size, std::abs(whole[i]));
  }
  CHECK(size > 0);
  CHECK(error < 1e-13 * size);
}

TEST_CASE("step: prompts that come again and again are learnt by heart") {
  const RunConfig config = tiny_config({"schedule.name=constant", "schedule.warmup=0", "train.batch=4"});
  TinySession tiny(config);
  Session& session = tiny.session;
  session.initialize();
  MetricsRing metrics(session.ctx(), session.runtime(), 1);
  const StepParts parts{
      tiny.experiment.task.get(), tiny.experiment.model.get(), &tiny.experiment.params,           &metrics,
      tiny.experiment.optimizer,  tiny.experiment.schedule,    {RandomDomain::Train, 4, 0, false}};
  StepGraph graph(session.ctx(), session.range(), "training step",
                  [&](const Context& ctx) { train_step(ctx, parts, 4); });
  graph.plan();
  graph.capture();
  std::vector<double> losses;
  for (std::uint64_t update = 0; update < 300; ++update) {
    StepState state = session.state().read(session.ctx());
    CHECK(state.updates == update);
    state.step = 40;  // the same prompts, at full dimension
    session.state().write(session.ctx(), state);
    graph.replay();
    metrics.start_at(40);
    metrics.request(session.ctx(), 41);
    losses.push_back(metrics.take()->front().loss);
  }
  CHECK(losses.front() > 1);
  CHECK(losses.back() < 0.05 * losses.front());
}

TEST_CASE("step: a small problem is learnt in context" * doctest::test_suite("slow")) {
  const RunConfig config = tiny_config({"task.curriculum.enabled=false", "task.dim=1", "task.points=8",
                                        "model.width=32", "schedule.name=constant", "schedule.warmup=20",
                                        "optimizer.lr=1e-2", "train.steps=600", "train.batch=64"});
  const Trace trace = train(config, Backend::Cpu, Mode::Captured);
  double early = 0;
  double late = 0;
  for (std::size_t i = 0; i < 60; ++i) {
    early += trace.rows[i].loss / 60;
    late += trace.rows[trace.rows.size() - 1 - i].loss / 60;
  }
  CHECK(early > 0.8);  // the zero predictor has 1
  CHECK(late < 0.75 * early);
}

}  // namespace
}  // namespace graft::test
