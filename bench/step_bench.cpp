#include "bench/step_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>

#include "bench/support/name_filter.h"
#include "bench/support/results.h"
#include "bench/support/timer.h"
#include "engine/error.h"
#include "engine/step_graph.h"
#include "train/command.h"
#include "train/flops.h"
#include "train/session.h"
#include "train/signals.h"

namespace graft::bench {
namespace {

struct StepBenchmark {
  std::string name;
  std::vector<std::string> keys;  // TOML lines "table.key=value"
};

/// The configurations that the studies train most.
std::vector<StepBenchmark> built_in() {
  struct Size {
    const char* preset;
    int layers, width, heads, points;
  };
  std::vector<StepBenchmark> list;
  for (const Size& size :
       {Size{"transformer", 12, 256, 8, 41}, Size{"transformer", 12, 256, 8, 101}, Size{"transformer", 2, 128, 8, 41},
        Size{"mamba", 12, 256, 8, 41}, Size{"mamba", 2, 128, 8, 41}, Size{"mambaformer", 12, 256, 8, 41},
        Size{"standard_hybrid", 12, 256, 8, 41}}) {
    for (const char* precision : {"fp32", "tf32", "bf16"}) {
      list.push_back(
          {fmt::format("icl_{}_{}x{}_T{}/{}", size.preset, size.layers, size.width, 2 * size.points, precision),
           {"task.name=linear_regression", "task.curriculum.enabled=false", fmt::format("task.points={}", size.points),
            fmt::format("model.preset={}", size.preset), fmt::format("model.layers={}", size.layers),
            fmt::format("model.width={}", size.width), fmt::format("model.heads={}", size.heads),
            fmt::format("train.precision={}", precision)}});
    }
  }
  // every task of the in-context-learning study at its full length
  for (const char* task :
       {"sparse_linear_regression", "relu_2nn_regression", "decision_tree", "orthogonal_outlier_regression",
        "many_outlier_regression", "sparse_parity", "chain_of_thought", "vector_mqar"}) {
    for (const char* preset : {"transformer", "mamba", "standard_hybrid", "mambaformer"}) {
      list.push_back({fmt::format("task_{}_{}_12x256/tf32", task, preset),
                      {fmt::format("task.name={}", task), fmt::format("model.preset={}", preset), "model.layers=12",
                       "model.width=256", "model.heads=8", "train.precision=tf32"}});
    }
  }
  struct Retrieval {
    const char* name;
    std::vector<std::string> keys;
  };
  for (const Retrieval& model : {Retrieval{"gpt_neox", {"model.preset=gpt_neox", "model.layers=12"}},
                                 {"mamba_S16", {"model.preset=mamba", "model.layers=24"}},
                                 {"mamba2_S16", {"model.preset=mamba2", "model.layers=24"}},
                                 {"hybrid_interleaved_1M2_1T", {"model.preset=hybrid_interleaved", "model.ssm=mamba2"}},
                                 {"hybrid_two_stream_M2", {"model.preset=hybrid_two_stream", "model.ssm=mamba2"}}}) {
    for (const char* precision : {"tf32", "bf16"}) {
      std::vector<std::string> keys = {"task.name=ngram_retrieval", "task.length_max=101",
                                       "model.width=1024",          "model.heads=16",
                                       "optimizer.name=adamw",      "optimizer.weight_decay=0.01",
                                       "optimizer.clip=1",          fmt::format("train.precision={}", precision)};
      keys.insert(keys.end(), model.keys.begin(), model.keys.end());
      list.push_back({fmt::format("retrieval_{}_1024_T110/{}", model.name, precision), keys});
    }
  }
  return list;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Time of `step` replayed, in seconds.
Timing time_graph(StepGraph& graph, Stream& stream, double target) {
  const Timing once = time_batches(
      stream, [&] { graph.replay(); }, 1, 2);
  const std::int64_t runs = runs_for(once.median, target);
  return time_batches(
      stream,
      [&] {
        for (std::int64_t i = 0; i < runs; ++i) graph.replay();
      },
      runs, 5);
}

using CeilingsByPrecision = std::map<Precision, Ceilings>;

/// The device's ceilings in the session's precision, measured when they are asked for first.
const Ceilings& ceilings_of(CeilingsByPrecision& known, Session& session) {
  const Precision precision = session.ctx().precision;
  const auto found = known.find(precision);
  if (found != known.end()) return found->second;
  return known.emplace(precision, measure_ceilings(session.ctx(), session.runtime())).first->second;
}

/// Fills in `row` as it goes, so that what was measured before an error is there.
void run_step(const std::string& name, const RunConfig& config, Device device, const StepRunOptions& options,
              CeilingsByPrecision& known_ceilings, Table& table, nlohmann::ordered_json& row) {
  Experiment experiment(config);
  Session session(experiment, device, {options.threads}, true);
  session.initialize();
  MetricsRing metrics(session.ctx(), session.runtime(), 64);
  const StepParts parts = step_parts(experiment, metrics);
  const std::int64_t points = experiment.task->final_points();
  const auto step = [parts, points](const Context& ctx) { train_step(ctx, parts, points); };
  Stream& stream = *session.ctx().stream;
  const double target = device.backend == Backend::Cuda ? 0.1 : 0.5;

  StepGraph graph(session.ctx(), session.range(), "training step", step);
  graph.plan();
  std::map<std::string, int> calls;  // launches of each kernel in one step
  stream.set_listener([&](const char* kernel) { ++calls[kernel]; });
  graph.run_eager();
  stream.set_listener(nullptr);
  stream.synchronize();
  const Timing eager_once = time_batches(
      stream, [&] { graph.run_eager(); }, 1, 2);
  const std::int64_t eager_runs = runs_for(eager_once.median, target);
  const Timing eager = time_batches(
      stream,
      [&] {
        for (std::int64_t i = 0; i < eager_runs; ++i) graph.run_eager();
      },
      eager_runs, 3);
  graph.capture();
  const Timing captured = time_graph(graph, stream, target);
  constexpr int kQueued = 4;  // few enough not to fill the launch queue
  stream.synchronize();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kQueued; ++i) graph.replay();
  const double host = seconds_since(start) / kQueued;
  stream.synchronize();

  const FlopsReport flops = count_flops(*experiment.model, *experiment.task, config.train.batch, 1);
  const MemoryReport memory = plan_memory_on_paper(config);
  row["captured_ms"] = captured.median * 1e3;
  row["lowest_ms"] = captured.lowest * 1e3;
  row["highest_ms"] = captured.highest * 1e3;
  row["eager_ms"] = eager.median * 1e3;
  row["host_us"] = device.backend == Backend::Cuda ? host * 1e6 : 0;
  row["launches"] = graph.launches();
  row["memory_mib"] = static_cast<double>(memory.total()) / 1048576;
  row["prompts_per_s"] = static_cast<double>(config.train.batch) / captured.median;
  row["tokens_per_s"] = static_cast<double>(config.train.batch * experiment.task->tokens_at(points)) / captured.median;
  const double of_gemm = flops.train_step / captured.median / ceilings_of(known_ceilings, session).flops_per_second;
  row["tflops"] = flops.train_step / captured.median / 1e12;
  row["of_gemm"] = of_gemm;
  table.print(fmt::format("{:<36} {:>9.4f} {:>9.4f} {:>9.4f} {:>9.4f} {:>8.1f} {:>8} {:>9.1f} {:>9.2f} {:>6.1f} %\n",
                          name, captured.median * 1e3, captured.lowest * 1e3, captured.highest * 1e3,
                          eager.median * 1e3, device.backend == Backend::Cuda ? host * 1e6 : 0.0, graph.launches(),
                          static_cast<double>(memory.total()) / 1048576, flops.train_step / captured.median / 1e12,
                          100 * of_gemm));

  if (options.profile) {
    std::vector<std::pair<double, std::string>> times;
    for (const auto& [kernel, count] : calls) {
      StepGraph alone(session.ctx(), session.range(), "training step", step);
      alone.plan();
      stream.set_only(kernel);
      alone.capture();
      stream.set_only({});
      times.emplace_back(time_graph(alone, stream, target / 4).median * 1e3, kernel);
    }
    std::sort(times.rbegin(), times.rend());
    for (const auto& [ms, kernel] : times) {
      table.print(fmt::format("    {:<30} {:>4} calls {:>9.4f} ms {:>6.1f} %\n", kernel, calls[kernel], ms,
                              100 * ms / (captured.median * 1e3)));
      row["kernels"][kernel] = {{"calls", calls[kernel]}, {"ms", ms}};
    }
  }
}

std::string text_of(nlohmann::ordered_json out, const CeilingsByPrecision& ceilings) {
  for (const auto& [precision, measured] : ceilings) {
    out["ceilings"][name_of(precision)] = {{"tflops", measured.flops_per_second / 1e12},
                                           {"gb_per_s", measured.bytes_per_second / 1e9}};
  }
  return out.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

int run_step_benchmarks(const StepRunOptions& options) {
  std::vector<StepBenchmark> list =
      options.config.empty() ? built_in() : std::vector<StepBenchmark>{{options.config, {}}};
  const NameFilter filter("bench step", options.filter);
  std::erase_if(list, [&](const StepBenchmark& item) { return !filter(item.name); });
  if (list.empty()) {
    throw ArgumentError(fmt::format(
        "bench step: no benchmark matches --filter \"{}\"; graft bench step --list names them", options.filter));
  }
  if (options.list) {
    std::string names;
    for (const StepBenchmark& item : list) names += item.name + "\n";
    write_output(names);
    return static_cast<int>(ExitCode::kDone);
  }
  std::vector<RunConfig> configs;  // all of them, before any is timed: a mistake must not cost rows
  for (const StepBenchmark& item : list) {
    std::vector<std::string> overrides = item.keys;
    overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
    configs.push_back(options.config.empty() ? parse_config("", "bench.toml", overrides)
                                             : load_config(options.config, overrides));
  }
  const SignalGuard signals;
  ResultFile file("bench step", "--json", options.json);
  Table table;
  Failures failures;
  const Device device = parse_device(options.device, Precision::Fp32);
  const std::string device_name = open_runtime(device, {options.threads})->device_name();
  table.print(fmt::format(
      "{}: one training step, sampling included\n{:<36} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>9} {:>8}\n",
      device_name, "step", "ms", "lowest", "highest", "eager ms", "host us", "launches", "MiB", "TFLOP/s", "of gemm"));
  nlohmann::ordered_json out;
  out["device"] = device_name;
  out["rows"] = nlohmann::ordered_json::array();
  CeilingsByPrecision ceilings;
  std::size_t done = 0;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (!table.arrives() && !file.wanted()) break;  // a table that nobody reads any more
    nlohmann::ordered_json row;
    row["name"] = list[i].name;
    try {
      SignalGuard::check("before a benchmark");
      run_step(list[i].name, configs[i], device, options, ceilings, table, row);
      ++done;
    } catch (const InterruptedError&) {
      break;  // what is done is written
    } catch (const std::exception& error) {
      row["error"] = failures.add(list[i].name, error);
      table.print(fmt::format("{:<36} failed: {}\n", list[i].name, row["error"].get<std::string>()));
    }
    out["rows"].push_back(std::move(row));
    file.write(text_of(out, ceilings));
  }
  file.write(text_of(out, ceilings));  // also where there is no row
  file.close();
  SignalGuard::check(interruption_text(done, list.size()));
  table.close(file);
  failures.check("bench step", list.size());
  return static_cast<int>(ExitCode::kDone);
}

}  // namespace graft::bench
