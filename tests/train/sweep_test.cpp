#include "train/sweep.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill is POSIX
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "tests/support/parity.h"
#include "tests/support/share.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"
#include "train/sweep_run.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

/// A directory with tiny.toml and a sweep over it.
struct SweepPlace {
  explicit SweepPlace(const std::string& text) {
    write_contents(directory / "tiny.toml", kTinyConfig);
    write_contents(file(), text);
  }
  [[nodiscard]] std::string file() const { return (directory / "grid.sweep.toml").string(); }
  [[nodiscard]] Sweep load(const std::vector<std::string>& overrides = {}) const {
    return load_sweep(file(), overrides);
  }
  /// The message without the name of the directory.
  [[nodiscard]] std::string refusal(const std::vector<std::string>& overrides = {}) const {
    try {
      static_cast<void>(load(overrides));
    } catch (const ConfigError& error) {
      std::string text = error.what();
      const std::string prefix = directory.path().string() + "/";
      for (std::size_t at; (at = text.find(prefix)) != std::string::npos;) text.erase(at, prefix.size());
      return text;
    }
    return {};
  }
  [[nodiscard]] SweepReport run(const Sweep& sweep, int jobs = 1, const char* device = "cpu") const {
    const NullStream null;
    SweepOptions options;
    options.root = directory / "runs";
    options.device = device;
    options.jobs = jobs;
    options.threads = 2;
    options.out = null.file();
    return run_sweep(sweep, options);
  }
  [[nodiscard]] fs::path run_directory(const Sweep& sweep, std::size_t point) const {
    return directory_of(sweep, sweep.points[point], directory / "runs");
  }
  [[nodiscard]] RunStatus status(const Sweep& sweep, std::size_t point) const {
    return status_of(sweep.points[point], run_directory(sweep, point));
  }
  TemporaryDirectory directory;
};

std::vector<std::string> names(const Sweep& sweep) {
  std::vector<std::string> result;
  for (const SweepPoint& point : sweep.points) result.push_back(point.name);
  return result;
}

const std::string kBase = "[sweep]\nbase = \"tiny.toml\"\n";

TEST_CASE("sweep: the product of a table's values, the last key fastest, and the tables one after the other") {
  const SweepPlace place(kBase + R"(set = {"train.log_every" = 20, eval.bootstrap = 0}
[[sweep.grid]]
model.preset = ["transformer", "mamba"]
"model.width" = [16, 32]
model.heads = 4
[[sweep.grid]]
optimizer.lr = [1e-3]
train.capture = [true, false]
)");
  const Sweep sweep = place.load({"train.steps=40"});
  CHECK(sweep.name == "grid");
  CHECK(names(sweep) == std::vector<std::string>{"preset=transformer+width=16", "preset=transformer+width=32",
                                                 "preset=mamba+width=16", "preset=mamba+width=32",
                                                 "lr=0.001+capture=true", "lr=0.001+capture=false"});
  std::set<std::string> hashes;
  for (const SweepPoint& point : sweep.points) {
    const RunConfig config = sweep.config(point);
    CHECK(point.hash == config_hash8(config));
    CHECK(point.steps == 40);
    CHECK(config.train.steps == 40);
    CHECK(config.train.log_every == 20);
    CHECK(config.eval.bootstrap == 0);
    CHECK(config.run.name == "grid-" + point.name);
    CHECK(config.text == kTinyConfig);
    hashes.insert(point.hash);
  }
  CHECK(hashes.size() == sweep.points.size());
  const RunConfig third = sweep.config(sweep.points[3]);
  CHECK(third.model.preset == "mamba");
  CHECK(third.model.width == 32);
  CHECK(third.model.heads == 4);
  CHECK(sweep.config(sweep.points[4]).model.heads == 2);
  CHECK_FALSE(sweep.config(sweep.points[5]).train.capture);
  // A run is the one that `graft train` would make of the same values.
  CHECK(sweep.points[2].hash ==
        config_hash8(tiny_config({"train.log_every=20", "model.preset=mamba", "model.heads=4", "model.width=16"})));
  CHECK(directory_of(sweep, sweep.points[0], "runs") == fs::path("runs/grid/preset=transformer+width=16"));
  CHECK_FALSE(fs::exists(place.directory / "runs"));
}

TEST_CASE("sweep: names") {
  const Sweep sweep = SweepPlace("[sweep]\nname = \"figure\"\nbase = \"tiny.toml\"\n" + std::string(R"([[sweep.grid]]
model.pattern = ["M(AM)*2"]
optimizer.name = ["adam"]
schedule.name = ["constant", "cosine"]
optimizer.weight_decay = 0
[[sweep.grid]]
eval.batch = [4, 8]
train.batch = [8]
)"))
                          .load();
  CHECK(sweep.name == "figure");
  CHECK(names(sweep) == std::vector<std::string>{"pattern=M_AM__2+optimizer=adam+schedule=constant",
                                                 "pattern=M_AM__2+optimizer=adam+schedule=cosine",
                                                 "eval.batch=4+train.batch=8", "eval.batch=8+train.batch=8"});
}

TEST_CASE("sweep: mistakes are named with their place, each once") {
  const SweepPlace unknown(kBase + R"([[sweep.grid]]
model.preset = ["transformer", "mambaa"]
model.widht = [16, 32]
optimizer.lr = [1e-3, "fast"]
)");
  const std::string message = unknown.refusal();
  CAPTURE(message);
  CHECK(message.starts_with("grid.sweep.toml:4:32: model.preset: got \"mambaa\", expected one of "));
  CHECK(
      message.ends_with("; did you mean `mamba`?\n"
                        "  4 | model.preset = [\"transformer\", \"mambaa\"]\n"
                        "    |                                ^\n"
                        "grid.sweep.toml:5:7: model.widht: unknown key; did you mean `model.width`?\n"
                        "  5 | model.widht = [16, 32]\n"
                        "    |       ^\n"
                        "grid.sweep.toml:6:23: optimizer.lr: got the text \"fast\", expected a number in (0, 1000]\n"
                        "  6 | optimizer.lr = [1e-3, \"fast\"]\n"
                        "    |                       ^\n"
                        "grid.sweep.toml: 3 mistakes; `graft config explain KEY` says what a key takes"));

  const auto refused = [](const std::string& text, const std::string& expected) {
    CAPTURE(text);
    const std::string got = SweepPlace(text).refusal();
    CAPTURE(got);
    CHECK(got.find(expected) != std::string::npos);
  };
  const std::string grid = "[[sweep.grid]]\nrun.seed = [1, 2]\n";
  refused(kBase + "[[sweep.grid]]\nmodel.width = []\n", "grid.sweep.toml:4:15: model.width: got an empty array");
  refused(kBase + "[[sweep.grid]]\n", "sweep.grid: got no key");
  refused(kBase, "sweep.grid: missing");
  refused("[sweep]\n" + grid, "grid.sweep.toml:1:2: sweep.base: missing");
  refused(grid, "grid.sweep.toml:1:3: sweep.base: missing");
  refused("[sweeep]\nbase = \"tiny.toml\"\n", "grid.sweep.toml:1:2: sweeep: expected a table [sweep]");
  refused(kTinyConfig, "sweep: missing, expected a table [sweep]");
  refused(kBase + grid + "[train]\nsteps = 3\n", "grid.sweep.toml:5:2: train: not part of a sweep");
  refused("[sweep]\nbase = \"tinny.toml\"\n" + grid, "sweep.base: tinny.toml: no such file; did you mean `tiny.toml`?");
  refused("[sweep]\nbase = 3\n" + grid, "sweep.base: got the integer 3");
  refused("[sweep]\nbsae = \"tiny.toml\"\n" + grid, "sweep.bsae: unknown key; did you mean `sweep.base`?");
  refused("[sweep]\nname = \"a/b\"\nbase = \"tiny.toml\"\n" + grid,
          "sweep.name: got the text \"a/b\", expected letters");
  refused(kBase + grid + grid, "two runs would be called seed=1");
  refused(kBase + "[[sweep.grid]]\nrun.seed = [1, 1]\n", "two runs would be called seed=1");
  refused(kBase + "[[sweep.grid]]\nrun.name = [\"a\"]\n", "run.name: does not belong into a sweep");
  refused(kBase + "set = {\"model.widht\" = 8}\n" + grid,
          "grid.sweep.toml:3:8: model.widht: unknown key; did you mean `model.width`?");
  refused(kBase + "[[sweep.grid]]\nmodel.width = [16]\n\"model.width\" = [32]\n", "model.width: given a second time");
  refused(kBase + "[[sweep.grid]]\nmodel.heads = [2, 3]\n", "model.heads: 3 does not divide model.width = 16");
  refused(kBase + grid + "[sweep.stop]\nabvoe = 1\n",
          "sweep.stop.abvoe: unknown key; did you mean `sweep.stop.above`?");
  refused(kBase + grid + "[sweep.stop]\nabove = 1\n", "above = 1");
  refused(
      kBase + "[[sweep.grid]]\nrun.seed = [" +
          [] {
            std::string numbers;
            for (int i = 0; i < 101; ++i) numbers += fmt::format("{}, ", i);
            return numbers + "]\ntrain.batch = [" + numbers + "]\n";
          }(),
      "sweep.grid: got more than 10000 runs, expected at most 10000");
  CHECK(SweepPlace(kBase + grid).refusal({"model.widht=3"}).find("-o model.widht=3: model.widht: unknown key") == 0);
  CHECK(SweepPlace(kBase + "[[sweep.grid]]\nmodel.width = [16\n").refusal().starts_with("grid.sweep.toml:"));
  CHECK_THROWS_AS(static_cast<void>(load_sweep("nowhere.sweep.toml")), ConfigError);
}

TEST_CASE("sweep: a mistake in the base is the base's, once") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [0, 1, 2]\n");
  std::string text = kTinyConfig;
  text.replace(text.find("width"), 5, "widht");
  write_contents(place.directory / "tiny.toml", text);
  const std::string message = place.refusal();
  CAPTURE(message);
  CHECK(message.starts_with("tiny.toml:"));
  CHECK(message.find("model.widht: unknown key; did you mean `model.width`?\n  ") != std::string::npos);
  CHECK(message.find("grid.sweep.toml: 1 mistake;") != std::string::npos);
}

TEST_CASE("sweep: -o is not for a key that tells runs apart") {
  const SweepPlace place(kBase + R"([[sweep.grid]]
run.seed = [0, 1, 2]
optimizer.lr = [1e-3]
model.width = 16
[[sweep.grid]]
"run.seed" = [3]
model.width = [16, 32]
)");
  CHECK(place.refusal({"run.seed=7"}) ==
        "grid.sweep.toml:4:5: run.seed: -o run.seed=7 would give this one value to runs that the grid's 3 values tell "
        "apart; leave it out, or change the values here\n"
        "  4 | run.seed = [0, 1, 2]\n"
        "    |     ^\n"
        "grid.sweep.toml:8:1: run.seed: -o run.seed=7 would give this one value to runs that are named after the "
        "grid's; leave it out, or change the values here\n"
        "  8 | \"run.seed\" = [3]\n"
        "    | ^\n"
        "grid.sweep.toml: 2 mistakes; `graft config explain KEY` says what a key takes");
  // A value that is in the grid would make the other runs wrong.
  CHECK(place.refusal({"train.steps=20", "run.seed=1"}).starts_with("grid.sweep.toml:4:5: run.seed: -o run.seed=1 "));
  CHECK(place.refusal({"optimizer.lr=1e-2"}).starts_with("grid.sweep.toml:5:11: optimizer.lr: -o optimizer.lr=1e-2 "));
  // One value for a whole table, and an array in another.
  CHECK(place.refusal({"model.width=64"}).starts_with("grid.sweep.toml:9:7: model.width: -o model.width=64 "));
  CHECK(place.load().points.size() == 5);

  // A value that names no run is overridden, as are those of sweep.set and the base.
  const SweepPlace plain(kBase + R"(set = {"train.batch" = 4}
[[sweep.grid]]
run.seed = [0, 1]
model.width = 32
)");
  const Sweep sweep = plain.load({"model.width=64", "train.batch=2", "model.layers=1"});
  for (std::size_t i = 0; i < 2; ++i) {
    const RunConfig config = sweep.config(sweep.points[i]);
    CHECK(config.run.seed == i);
    CHECK(config.model.width == 64);
    CHECK(config.model.layers == 1);
    CHECK(config.train.batch == 2);
  }
}

TEST_CASE("sweep: two runs that differ in nothing but their names are a mistake") {
  const SweepPlace place(kBase + R"([[sweep.grid]]
run.seed = [0, 5]
[[sweep.grid]]
model.width = [16, 32]
)");
  // Five and sixteen are the base's.
  const std::string message = place.refusal();
  CAPTURE(message);
  CHECK(
      message.starts_with("grid.sweep.toml:6:7: sweep.grid: the runs seed=5 and width=16 would be the same, their "
                          "configurations being equal in all but run.name; "));
  CHECK(message.ends_with("grid.sweep.toml: 1 mistake; `graft config explain KEY` says what a key takes"));

  // Made equal by -o: neither key has an array.
  const SweepPlace made(kBase + R"([[sweep.grid]]
run.seed = [5]
model.width = 32
[[sweep.grid]]
train.batch = [8]
model.width = 64
)");
  CHECK(made.load().points.size() == 2);
  CHECK(made.refusal({"model.width=16"}).find("seed=5 and batch=8 would be the same") != std::string::npos);
  // What is no part of a run's identity tells runs apart as well.
  CHECK(SweepPlace(kBase + "[[sweep.grid]]\ntrain.steps = [20, 40]\n").load().points.size() == 2);
}

const std::string kSixRuns = kBase + R"([[sweep.grid]]
model.preset = ["transformer", "mamba", "mambaformer"]
run.seed = [0, 1]
)";

TEST_CASE("sweep: runs at once end in the bits of runs alone, and done runs are not run again") {
  const SweepPlace place(kSixRuns);
  const Sweep sweep = place.load();
  CHECK(place.status(sweep, 0).state == RunState::NotStarted);
  const SweepReport report = place.run(sweep, 3);
  CHECK(report.done_before == 0);
  CHECK(report.signal == 0);
  REQUIRE(report.outcomes.size() == 6);
  for (std::size_t i = 0; i < 6; ++i) {
    const SweepOutcome& outcome = report.outcomes[i];
    CAPTURE(outcome.point->name);
    CHECK(outcome.error.empty());
    CHECK(outcome.training.step == 60);
    const fs::path alone = place.directory / "alone" / outcome.point->name;
    const TrainingOutcome reference = train_in(alone, sweep.config(*outcome.point));
    CHECK(outcome.training.parameter_hash == reference.parameter_hash);
    CHECK(lines_without_times(place.run_directory(sweep, i) / "metrics.jsonl") ==
          lines_without_times(alone / "metrics.jsonl"));
    CHECK(lines_without_times(place.run_directory(sweep, i) / "eval.jsonl") ==
          lines_without_times(alone / "eval.jsonl"));
    const RunStatus status = place.status(sweep, i);
    CHECK(status.state == RunState::Done);
    CHECK(status.step == 60);
    CHECK(status.evaluated == 60);
    CHECK(status.mean == doctest::Approx(reference.evaluation.summary.mean_from_second));
  }
  const SweepReport again = place.run(sweep, 2);
  CHECK(again.done_before == 6);
  CHECK(again.outcomes.empty());

  // More steps are no other run: those go on.
  const Sweep longer = place.load({"train.steps=70"});
  CHECK(place.status(longer, 2).state == RunState::Unfinished);
  CHECK(place.run(longer, 2).outcomes.size() == 6);
  CHECK(place.status(longer, 2).state == RunState::Done);
  // Another learning rate is.
  CHECK(place.status(place.load({"optimizer.lr=1e-2"}), 2).state == RunState::OtherConfig);
}

TEST_CASE("sweep: CUDA: runs at once end in the bits of runs alone") {
  if (skip_cuda()) return;
  // A share has all seeds of its presets, so that there are runs at once in it too.
  std::string presets;
  std::size_t runs = 0;
  for (const char* preset : {"transformer", "mamba", "mambaformer"}) {
    if (!in_share(preset)) continue;
    presets += fmt::format("\"{}\", ", preset);
    runs += 2;
  }
  if (runs == 0) return;
  const SweepPlace place(kBase + fmt::format("[[sweep.grid]]\nmodel.preset = [{}]\nrun.seed = [0, 1]\n", presets));
  const Sweep sweep = place.load({"eval.every=9", fmt::format("train.steps={}", test_steps(60))});
  const SweepReport report = place.run(sweep, 6, "cuda");
  REQUIRE(report.outcomes.size() == runs);
  for (const SweepOutcome& outcome : report.outcomes) {
    CAPTURE(outcome.point->name);
    CAPTURE(outcome.error);
    const TrainingOutcome reference =
        train_in(place.directory / outcome.point->name, sweep.config(*outcome.point), nullptr, Backend::Cuda);
    CHECK(outcome.training.parameter_hash == reference.parameter_hash);
  }
}

TEST_CASE("sweep: a run that fails ends no other, and is tried again") {
  const SweepPlace place(kSixRuns);
  const Sweep sweep = place.load();
  fs::create_directories(place.run_directory(sweep, 1));
  write_contents(place.run_directory(sweep, 1) / "file", "no run");
  const SweepReport report = place.run(sweep, 2);
  REQUIRE(report.outcomes.size() == 6);
  for (std::size_t i = 0; i < 6; ++i) {
    CAPTURE(report.outcomes[i].error);
    CHECK(report.outcomes[i].error.empty() == (i != 1));
    CHECK(report.outcomes[i].code == (i == 1 ? ExitCode::kUsage : ExitCode::kDone));
  }
  CHECK(report.outcomes[1].error.find("holds no run") != std::string::npos);
  fs::remove(place.run_directory(sweep, 1) / "file");
  const SweepReport again = place.run(sweep, 2);
  CHECK(again.done_before == 5);
  REQUIRE(again.outcomes.size() == 1);
  CHECK(again.outcomes[0].error.empty());

  // An error within the run is on record.
  write_contents(place.run_directory(sweep, 3) / "ckpt/step_60/model.safetensors", "damaged");
  const Sweep longer = place.load({"train.steps=70"});
  const SweepReport damaged = place.run(longer, 2);
  REQUIRE(damaged.outcomes.size() == 6);
  CHECK(damaged.outcomes[2].error.empty());
  CHECK(damaged.outcomes[3].code == ExitCode::kData);
  CHECK(place.status(longer, 2).state == RunState::Done);
  CHECK(place.status(longer, 3).state == RunState::Failed);
  CHECK(place.status(longer, 3).message.find("step_60") != std::string::npos);
}

TEST_CASE("sweep: what cannot be read is its run's failure, and nothing is waited for") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [0, 1, 2, 3, 4, 5, 6]\n");
  const Sweep sweep = place.load({"eval.every=30"});
  for (std::size_t i = 0; i < 3; ++i) train_in(place.run_directory(sweep, i), sweep.config(sweep.points[i]));
  const auto make_pipe = [](const fs::path& path) {
    fs::remove(path);
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  };
  make_pipe(place.run_directory(sweep, 0) / "eval.jsonl");
  make_pipe(place.run_directory(sweep, 1) / "metrics.jsonl");
  make_pipe(place.run_directory(sweep, 2) / "run.json");
  fs::create_directories(place.run_directory(sweep, 3) / "run.json");
  fs::create_directory_symlink(place.run_directory(sweep, 4).filename(), place.run_directory(sweep, 4));  // a loop
  write_contents(place.run_directory(sweep, 5), "no directory");

  const std::vector<std::string> expected = {"eval.jsonl: not a regular file",
                                             "metrics.jsonl: not a regular file",
                                             "run.json: not a regular file",
                                             "run.json: not a regular file",
                                             "seed=4/run.json: Too many levels of symbolic links",
                                             "seed=5 is not a directory"};
  const auto check_states = [&] {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const RunStatus status = place.status(sweep, i);
      CAPTURE(status.message);
      CHECK(status.state == RunState::Failed);
      CHECK(status.message.find(expected[i]) != std::string::npos);
      CHECK(status.message.find("filesystem error") == std::string::npos);
    }
  };
  check_states();
  CHECK(place.status(sweep, 6).state == RunState::NotStarted);

  const SweepReport report = place.run(sweep, 2);
  CHECK(report.done_before == 0);
  REQUIRE(report.outcomes.size() == 7);
  for (std::size_t i = 0; i < 6; ++i) {
    const SweepOutcome& outcome = report.outcomes[i];
    CAPTURE(outcome.error);
    CHECK_FALSE(outcome.error.empty());
    CHECK(outcome.code == (i < 4 ? ExitCode::kData : i == 4 ? ExitCode::kEnvironment : ExitCode::kUsage));
    CHECK(outcome.error.find("filesystem error") == std::string::npos);
  }
  CHECK(report.outcomes[6].error.empty());
  check_states();
  CHECK(place.status(sweep, 6).state == RunState::Done);
}

TEST_CASE("sweep: a place that is taken is no run that will start") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [0, 1]\n");
  const Sweep sweep = place.load();
  fs::create_directories(place.run_directory(sweep, 1));
  CHECK(place.status(sweep, 1).state == RunState::NotStarted);
  write_contents(place.run_directory(sweep, 1) / ".lock", "");  // left by a process that died early
  CHECK(place.status(sweep, 1).state == RunState::NotStarted);
  write_contents(place.run_directory(sweep, 1) / "notes.txt", "somebody's");
  const RunStatus status = place.status(sweep, 1);
  CHECK(status.state == RunState::Failed);
  CHECK(status.message.ends_with("is not empty and holds no run (run.json is missing); choose another --runs-dir"));
  CHECK(place.status(sweep, 0).state == RunState::NotStarted);
}

TEST_CASE("sweep: a run that another process has is said to be, with advice that a sweep can follow") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [0, 1]\n");
  const Sweep sweep = place.load();
  const RunDirectory held(options_in(place.run_directory(sweep, 0), sweep.config(sweep.points[0])));
  const SweepReport report = place.run(sweep);
  REQUIRE(report.outcomes.size() == 2);
  CHECK(report.outcomes[0].code == ExitCode::kEnvironment);
  CHECK(report.outcomes[0].error ==
        fmt::format("run: {} is in use by another process: pid {} on {}; wait for it or choose another --runs-dir",
                    place.run_directory(sweep, 0).string(), ::getpid(),
                    nlohmann::json::parse(contents(held.path() / "run.json")).at("host").get<std::string>()));
  CHECK(report.outcomes[1].error.empty());
}

TEST_CASE("sweep: the commands show a run that cannot be read and run the others") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [0, 1]\n");
  const Sweep sweep = place.load();
  train_in(place.run_directory(sweep, 0), sweep.config(sweep.points[0]));
  fs::remove(place.run_directory(sweep, 0) / "eval.jsonl");
  REQUIRE(::mkfifo((place.run_directory(sweep, 0) / "eval.jsonl").c_str(), 0600) == 0);
  const auto graft = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "sweep");
    arguments.emplace_back("grid.sweep.toml");
    return run_graft(place.directory.path(), arguments);
  };
  const Result before = graft({"status"});
  CHECK(before.code == 0);
  CHECK(before.out.find("eval.jsonl: not a regular file\n") != std::string::npos);
  CHECK(before.out.find("seed=1  not started") != std::string::npos);
  CHECK(graft({"plan"}).code == 0);
  const Result run = graft({"run", "--device", "cpu", "--threads", "1"});
  CHECK(run.code == 4);
  CHECK(run.err.find("eval.jsonl: not a regular file") != std::string::npos);
  CHECK(run.out.find("1 of 2 runs done, 0 of them before, 1 failed") != std::string::npos);
  CHECK(graft({"status"}).out.find("seed=1  done") != std::string::npos);

  const Result refused = graft({"run", "-o", "run.seed=7"});
  CHECK(refused.code == 2);
  CHECK(refused.err.find("grid.sweep.toml:4:5: run.seed: -o run.seed=7 ") != std::string::npos);
}

TEST_CASE("sweep: an interrupted run goes on from its checkpoint, to the same bits") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [3]\n");
  const Sweep sweep = place.load({"checkpoint.every=20"});
  const RunConfig config = sweep.config(sweep.points[0]);
  const TrainingOutcome whole = train_in(place.directory / "whole", config);
  {
    RunConfig part = config;
    part.train.steps = 40;
    train_in(place.run_directory(sweep, 0), part);
  }
  CHECK(place.status(sweep, 0).state == RunState::Unfinished);
  CHECK(place.status(sweep, 0).step == 40);
  const SweepReport report = place.run(sweep);
  REQUIRE(report.outcomes.size() == 1);
  CHECK(report.outcomes[0].training.parameter_hash == whole.parameter_hash);
  CHECK(place.status(sweep, 0).state == RunState::Done);
}

TEST_CASE("sweep: SIGINT ends all runs after saving, and the next ones do not start") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [0, 1, 2]\n");
  const Sweep sweep = place.load({"train.steps=10000000", "train.log_every=1"});
  std::jthread sender([&place, &sweep] {
    const auto running = [&](std::size_t point) { return place.status(sweep, point).step > 0; };
    for (int tries = 0; tries < 600 && !(running(0) && running(1)); ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    ::kill(::getpid(), SIGINT);
  });
  const SweepReport report = place.run(sweep, 2);
  CHECK(report.signal == SIGINT);
  REQUIRE(report.outcomes.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(report.outcomes[i].error.empty());
    CHECK(report.outcomes[i].training.signal == SIGINT);
    const std::int64_t step = report.outcomes[i].training.step;
    CHECK(fs::exists(place.run_directory(sweep, i) / "ckpt" / fmt::format("step_{}", step)));
    CHECK(place.status(sweep, i).state == RunState::Unfinished);
    CHECK(place.status(sweep, i).step == step);
    const nlohmann::json record = nlohmann::json::parse(contents(place.run_directory(sweep, i) / "run.json"));
    CHECK(record.at("exit_status") == 130);
    CHECK(record.at("message") == fmt::format("interrupted by SIGINT after step {} of 10000000; saved", step));
  }
  CHECK(place.status(sweep, 2).state == RunState::NotStarted);
}

TEST_CASE("sweep: the state of a run follows from its run.json, whatever is in it") {
  const SweepPlace place(kBase + "[[sweep.grid]]\nrun.seed = [0]\n");
  const Sweep sweep = place.load();
  const fs::path directory = place.run_directory(sweep, 0);
  fs::create_directories(directory);
  const auto status = [&](const nlohmann::json& entries) {
    nlohmann::json record = {{"config_hash", sweep.points[0].hash},
                             {"host", "nowhere"},
                             {"pid", 1},
                             {"exit_status", nullptr},
                             {"message", ""}};
    record.update(entries);
    write_contents(directory / "run.json", record.dump());
    return place.status(sweep, 0);
  };
  CHECK(status(nlohmann::json::object()).state == RunState::Running);
  for (const int code : {129, 130, 143, 152, 85}) CHECK(status({{"exit_status", code}}).state == RunState::Unfinished);
  const RunStatus failed = status({{"exit_status", 3}, {"message", "first\nlast"}});
  CHECK(failed.state == RunState::Failed);
  CHECK(failed.message == "last");
  for (const nlohmann::json& wrong : {nlohmann::json{{"host", 5}},
                                      {{"host", nullptr}},
                                      {{"pid", "1"}},
                                      {{"message", 5}, {"exit_status", 3}},
                                      {{"config_hash", 5}}}) {
    CAPTURE(wrong.dump());
    const RunStatus damaged = status(wrong);
    CHECK(damaged.state == RunState::Failed);
    CHECK(damaged.message == "run.json is damaged");
  }
}

TEST_CASE("stop rule: means over the range, ends included") {
  StopRule rule;
  CHECK_FALSE(rule.given());
  CHECK_FALSE(rule.decided({1, 2}));
  rule.above = 0.9;
  rule.first = 1;
  rule.last = 2;
  CHECK(rule.value({0, 1, 0.8, 0}) == doctest::Approx(0.9));
  CHECK(rule.decided({0, 1, 0.81, 0}));
  CHECK_FALSE(rule.decided({1, 1, 0.79, 1}));
  CHECK(rule.decided({0, std::nan(""), 0.95, 0}));
  CHECK_FALSE(rule.decided({0, std::nan(""), std::nan(""), 1}));
  CHECK_FALSE(rule.decided({}));
  CHECK(rule.str() == "mean over positions 1..2 at least 0.9");
  const StopRule below{std::nullopt, 0.5, 2, std::nullopt};
  CHECK(below.decided({9, 9, 0.4, 0.6}));
  CHECK_FALSE(below.decided({0, 0, 0.4, 0.7}));
}

TEST_CASE("stop rule: conditions between its keys") {
  const auto refused = [](const std::vector<std::string>& overrides, const char* message) {
    CHECK_THROWS_WITH_AS(static_cast<void>(tiny_config(overrides)), doctest::Contains(message), ConfigError);
  };
  refused({"eval.every=10", "eval.stop_above=1", "eval.stop_below=1"}, "eval.stop_below: given together with");
  refused({"eval.every=10", "eval.stop_from=1"}, "eval.stop_from: has no effect without eval.stop_above");
  refused({"eval.stop_above=1"}, "eval.stop_above: has no effect with eval.every = 0");
  refused({"eval.every=10", "eval.stop_above=1", "eval.stop_from=3", "eval.stop_to=2"}, "got 3, expected at most");
  refused({"eval.every=10", "eval.stop_above=1", "eval.stop_to=5"},
          "eval.stop_to: got 5, expected at most 4, the last position");
  CHECK(config_hash8(tiny_config({"eval.every=10", "eval.stop_above=1", "eval.stop_to=4"})) ==
        config_hash8(tiny_config()));
}

TEST_CASE("stop rule: a run ends at the evaluation that decides it, and knows that it is done") {
  const TemporaryDirectory directory;
  const std::vector<std::string> rule = {"eval.every=10", "eval.stop_below=1e9", "eval.stop_from=1"};
  const TrainingOutcome outcome = train_in(directory / "run", tiny_config(rule));
  CHECK(outcome.step == 10);
  CHECK(outcome.stopped);
  CHECK(outcome.signal == 0);
  CHECK(steps_of(directory / "run/eval.jsonl") == std::vector<std::int64_t>{10});
  CHECK(fs::exists(directory / "run/ckpt/step_10"));
  const nlohmann::json record = nlohmann::json::parse(contents(directory / "run/run.json"));
  CHECK(record.at("exit_status") == 0);
  CHECK(record.at("stopped").at("step") == 10);
  CHECK(record.at("stopped").at("rule") == "mean over positions 1.. at most 1000000000");

  const TrainingOutcome again = train_in(directory / "run", tiny_config(rule));
  CHECK(again.step == 10);
  CHECK(again.stopped);
  CHECK(again.parameter_hash == outcome.parameter_hash);
  CHECK(steps_of(directory / "run/eval.jsonl") == std::vector<std::int64_t>{10});

  // A rule that it does not meet: the run goes on to its end, as if there had been none.
  const TrainingOutcome rest = train_in(directory / "run", tiny_config({"eval.every=10", "eval.stop_below=-1"}));
  CHECK(rest.step == 60);
  CHECK_FALSE(rest.stopped);
  CHECK(rest.parameter_hash == train_in(directory / "plain", tiny_config()).parameter_hash);
  CHECK(steps_of(directory / "run/eval.jsonl") == std::vector<std::int64_t>{10, 20, 30, 40, 50, 60});
  CHECK_FALSE(nlohmann::json::parse(contents(directory / "run/run.json")).contains("stopped"));
}

TEST_CASE("sweep: the stop rule ends runs one by one") {
  const SweepPlace place(kBase + R"(set = {eval.every = 20}
[[sweep.grid]]
run.seed = [0, 1]
[sweep.stop]
below = 1e9
first = 1
last = 4
)");
  const Sweep sweep = place.load();
  CHECK(sweep.points[0].stop.last == 4);
  const SweepReport report = place.run(sweep, 2);
  REQUIRE(report.outcomes.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(report.outcomes[i].training.step == 20);
    const RunStatus status = place.status(sweep, i);
    CHECK(status.state == RunState::Done);
    CHECK(status.step == 20);
    CHECK(status.stop_value > 0);
  }
  CHECK(place.run(sweep).done_before == 2);
  // A stricter rule: not done any more.
  CHECK(place.status(place.load({"eval.stop_below=1e-9"}), 0).state == RunState::Unfinished);
}

TEST_CASE("sweep: the files that come with the project are right") {
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(GRAFT_SOURCE_DIR) / "configs")) {
    if (!entry.path().string().ends_with(".sweep.toml")) continue;
    CAPTURE(entry.path().string());
    std::string refusal;
    try {
      CHECK_FALSE(load_sweep(entry.path().string()).points.empty());
    } catch (const ConfigError& error) {
      refusal = error.what();
    }
    CHECK(refusal.empty());
    ++files;
  }
  CHECK(files >= 1);
}

}  // namespace
}  // namespace graft::test
