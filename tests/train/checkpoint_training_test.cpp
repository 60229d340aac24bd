// Checkpoints as the trainer writes them: in the background, on disks that fail, and after going back.

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "engine/stream.h"
#include "tests/support/parity.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/watched_stream.h"
#include "tests/train/example_state.h"
#include "tests/train/tiny_run.h"
#include "train/checkpoint_writer.h"
#include "train/host_snapshot.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

/// What a run prints, line by line.
class Captured {
 public:
  Captured() : file_(::open_memstream(&text_, &size_)) { REQUIRE(file_ != nullptr); }
  ~Captured() {
    std::fclose(file_);
    std::free(text_);  // NOLINT(cppcoreguidelines-no-malloc): open_memstream's
  }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  [[nodiscard]] std::FILE* file() const { return file_; }
  [[nodiscard]] std::string text() const {
    std::fflush(file_);
    return {text_, size_};
  }
  [[nodiscard]] bool holds(const std::string& part) const { return text().find(part) != std::string::npos; }

 private:
  char* text_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* file_;
};

/// Goes back to a checkpoint as `graft train --resume PATH` does.
TrainingOutcome train_from(const fs::path& checkpoint, const fs::path& directory, const RunConfig& config,
                           std::FILE* out) {
  TinySession tiny(config);
  RunDirectory run(options_in(directory, config));
  Trainer trainer(tiny.session, run, out);
  trainer.resume(CheckpointDirectory::load(checkpoint), true);
  return trainer.run();
}

void check_files_equal(const fs::path& a, const fs::path& b, const char* checkpoint) {
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    CHECK(contents(a / "ckpt" / checkpoint / file) == contents(b / "ckpt" / checkpoint / file));
  }
}

TEST_CASE("checkpoints in training: every one that is due is written, in order, and is what a pause would have given") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"checkpoint.every=1", "checkpoint.keep=100"});
  train_in(directory / "all", config);
  CHECK(CheckpointDirectory(directory / "all/ckpt").list().size() == 60);
  for (const std::int64_t step : {1, 14, 37}) {
    const std::string name = "step_" + std::to_string(step);
    CAPTURE(name);
    train_in(directory / name, tiny_config({"train.steps=" + std::to_string(step)}));
    check_files_equal(directory / "all", directory / name, name.c_str());
    const nlohmann::json state = CheckpointDirectory::load(directory / "all/ckpt" / name).state;
    CHECK(state.at("examples") == 8 * step);
    CHECK(state.at("curriculum").at("points") == std::min<std::int64_t>(2 + step / 13, 5));
    CHECK(state.at("curriculum").at("dims") == std::min<std::int64_t>(1 + step / 7, 3));
    CHECK(state.at("step_state").at("step") == step);
  }
}

void check_snapshot(Backend backend, const char* precision) {
  CAPTURE(precision);
  const RunConfig config = tiny_config({std::string("train.precision=") + precision});
  TinySession tiny(config, backend);
  tiny.session.initialize();
  HostSnapshot snapshot(tiny.session);
  const std::uint64_t needed = CheckpointDirectory::bytes_needed(snapshot.view({}));
  snapshot.take();
  // What comes later in the stream is not in it.
  ParameterStore& params = tiny.experiment.params;
  const ParameterStore::Entry& entry = params.entries().front();
  const std::vector<double> before = params.read(tiny.session.ctx(), entry, ParameterStore::Buffer::Weights);
  params.write(tiny.session.ctx(), entry, ParameterStore::Buffer::Weights, std::vector<double>(before.size(), 7.0));
  std::thread other([&] { snapshot.wait(); });
  other.join();
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(snapshot.view(example_state(0)));
  CHECK(checkpoints.list()[0].bytes <= needed);
  TinySession back(config, backend);
  back.session.restore(checkpoints.load_latest().value(), true);
  CHECK(back.experiment.params.read(back.session.ctx(), entry, ParameterStore::Buffer::Weights) == before);
}

TEST_CASE("checkpoints in training: a snapshot holds the state at its time") {
  for (const char* precision : {"fp32", "bf16", "fp64"}) check_snapshot(Backend::Cpu, precision);
}

TEST_CASE("checkpoints in training: CUDA: a snapshot holds the state at its time") {
  if (skip_cuda()) return;
  for (const char* precision : {"fp32", "bf16"}) check_snapshot(Backend::Cuda, precision);
}

/// Median of five, in seconds; `stream` is idle before and after.
double time_of(Stream& stream, const std::function<void()>& prepare, const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    prepare();
    stream.synchronize();
    const auto start = std::chrono::steady_clock::now();
    work();
    stream.synchronize();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[2];
}

TEST_CASE("checkpoints in training: CUDA: a save holds the device up for at most 1.5 times the copy to the host") {
  if (skip_cuda()) return;
  const RunConfig config = tiny_config({"model.width=512", "model.layers=4", "model.heads=8"});
  TinySession tiny(config, Backend::Cuda);
  tiny.session.initialize();
  Stream& stream = *tiny.session.ctx().stream;
  const ParameterStore& params = tiny.experiment.params;
  HostSnapshot snapshot(tiny.session);
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  CheckpointWriter writer(checkpoints, {.keep_last = 1});
  const auto nothing = [] {};
  const auto steps = [&] {  // stands for training: the device is busy, the host is not
    for (int i = 0; i < 500; ++i) {
      stream.copy(params.gradients().mutable_view().data, params.weights().view().data, params.weights().bytes());
    }
  };
  const auto save = [&] {
    snapshot.take();
    writer.start({0, [&] {
                    snapshot.wait();
                    return snapshot.view(nlohmann::json::object());
                  }});
  };
  const double copy = time_of(stream, nothing, [&] { snapshot.take(); });
  const double alone = time_of(stream, nothing, steps);
  const double with_save = time_of(
      stream, [&] { writer.wait(); },
      [&] {
        save();
        steps();
      });
  writer.wait();
  MESSAGE("copy of ", snapshot.bytes(), " bytes ", 1e3 * copy, " ms, steps ", 1e3 * alone, " ms, with a save ",
          1e3 * with_save, " ms");
  CHECK(with_save - alone <= 1.5 * copy);
  for (const CheckpointWriter::Report& report : writer.take_reports()) CHECK(report.problem.empty());
}

TEST_CASE("checkpoints in training: going back sets later checkpoints aside before the first step") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"checkpoint.every=10", "checkpoint.keep=10"});
  train_in(directory / "whole", config);
  fs::copy(directory / "whole", directory / "run", fs::copy_options::recursive);
  // A run that goes back to step 20, trains five steps and dies before it saves.
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const WatchedStream out([](std::string_view line) {
      if (line.find("eval at step 25") != std::string_view::npos) ::_exit(9);
    });
    train_from(directory / "run/ckpt/step_20", directory / "run",
               tiny_config({"checkpoint.every=0", "checkpoint.keep=10", "train.steps=25"}), out.file());
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) == 9);
  CHECK(fs::exists(directory / "run/ckpt/abandoned_1/step_60/manifest.json"));
  CheckpointReport report;
  CHECK(CheckpointDirectory(directory / "run/ckpt").load_latest(&report).value().step == 20);
  CHECK(report.skipped.empty());
  CHECK(contents(directory / "run/ckpt/latest") == "step_20\n");
  // What comes next continues the new branch, and no step is missing or twice in the metrics.
  train_in(directory / "run", config);
  CHECK(lines_without_times(directory / "run/metrics.jsonl") == lines_without_times(directory / "whole/metrics.jsonl"));
  check_files_equal(directory / "run", directory / "whole", "step_60");
  // The branch that was left can be taken up again.
  const Captured out;
  CHECK(train_from(directory / "run/ckpt/abandoned_1/step_50", directory / "run", config, out.file()).step == 60);
  CHECK(out.holds("1 checkpoints after step 50 are set aside in "));
  CHECK(fs::exists(directory / "run/ckpt/abandoned_2/step_60/manifest.json"));
}

TEST_CASE("checkpoints in training: a checkpoint of another branch at the same step says whose logs these are") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"checkpoint.every=10", "checkpoint.keep=10", "eval.every=10"});
  const fs::path run = directory / "run", other = directory / "other";
  train_in(run, config);
  CheckpointData changed = CheckpointDirectory::load(run / "ckpt/step_40");
  const float weight = 0.25F;
  std::memcpy(changed.model.front().data.data(), &weight, sizeof(weight));
  CheckpointDirectory(other).save(changed);
  const auto line_at = [&](std::size_t index) { return lines_without_times(run / "eval.jsonl").at(index); };
  const nlohmann::json before = line_at(2), at = line_at(3);

  const Captured own;
  train_from(run / "ckpt/step_40", run, config, own.file());
  CHECK_FALSE(own.holds("warning"));
  CHECK(line_at(3) == at);

  const Captured out;
  train_from(other / "step_40", run, config, out.file());
  CHECK(out.holds(fmt::format("warning: the logs in {} until step 40 tell of the branch", run.string())));
  CHECK_FALSE(out.holds("lacks the lines"));
  CHECK(line_at(2) == before);
  CHECK(line_at(3).at("step") == 40);
  CHECK(line_at(3).at("positions") != at.at("positions"));  // of these weights
  CHECK(steps_of(run / "eval.jsonl") == std::vector<std::int64_t>{10, 20, 30, 40, 50, 60});
}

TEST_CASE("checkpoints in training: weights that are not finite end the run, and no resume takes them") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"train.steps=3", "checkpoint.every=1"});
  train_in(directory / "run", tiny_config({"train.steps=2", "checkpoint.every=1"}));
  {
    TinySession tiny(config);
    RunDirectory run(options_in(directory / "run", config));
    const Captured out;
    Trainer trainer(tiny.session, run, out.file());
    trainer.resume(CheckpointDirectory::load(directory / "run/ckpt/step_2"));
    ParameterStore& params = tiny.experiment.params;
    const ParameterStore::Entry& entry = *params.find("read_in.weight");
    std::vector<double> weights = params.read(tiny.session.ctx(), entry, ParameterStore::Buffer::Weights);
    weights[0] = std::nan("");
    params.write(tiny.session.ctx(), entry, ParameterStore::Buffer::Weights, weights);
    CHECK_THROWS_AS(static_cast<void>(trainer.run()), NumericsError);
    CHECK(out.holds("read_in.weight[0] is nan"));
  }
  CHECK(contents(directory / "run/ckpt/latest") == "step_2\n");
  CHECK(CheckpointDirectory(directory / "run/ckpt").load_latest().value().step == 2);
  train_in(directory / "whole", config);
  train_in(directory / "run", config);
  check_files_equal(directory / "run", directory / "whole", "step_3");
}

TEST_CASE("checkpoints in training: the best one stays, whatever is kept besides") {
  const TemporaryDirectory directory;
  train_in(directory / "run", tiny_config({"checkpoint.every=5", "checkpoint.keep=1", "eval.every=5"}));
  double best = INFINITY;
  std::int64_t best_step = 0;
  for (const nlohmann::json& line : json_lines(directory / "run/eval.jsonl")) {
    const double score = line.at("summary").at("mean_from_second").get<double>();
    if (score > best) continue;
    best = score;
    best_step = line.at("step").get<std::int64_t>();
  }
  bool found = false;
  for (const CheckpointInfo& info : CheckpointDirectory(directory / "run/ckpt").list()) {
    if (!info.best) continue;
    found = true;
    CHECK(info.step == best_step);
    CHECK(info.score->value == doctest::Approx(best).epsilon(1e-12));
  }
  CHECK(found);
}

TEST_CASE("checkpoints in training: a stage of the curriculum that this program would not be in is refused") {
  const RunConfig config = tiny_config();
  const TemporaryDirectory directory;
  TinySession tiny(config);
  tiny.session.initialize();
  CheckpointData data = tiny.session.snapshot({{"config_hash", config_hash8(config)}});
  RunDirectory run(options_in(directory / "run", config));
  const NullStream out;
  Trainer trainer(tiny.session, run, out.file());
  data.state["curriculum"] = {{"points", 2}, {"dims", 1}};
  CHECK_NOTHROW(trainer.resume(data));
  data.state["curriculum"] = {{"points", 4}, {"dims", 1}};
  CHECK_THROWS_WITH_AS(trainer.resume(data), doctest::Contains("stage"), DataError);
}

}  // namespace
}  // namespace graft::test
