#include "bench/support/op_runner.h"

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/bench.h"
#include "bench/support/name_filter.h"
#include "bench/support/op_report.h"
#include "bench/support/results.h"
#include "bench/support/timer.h"
#include "engine/error.h"
#include "engine/step_graph.h"
#include "train/command.h"
#include "train/session.h"
#include "train/signals.h"

namespace graft::bench {
namespace {

constexpr double kCacheBytes = 150e6;  // sets of inputs together exceed every L2 by this much
constexpr std::int64_t kMostSets = 64;
constexpr double kBatchSeconds = 10e-3;
constexpr int kBatches = 5;

/// One device in one precision.
struct Bed {
  std::unique_ptr<Runtime> runtime;
  std::unique_ptr<Stream> stream;
  std::shared_ptr<AddressRange> range;
  Context ctx;
  Ceilings ceilings;
};

std::unique_ptr<Bed> make_bed(Device device, Precision precision, int threads) {
  auto bed = std::make_unique<Bed>();
  bed->runtime = open_runtime(device, {threads});
  bed->stream = bed->runtime->make_stream();
  bed->range = bed->runtime->reserve_range();
  bed->ctx.backend = device.backend;
  bed->ctx.stream = bed->stream.get();
  bed->ctx.run_memory = bed->runtime->make_pool();
  bed->ctx.memory = bed->ctx.run_memory;
  bed->ctx.precision = precision;
  bed->ceilings = measure_ceilings(bed->ctx);
  return bed;
}

void run_one(benchmark::State& state, const OpBenchmark& op, Bed& bed, bool warm) {
  // Each benchmark has a pool of its own, which gives the memory back at the end.
  Context ctx = bed.ctx;
  ctx.run_memory = bed.runtime->make_pool();
  ctx.memory = ctx.run_memory;
  std::vector<Work> sets{op.setup(ctx)};
  const std::int64_t wanted =
      warm || bed.ctx.backend == Backend::Cpu
          ? 1
          : std::clamp<std::int64_t>(static_cast<std::int64_t>(kCacheBytes / std::max(sets[0].bytes, 1.0)) + 1, 2,
                                     kMostSets);
  while (static_cast<std::int64_t>(sets.size()) < wanted) sets.push_back(op.setup(ctx));
  StepGraph graph(ctx, bed.range, op.name, [&](const Context& step) {
    for (const Work& work : sets) work.run(step);
  });
  graph.plan();
  graph.run_eager();
  graph.capture();
  const auto count = static_cast<double>(sets.size());
  const Timing once = time_batches(
      *bed.stream, [&] { graph.replay(); }, 1, 2);
  const std::int64_t replays = runs_for(once.median, kBatchSeconds);
  const Timing timing = time_batches(
      *bed.stream,
      [&] {
        for (std::int64_t i = 0; i < replays; ++i) graph.replay();
      },
      replays, kBatches);
  const double median = timing.median / count;
  for (auto iteration : state) {
    static_cast<void>(iteration);
    state.SetIterationTime(median);
  }
  state.counters["lowest_us"] = timing.lowest / count * 1e6;
  state.counters["highest_us"] = timing.highest / count * 1e6;
  if (sets[0].bytes > 0) {
    state.counters["GB/s"] = sets[0].bytes / median / 1e9;
    state.counters["of_copy"] = sets[0].bytes / median / bed.ceilings.bytes_per_second;
  }
  if (sets[0].flops > 0) {
    state.counters["TFLOP/s"] = sets[0].flops / median / 1e12;
    state.counters["of_gemm"] = sets[0].flops / median / bed.ceilings.flops_per_second;
  }
}

}  // namespace

int run_op_benchmarks(const OpRunOptions& options) {
  const Device device = parse_device(options.device, Precision::Fp32);
  std::vector<OpBenchmark>& all = registry();
  std::sort(all.begin(), all.end(), [](const OpBenchmark& a, const OpBenchmark& b) { return a.name < b.name; });

  struct Selected {
    const OpBenchmark* op;
    Precision precision;
    std::string name;
  };
  std::vector<Selected> selected;
  const NameFilter filter("bench ops", options.filter);
  std::size_t width = 0;
  for (const OpBenchmark& op : all) {
    for (const Precision precision : op.precisions) {
      if (!options.precision.empty() && options.precision != name_of(precision)) continue;
      if (device.backend == Backend::Cuda && precision == Precision::Fp64) continue;
      std::string name = fmt::format("{}/{}", op.name, name_of(precision));
      if (!filter(name)) continue;
      width = std::max(width, name.size());
      selected.push_back({&op, precision, std::move(name)});
    }
  }
  if (selected.empty()) {
    throw ArgumentError(
        fmt::format("bench ops: no benchmark matches --filter \"{}\"{}; graft bench ops --list names them",
                    options.filter, options.precision.empty() ? "" : " and --precision " + options.precision));
  }
  if (options.list) {
    std::string names;
    for (const Selected& item : selected) names += item.name + "\n";
    write_output(names);
    return static_cast<int>(ExitCode::kDone);
  }

  const SignalGuard signals;
  ResultFile file("bench ops", "--json", options.json);
  Table table;
  Failures failures;
  OpReport report(width, table, file);
  std::size_t done = 0;
  std::map<Precision, std::unique_ptr<Bed>> beds;
  for (const Selected& item : selected) {
    benchmark::RegisterBenchmark(
        item.name.c_str(),
        [&item, &beds, &options, &done, &table, &file, &failures, device](benchmark::State& state) {
          // A table that nobody reads is no reason to go on.
          if (!table.arrives() && !file.wanted()) return state.SkipWithError(OpReport::kNotRun);
          try {
            SignalGuard::check("before a benchmark");
            std::unique_ptr<Bed>& bed = beds[item.precision];
            if (bed == nullptr) bed = make_bed(device, item.precision, options.threads);
            run_one(state, *item.op, *bed, options.warm);
            ++done;
          } catch (const InterruptedError&) {
            state.SkipWithError(OpReport::kNotRun);
          } catch (const std::exception& error) {
            // What it took, and what state its stream is in, must not trouble the others.
            beds.erase(item.precision);
            state.SkipWithError(failures.add(item.name, error).c_str());
          }
        })
        ->UseManualTime()
        ->Iterations(1)
        ->Unit(benchmark::kMicrosecond);
  }
  std::string program = "graft bench ops";
  char* arguments[] = {program.data(), nullptr};
  int count = 1;
  benchmark::Initialize(&count, arguments);
  const std::string name = open_runtime(device, {options.threads})->device_name();
  benchmark::AddCustomContext("device", name);
  table.print(fmt::format("{}: captured replays, {}; Time is the median of {} batches\n", name,
                          options.warm ? "caches warm" : "L2 cold (inputs rotate)", kBatches));
  benchmark::RunSpecifiedBenchmarks(&report, "all");
  benchmark::Shutdown();
  file.close();
  SignalGuard::check(interruption_text(done, selected.size()));
  table.close(file);
  failures.check("bench ops", selected.size());
  return static_cast<int>(ExitCode::kDone);
}

}  // namespace graft::bench
