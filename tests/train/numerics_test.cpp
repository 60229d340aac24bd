#include "train/numerics.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/error.h"
#include "engine/philox.h"
#include "engine/step_graph.h"
#include "engine/stream.h"
#include "ops/adam.h"
#include "ops/clip.h"
#include "tests/support/faults.h"
#include "tests/support/parity.h"
#include "tests/support/share.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"
#include "train/json_lines.h"

namespace graft::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Draws of this file.
std::int64_t below(std::int64_t bound, std::uint32_t index) {
  return Draw{23, RandomDomain::Bootstrap, 0, 0}.below(static_cast<std::uint32_t>(bound), 1, index);
}

/// A run, step by step, with faults in it.
class FaultyRun {
 public:
  FaultyRun(const RunConfig& config, Backend backend, const std::vector<Fault>& faults)
      : tiny_(config, backend), metrics_(tiny_.session.ctx(), tiny_.session.runtime(), 64) {
    tiny_.session.initialize();
    parts_ = step_parts(tiny_.experiment, metrics_);
    if (!faults.empty()) parts_.intercept = injecting(tiny_.experiment.params, faults);
    const std::int64_t points = tiny_.experiment.task->final_points();
    graph_ =
        std::make_unique<StepGraph>(tiny_.session.ctx(), tiny_.session.range(), "training step",
                                    [parts = parts_, points](const Context& ctx) { train_step(ctx, parts, points); });
    graph_->plan();
    graph_->run_eager();  // the first step
    graph_->capture();
  }
  void replay() { graph_->replay(); }

  /// Weights, moments and the bfloat16 copy, bit for bit.
  [[nodiscard]] std::vector<std::byte> bits() {
    const ParameterStore& params = tiny_.experiment.params;
    std::vector<std::byte> all;
    for (const Tensor* buffer :
         {&params.weights(), &params.first_moments(), &params.second_moments(), &params.compute_copy()}) {
      if (!*buffer) continue;
      std::vector<std::byte> bytes(buffer->bytes());
      ctx().stream->download(bytes.data(), buffer->view().data, bytes.size(), "buffer");
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
  [[nodiscard]] StepState state() { return tiny_.session.state().read(ctx()); }
  [[nodiscard]] MetricsRow row(std::uint64_t step) {
    metrics_.start_at(step - 1);
    metrics_.request(ctx(), step);
    return metrics_.take()->front();
  }
  [[nodiscard]] const Context& ctx() { return tiny_.session.ctx(); }
  [[nodiscard]] TinySession& tiny() { return tiny_; }
  [[nodiscard]] const StepParts& parts() const { return parts_; }

 private:
  TinySession tiny_;
  MetricsRing metrics_;
  StepParts parts_;
  std::unique_ptr<StepGraph> graph_;
};

RunConfig steady_config(const std::string& precision, const std::vector<std::string>& more = {}) {
  std::vector<std::string> keys = {"train.precision=" + precision, "task.curriculum.enabled=false"};
  keys.insert(keys.end(), more.begin(), more.end());
  return tiny_config(keys);
}

/// One value that is not finite in one gradient at one step: that update and no other is left out, whole; and which
/// gradient it was is known.
void check_one_skip(Backend backend, const std::string& precision, std::uint32_t trial) {
  if (!in_share(fmt::format("{} trial {}", precision, trial))) return;
  const RunConfig config = steady_config(precision);
  const Experiment shape(config);
  const auto& entries = shape.params.entries();
  const auto& entry = entries[static_cast<std::size_t>(below(static_cast<std::int64_t>(entries.size()), 3 * trial))];
  const std::int64_t element = below(entry.shape.elements(), 3 * trial + 1);
  const auto hit = static_cast<std::uint64_t>(below(8, 3 * trial + 2));
  const double values[] = {kNan, kInfinity, -kInfinity};
  CAPTURE(entry.name);
  CAPTURE(element);
  CAPTURE(hit);
  FaultyRun run(config, backend, {{"gradient of " + entry.name, element, hit, 1, values[trial % 3]}});
  std::vector<std::byte> before;
  for (std::uint64_t step = 1; step <= 10; ++step) {  // steps done; the constructor did the first
    if (step > 1) run.replay();
    const std::vector<std::byte> now = run.bits();
    const StepState state = run.state();
    CHECK(state.step == step);
    CHECK(state.skipped == (step > hit ? 1 : 0));
    CHECK(state.updates == step - state.skipped);
    CHECK(state.skip == 0);
    const MetricsRow row = run.row(step);
    CHECK(row.was_skipped() == (step == hit + 1));
    if (step == hit + 1) {
      if (step > 1) CHECK(now == before);
      CHECK(first_bad_name(run.tiny().experiment.params, static_cast<std::int64_t>(row.first_bad)) ==
            fmt::format("gradient of {} [{}]", entry.name, element));
      CHECK(std::isfinite(row.loss));
      CHECK_FALSE(std::isfinite(row.gradient_norm));
    } else if (step > 1) {
      CHECK(static_cast<std::int64_t>(row.first_bad) == kNothingBad);
      if (step > 2 || hit != 0) CHECK(now != before);  // with a warm-up the first rate is 0
    }
    before = now;
  }
}

TEST_CASE("numerics: a NaN or infinity in any gradient at any step leaves exactly that update out") {
  for (const char* precision : {"fp32", "bf16", "fp64", "tf32"}) {
    CAPTURE(std::string(precision));
    for (std::uint32_t trial = 0; trial < 12; ++trial) check_one_skip(Backend::Cpu, precision, trial);
  }
}

TEST_CASE("numerics: CUDA: a NaN or infinity in any gradient at any step leaves exactly that update out") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "tf32", "bf16"}) {
    CAPTURE(std::string(precision));
    for (std::uint32_t trial = 0; trial < 12; ++trial) check_one_skip(Backend::Cuda, precision, trial);
  }
}

/// A run with a skipped step is, but for that step's data, the run whose update never happened: the moments are
/// corrected for the updates that were applied.
void check_bias_correction(Backend backend) {
  const RunConfig config = steady_config("fp32", {"schedule.name=constant", "schedule.warmup=0"});
  FaultyRun run(config, backend, {{"gradient of read_in.weight", 0, 0, 3}});
  for (int i = 0; i < 3; ++i) run.replay();
  const StepState state = run.state();
  CHECK(state.step == 4);
  CHECK(state.updates == 1);
  CHECK(state.skipped == 3);
  CHECK(state.skipped_in_row == 0);
  const StepState fresh = initial_state(0, {}, config.optimizer.beta1, config.optimizer.beta2, 4, 1);
  CHECK(state.bias_correction1 == doctest::Approx(fresh.bias_correction1).epsilon(1e-15));
  CHECK(state.bias_correction2 == doctest::Approx(fresh.bias_correction2).epsilon(1e-15));
}

TEST_CASE("numerics: skipped steps count for the schedule and not for the bias corrections") {
  check_bias_correction(Backend::Cpu);
}
TEST_CASE("numerics: CUDA: skipped steps count for the schedule and not for the bias corrections") {
  if (skip_cuda()) return;
  check_bias_correction(Backend::Cuda);
}

/// A loss that is not finite is enough, whatever the gradients.
void check_loss(Backend backend) {
  for (const double bad : {kNan, kInfinity}) {
    const RunConfig config = steady_config("fp32");
    FaultyRun run(config, backend, {});
    const Context& ctx = run.ctx();
    const Tensor loss = ctx.empty_run({1}, DType::F32, "loss");
    const auto value = static_cast<float>(bad);
    ctx.stream->upload(loss.mutable_view().data, &value, sizeof(value), "loss");
    const std::vector<std::byte> before = run.bits();
    const ParameterStore& params = run.tiny().experiment.params;
    clip_by_global_norm(ctx, params.gradients(), 1.0, loss);
    adam(ctx, params, {});
    const StepState state = run.state();
    CHECK(state.skip == 1);
    CHECK(state.skipped == 1);
    CHECK(std::isfinite(state.gradient_norm));
    CHECK(state.first_bad == kLossBad);
    CHECK(first_bad_name(params, state.first_bad) == "loss");
    CHECK(run.bits() == before);
  }
}

TEST_CASE("numerics: a loss that is not finite leaves the update out") { check_loss(Backend::Cpu); }
TEST_CASE("numerics: CUDA: a loss that is not finite leaves the update out") {
  if (skip_cuda()) return;
  check_loss(Backend::Cuda);
}

/// Squares beyond float32 would make the second moment infinite for good; both backends take the same for infinite.
void check_range(Backend backend) {
  const auto skipped = [&](const std::vector<std::pair<std::int64_t, double>>& values) {
    TestDevice device(backend);
    HostTensor gradients = randn({20000}, Role::Stream);
    for (const auto& [at, value] : values) gradients.values[static_cast<std::size_t>(at)] = value;
    const Tensor memory = device.ctx().empty_run({static_cast<std::int64_t>(sizeof(StepState))}, DType::U8, "state");
    device.ctx().state = memory.mutable_view().as<StepState>();
    const StepState fresh;
    device.stream().upload(memory.mutable_view().data, &fresh, sizeof(fresh), "state");
    clip_by_global_norm(device.ctx(), device.tensor(gradients), 0);
    StepState state;
    device.stream().download(&state, memory.view().data, sizeof(state), "state");
    return state;
  };
  CHECK(skipped({{7000, 1e19}}).skip == 0);
  CHECK(skipped({{7000, 1e19}}).first_bad == kNothingBad);
  CHECK(skipped({{7000, -1e20}}).first_bad == 7000);
  CHECK(skipped({{0, 1.5e19}, {19999, 1.5e19}}).first_bad == kNormBad);  // each square fits, their sum does not
  CHECK(skipped({{0, 1.5e19}, {100, 1.5e19}, {19999, kNan}}).first_bad == 19999);
  CHECK(skipped({{12345, kInfinity}, {19999, kNan}}).first_bad == 12345);
  CHECK(skipped({{19999, kNan}}).first_bad == 19999);
  CHECK(skipped({{0, kNan}, {1, kNan}}).first_bad == 0);
}

TEST_CASE("numerics: what counts as infinite, and which gradient is named") { check_range(Backend::Cpu); }
TEST_CASE("numerics: CUDA: what counts as infinite, and which gradient is named") {
  if (skip_cuda()) return;
  check_range(Backend::Cuda);
}

void check_summary(Backend backend) {
  for (const Precision precision : {Precision::Fp32, Precision::Bf16}) {
    const TestDevice device(backend, precision);
    for (const std::int64_t elements : {1, 255, 4097, 100003}) {
      HostTensor host = randn({elements}, Role::Activation);
      ValueSummary expected;
      if (elements > 200) {
        host.values[200] = kNan;
        host.values[100] = -kInfinity;
        host.values.back() = kInfinity;
      }
      const Tensor tensor = device.tensor(host);
      const std::vector<double> values = device.values(tensor);
      for (std::size_t i = 0; i < values.size(); ++i) expected.count(values[i], static_cast<std::int64_t>(i));
      const ValueSummary got = summarize_values(device.ctx(), tensor.view());
      CHECK(got.nan == expected.nan);
      CHECK(got.infinite == expected.infinite);
      CHECK(got.first_bad == (elements > 200 ? 100 : -1));
      CHECK(got.min == expected.min);
      CHECK(got.max == expected.max);
    }
  }
}

TEST_CASE("numerics: a summary counts and finds what is not finite") {
  check_summary(Backend::Cpu);
  const TestDevice device;
  CHECK_THROWS_WITH_AS(static_cast<void>(summarize_values(device.ctx(), {nullptr, DType::I32, {3}})),
                       doctest::Contains("int32, expected a floating dtype"), ArgumentError);
}
TEST_CASE("numerics: CUDA: a summary counts and finds what is not finite") {
  if (skip_cuda()) return;
  check_summary(Backend::Cuda);
}

/// After ten in a row the state stands still, and the search names the launch that was hit.
void check_origin(Backend backend, const std::string& precision, const std::string& preset,
                  const std::vector<std::string>& more = {}) {
  if (!in_share(preset + " " + precision)) return;
  CAPTURE(preset);
  CAPTURE(precision);
  std::vector<std::string> keys = {"model.preset=" + preset};
  keys.insert(keys.end(), more.begin(), more.end());
  const RunConfig config = steady_config(precision, keys);
  // What a healthy step computes is finite everywhere, so that the search never accuses an innocent launch.
  std::vector<std::string> bad;
  {
    FaultyRun run(config, backend, {});
    StepWatcher watcher(run.tiny().experiment.params, [&](const StepWatcher::Launched& launched) {
      for (const StepWatcher::Watched* tensor : launched.tensors) {
        if (!is_floating(tensor->view.dtype)) continue;
        if (!summarize_values(launched.inner, tensor->view).finite()) {
          bad.push_back(fmt::format("{}: {}", launched.kernel, tensor->name));
        }
      }
    });
    watcher.set_clears(true);
    StepParts parts = run.parts();
    parts.intercept = [&](const Context& ctx) { return watcher.watch(ctx); };
    const std::vector<std::byte> before = run.bits();
    StepGraph graph(run.ctx(), run.tiny().session.range(), "watched",
                    [&](const Context& ctx) { train_step(ctx, parts, 5); });
    graph.plan();
    graph.run_eager();
    CHECK(bad == std::vector<std::string>{});
    // A watched step is the step: the same bits as the next one of a run that nobody watches.
    FaultyRun plain(config, backend, {});
    plain.replay();
    CHECK(run.bits() == plain.bits());
    CHECK(run.bits() != before);
  }
  const Experiment shape(config);
  const auto& entries = shape.params.entries();
  for (std::uint32_t trial = 0; trial < 3; ++trial) {
    const auto& entry = entries[static_cast<std::size_t>(below(static_cast<std::int64_t>(entries.size()), 90 + trial))];
    CAPTURE(entry.name);
    FaultyRun run(config, backend, {{"gradient of " + entry.name, 0, 3, 1000}});
    for (int i = 0; i < 20; ++i) run.replay();
    const StepState state = run.state();
    CHECK(state.step == 12);  // three applied, nine skipped and counted, the tenth stands still
    CHECK(state.updates == 3);
    CHECK(state.skipped == 10);
    CHECK(state.skipped_in_row == 10);
    const MetricsRow row = run.row(13);
    CHECK(row.step == 13);
    CHECK(row.skipped_in_row == 10);
    const std::vector<std::byte> before = run.bits();
    const NumericsReport report = examine_step(run.ctx(), run.tiny().session.range(), run.parts());
    CAPTURE(report.json.dump(1));
    CHECK(run.bits() == before);
    CHECK(report.json.at("step") == 13);
    CHECK(report.json.at("first_bad") == fmt::format("gradient of {} [0]", entry.name));
    const auto& tensors = report.json.at("first").at("tensors");
    CHECK(std::any_of(tensors.begin(), tensors.end(), [&](const nlohmann::ordered_json& tensor) {
      return tensor.at("tensor") == "gradient of " + entry.name && tensor.at("parameter") == entry.name &&
             tensor.at("values").at("nan") == 1 && tensor.at("values").at("first_index") == 0;
    }));
    CHECK_FALSE(report.json.at("first").at("op").get<std::string>().empty());
    CHECK(report.json.at("parameters").at(0).at("name") == entry.name);
    CHECK(report.origin.find(entry.name) != std::string::npos);
  }
}

TEST_CASE("numerics: ten in a row stand still, and the launch that was hit is found") {
  for (const char* preset : {"transformer", "mamba", "s4", "s4_mamba", "mambaformer", "gpt_neox", "mamba2"}) {
    const std::vector<std::string> more =
        preset == std::string("mamba2") ? std::vector<std::string>{"model.head_dim=16"} : std::vector<std::string>{};
    for (const char* precision : {"fp32", "bf16"}) check_origin(Backend::Cpu, precision, preset, more);
  }
  check_origin(Backend::Cpu, "fp64", "transformer");
}

TEST_CASE("numerics: CUDA: ten in a row stand still, and the launch that was hit is found") {
  if (skip_cuda()) return;
  for (const char* preset : {"transformer", "mamba", "s4", "s4_mamba", "mambaformer", "gpt_neox", "mamba2"}) {
    const std::vector<std::string> more =
        preset == std::string("mamba2") ? std::vector<std::string>{"model.head_dim=16"} : std::vector<std::string>{};
    for (const char* precision : {"fp32", "tf32", "bf16"}) check_origin(Backend::Cuda, precision, preset, more);
  }
}

/// A value in an activation: the launch that wrote the activation is found, not one of the many that it spread to.
void check_activation(Backend backend, const std::string& precision) {
  if (!in_share(precision)) return;
  const RunConfig config = steady_config(precision);
  std::vector<std::pair<std::string, std::pair<std::string, int>>> launches;  // kernel, its first new float tensor
  {
    FaultyRun run(config, backend, {});
    std::set<std::pair<std::string, int>> seen;
    StepWatcher watcher(run.tiny().experiment.params, [&](const StepWatcher::Launched& launched) {
      bool first = true;
      for (const StepWatcher::Watched* tensor : launched.tensors) {
        if (!tensor->parameter.empty() || !is_floating(tensor->view.dtype)) continue;
        if (!seen.insert({tensor->name, tensor->ordinal}).second || !first) continue;
        first = false;
        launches.push_back({launched.kernel, {tensor->name, tensor->ordinal}});
      }
    });
    StepParts parts = run.parts();
    parts.intercept = [&](const Context& ctx) { return watcher.watch(ctx); };
    train_step(run.ctx(), parts, 5);
  }
  REQUIRE(launches.size() > 20);
  for (std::uint32_t trial = 0; trial < 10; ++trial) {
    const auto& [kernel, tensor] =
        launches[static_cast<std::size_t>(below(static_cast<std::int64_t>(launches.size()), 200 + trial))];
    CAPTURE(kernel);
    CAPTURE(tensor.first);
    FaultyRun run(config, backend, {{tensor.first, 1, 2, 1000, trial % 2 == 0 ? kNan : kInfinity, tensor.second}});
    for (int i = 0; i < 14; ++i) run.replay();
    if (run.state().skipped == 0) continue;  // scratch that nobody reads again
    REQUIRE(run.state().skipped_in_row == 10);
    const NumericsReport report = examine_step(run.ctx(), run.tiny().session.range(), run.parts());
    CAPTURE(report.origin);
    CHECK(report.json.at("first").at("op") == kernel);
    CHECK(report.json.at("first").at("tensors").at(0).at("tensor") == tensor.first);
    CHECK_FALSE(report.json.at("then").empty());
  }
}

TEST_CASE("numerics: the launch whose output is not finite is found, not those it spread to") {
  for (const char* precision : {"fp32", "bf16"}) check_activation(Backend::Cpu, precision);
}
TEST_CASE("numerics: CUDA: the launch whose output is not finite is found, not those it spread to") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "bf16"}) check_activation(Backend::Cuda, precision);
}

/// Gradients that are finite and whose squares are not: the largest is named, with the op that wrote it.
void check_overflow(Backend backend, const std::string& precision) {
  CAPTURE(precision);
  const RunConfig config = steady_config(precision);
  const double large = precision == "fp64" ? 1e200 : 1e25;
  const auto report_on = [&](const std::vector<Fault>& faults) {
    FaultyRun run(config, backend, faults);
    for (int i = 0; i < 14; ++i) run.replay();
    REQUIRE(run.state().skipped_in_row == 10);
    return examine_step(run.ctx(), run.tiny().session.range(), run.parts());
  };
  for (const char* name : {"read_in.weight", "blocks.0.attention.out.weight", "read_out.bias"}) {
    CAPTURE(std::string(name));
    const std::string tensor = fmt::format("gradient of {}", name);
    const NumericsReport bad = report_on({{tensor, 3, 1, 1000}});
    const NumericsReport report = report_on({{tensor, 3, 1, 1000, -large}});
    CAPTURE(report.origin);
    CHECK_FALSE(report.json.contains("first"));
    CHECK(report.json.at("largest_gradient").at("parameter") == name);
    CHECK(report.json.at("largest_gradient").at("magnitude").get<double>() == doctest::Approx(large));
    CHECK(report.json.at("largest_gradient").at("op") == bad.json.at("first").at("op"));
    CHECK(report.origin.find(name) != std::string::npos);
    CHECK(report.origin.find("written by op " + bad.json.at("first").at("op").get<std::string>()) != std::string::npos);
  }
  if (precision == "fp64") return;
  // Every square is within the range, their sum is not.
  const NumericsReport sum = report_on(
      {{"gradient of read_in.weight", 0, 1, 1000, 1.5e19}, {"gradient of read_out.weight", 0, 1, 1000, 1.8e19}});
  CAPTURE(sum.origin);
  CHECK(sum.json.at("first_bad") == "gradient norm");
  CHECK(sum.json.at("largest_gradient").at("parameter") == "read_out.weight");
}

TEST_CASE("numerics: the largest gradient is named where only squares are beyond the range") {
  for (const char* precision : {"fp32", "bf16", "fp64"}) check_overflow(Backend::Cpu, precision);
}
TEST_CASE("numerics: CUDA: the largest gradient is named where only squares are beyond the range") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "bf16"}) check_overflow(Backend::Cuda, precision);
}

TEST_CASE("numerics: advice fits the configuration") {
  OptimizerConfig optimizer;
  optimizer.clip = 0;
  Schedule schedule;
  schedule.base = 0.01;
  schedule.warmup = 7;
  CHECK(
      divergence_advice(optimizer, schedule) ==
      "lower optimizer.lr (now 0.01), set optimizer.clip (now 0: off), or lengthen schedule.warmup (now 7), and start "
      "again");
  optimizer.clip = 2.5;
  CHECK(divergence_advice(optimizer, schedule).find("lower optimizer.clip (now 2.5)") != std::string::npos);
}

TEST_CASE("numerics: a state that does not stand still is not examined") {
  FaultyRun run(steady_config("fp32"), Backend::Cpu, {});
  CHECK_THROWS_WITH_AS(static_cast<void>(examine_step(run.ctx(), run.tiny().session.range(), run.parts())),
                       doctest::Contains("0 steps were skipped in a row, expected 10"), ArgumentError);
}

/// A run in a directory, with faults.
struct FaultyTraining {
  FaultyTraining(const std::filesystem::path& directory, const RunConfig& config, Backend backend,
                 const std::vector<Fault>& faults, std::FILE* out)
      : tiny(config, backend), run(options_in(directory, config)) {
    TrainerOptions trainer_options;
    trainer_options.intercept = injecting(tiny.experiment.params, faults);
    trainer = std::make_unique<Trainer>(tiny.session, run, out, trainer_options);
    if (const auto checkpoint = CheckpointDirectory(run.checkpoints()).load_latest()) {
      trainer->resume(*checkpoint);
    } else {
      tiny.session.initialize();
    }
  }
  TinySession tiny;
  RunDirectory run;
  std::unique_ptr<Trainer> trainer;
};

void check_log(Backend backend) {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config();
  const NullStream out;
  FaultyTraining faulty(
      directory / "run", config, backend,
      {{"gradient of read_in.weight", 5, 17, 3}, {"gradient of read_out.weight", 1, 30, 1, kInfinity}}, out.file());
  CHECK(faulty.trainer->run().step == 60);
  std::int64_t lines = 0;
  for (const nlohmann::json& line : json_lines(directory / "run/metrics.jsonl")) {
    CAPTURE(line.dump());
    const auto step = line.at("step").get<std::int64_t>();
    CHECK(line.at("skipped") == (step < 20 ? 0 : step < 32 ? 3 : 4));
    CHECK(line.at("loss").is_number());
    if (step == 20) {
      CHECK(line.at("first_bad") == nlohmann::json{{"step", 18}, {"tensor", "gradient of read_in.weight [5]"}});
    } else if (step == 32) {
      CHECK(line.at("first_bad") == nlohmann::json{{"step", 31}, {"tensor", "gradient of read_out.weight [1]"}});
    } else {
      CHECK_FALSE(line.contains("first_bad"));
    }
    ++lines;
  }
  CHECK(lines == 15);
  CHECK_FALSE(std::filesystem::exists(directory / "run/numerics.json"));
}

TEST_CASE("numerics: skipped updates are in the log, with the step and the gradient") { check_log(Backend::Cpu); }
TEST_CASE("numerics: CUDA: skipped updates are in the log, with the step and the gradient") {
  if (skip_cuda()) return;
  check_log(Backend::Cuda);
}

void check_stop(Backend backend, const char* precision, bool capture) {
  CAPTURE(std::string(precision));
  const TemporaryDirectory directory;
  const RunConfig config =
      tiny_config({"checkpoint.every=5", "checkpoint.keep=20", fmt::format("train.precision={}", precision),
                   fmt::format("train.capture={}", capture)});
  const NullStream out;
  FaultyTraining faulty(directory / "run", config, backend, {{"gradient of read_out.weight", 2, 21, 1000}}, out.file());
  std::string message;
  try {
    static_cast<void>(faulty.trainer->run());
  } catch (const NumericsError& error) {
    message = error.what();
    CHECK(error.exit_code() == ExitCode::kNumerics);
  }
  CAPTURE(message);
  CHECK(message.starts_with("step 31: loss "));
  CHECK(message.find("read_out.weight") != std::string::npos);
  CHECK(message.find("numerics.json") != std::string::npos);
  CHECK(message.find("optimizer.lr") != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
  const nlohmann::json report = nlohmann::json::parse(contents(directory / "run/numerics.json"));
  CHECK(report.at("step") == 31);
  CHECK(report.at("updates") == 21);
  CHECK(report.at("first").at("op").is_string());
  faulty.trainer.reset();
  // What was saved is finite, and the steps that were skipped changed nothing.
  const auto checkpoint = CheckpointDirectory(directory / "run/ckpt").load_latest();
  REQUIRE(checkpoint.has_value());
  CHECK(checkpoint->step <= 30);
  CHECK(checkpoint->state.at("step_state").at("skipped_in_row") == checkpoint->step - 21);
  const CheckpointData at_25 = CheckpointDirectory::load(directory / "run/ckpt/step_25");
  for (std::size_t i = 0; i < at_25.model.size(); ++i) CHECK(at_25.model[i].data == checkpoint->model[i].data);
}

TEST_CASE("numerics: ten skipped updates in a row end the run with a report") {
  check_stop(Backend::Cpu, "fp32", true);
  check_stop(Backend::Cpu, "fp32", false);
  check_stop(Backend::Cpu, "bf16", true);
}
TEST_CASE("numerics: CUDA: ten skipped updates in a row end the run with a report") {
  if (skip_cuda()) return;
  check_stop(Backend::Cuda, "fp32", true);
  check_stop(Backend::Cuda, "fp32", false);
  check_stop(Backend::Cuda, "bf16", true);
}

/// The count of skipped updates goes on over a resume, and so does the line of the interval it falls into.
TEST_CASE("numerics: a run interrupted among skipped updates ends like one that was not") {
  const TemporaryDirectory directory;
  const NullStream out;
  const std::vector<Fault> faults = {{"gradient of read_in.weight", 0, 17, 5},
                                     {"gradient of read_in.weight", 0, 40, 30}};
  const auto train = [&](const std::filesystem::path& where, std::int64_t steps) {
    FaultyTraining faulty(where, tiny_config({fmt::format("train.steps={}", steps), "train.log_every=8"}), Backend::Cpu,
                          faults, out.file());
    static_cast<void>(faulty.trainer->run());
  };
  CHECK_THROWS_AS(train(directory / "whole", 60), NumericsError);
  train(directory / "run", 19);
  train(directory / "run", 45);
  CHECK_THROWS_AS(train(directory / "run", 60), NumericsError);
  CHECK(contents(directory / "run/numerics.json") == contents(directory / "whole/numerics.json"));
  // Runs that ended at 19 and 45 have lines there that the other has not.
  for (const nlohmann::json& line : lines_without_times(directory / "whole/metrics.jsonl")) {
    if (line.at("step") == 24 || line.at("step") == 48) continue;
    const auto lines = lines_without_times(directory / "run/metrics.jsonl");
    CAPTURE(line.dump());
    CHECK(std::find(lines.begin(), lines.end(), line) != lines.end());
  }
}

TEST_CASE("numerics: a run that diverges ends with exit code 5 and a report") {
  const TemporaryDirectory directory;
  const RunConfig config =
      tiny_config({"optimizer.lr=1000", "optimizer.weight_decay=1", "optimizer.clip=0", "schedule.name=constant",
                   "schedule.warmup=0", "train.steps=200", "checkpoint.every=5"});
  CHECK_THROWS_WITH_AS(train_in(directory / "run", config), doctest::Contains("numerics.json"), NumericsError);
  const nlohmann::json report = nlohmann::json::parse(contents(directory / "run/numerics.json"));
  CHECK_FALSE(report.at("origin").get<std::string>().empty());
  CHECK(CheckpointDirectory(directory / "run/ckpt").load_latest().has_value());
}

}  // namespace
}  // namespace graft::test
