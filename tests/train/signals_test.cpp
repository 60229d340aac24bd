// Signals in everything that takes long: SIGINT and SIGTERM end it soon, with what is finished and one line that says
// what to do.

#include "train/signals.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "engine/philox.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"
#include "train/evaluation.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::chrono::microseconds random_time(std::int64_t most, std::uint32_t index) {
  return std::chrono::microseconds(
      Draw{31, RandomDomain::Bootstrap, 0, 0}.below(static_cast<std::uint32_t>(most), 3, index));
}

std::string last_line(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  const auto newline = text.rfind('\n');
  return newline == std::string::npos ? text : text.substr(newline + 1);
}

std::size_t count_of(std::string_view text, std::string_view what) {
  std::size_t count = 0;
  for (auto at = text.find(what); at != std::string_view::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

/// Waits until a process has printed something; it must not end before.
void wait_for_output(const Process& process, std::string_view text) {
  for (int i = 0; i < 60000 && process.out().find(text) == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

constexpr double kMostSeconds = 5;  // about one on a machine with nothing else to do

/// Sends the signal and checks code and last line; returns how long the process took to end.
double end_with(Process& process, int signal, const std::string& line) {
  const auto sent = Clock::now();
  process.signal(signal);
  const int code = process.wait();
  const double seconds = std::chrono::duration<double>(Clock::now() - sent).count();
  CAPTURE(process.err());
  CHECK(code == 128 + signal);
  CHECK(last_line(process.err()).starts_with("graft: error: interrupted " + line));
  CHECK(seconds < kMostSeconds);
  return seconds;
}

/// A pipe that nobody reads any more.
class DeadPipe {
 public:
  DeadPipe() {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    ::close(ends[0]);
    fd_ = ends[1];
  }
  ~DeadPipe() { ::close(fd_); }
  DeadPipe(const DeadPipe&) = delete;
  DeadPipe& operator=(const DeadPipe&) = delete;
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

/// A directory with tiny.toml and, in `run`, what it trained.
struct TrainedRun {
  TrainedRun() {
    write_contents(directory / "tiny.toml", kTinyConfig);
    train_in(directory / "run", tiny_config({"train.steps=4"}));
  }
  TemporaryDirectory directory;
};

TEST_CASE("signals: guards nest, and nothing is received without one") {
  const auto caught = [] {
    struct sigaction action = {};
    sigaction(SIGTERM, nullptr, &action);
    return action.sa_handler;
  };
  const auto before = caught();
  {
    const SignalGuard outer;
    const auto ours = caught();
    CHECK((ours != before));
    std::raise(SIGTERM);
    {
      const SignalGuard inner;
      CHECK(SignalGuard::received() == SIGTERM);  // one that came before it is not forgotten
    }
    CHECK((caught() == ours));
    CHECK(SignalGuard::received() == SIGTERM);
    try {
      SignalGuard::check("after 3 of 4 things");
      FAIL("no error");
    } catch (const InterruptedError& error) {
      CHECK(std::string(error.what()) == "interrupted after 3 of 4 things");
      CHECK(error.exit_code() == ExitCode::kTerminated);
    }
  }
  CHECK((caught() == before));
  CHECK(SignalGuard::received() == 0);
  CHECK_NOTHROW(SignalGuard::check("never"));
  CHECK(interrupted_code(SIGINT) == ExitCode::kInterrupted);
  CHECK(interrupted_code(SIGHUP) == ExitCode::kHungUp);
  CHECK(interrupted_code(SIGXCPU) == ExitCode::kOutOfProcessorTime);
}

TEST_CASE("signals: a terminal that goes away ends training with a save, unless it was to outlive it") {
  const TemporaryDirectory place;
  write_contents(place / "tiny.toml", kTinyConfig);
  const auto train = [&](const std::string& run, const std::string& steps, bool nohup) {
    // An ignored signal stays ignored in the program that is started.
    const auto before = std::signal(SIGHUP, nohup ? SIG_IGN : SIG_DFL);
    Process process(place.path(), {"train", "tiny.toml", "--device", "cpu", "--threads", "1", "--run-dir", run, "-o",
                                   "train.steps=" + steps});
    std::signal(SIGHUP, before);
    REQUIRE(process.wait_for_guard());
    wait_for_output(process, "step ");
    process.signal(SIGHUP);
    const int code = process.wait();
    return Result{code, process.out(), process.err()};
  };
  const Result hung_up = train("run", "100000000", false);
  CHECK(hung_up.code == 129);
  CHECK(last_line(hung_up.err).starts_with("graft: error: interrupted after step "));
  const nlohmann::json record = nlohmann::json::parse(contents(place / "run/run.json"));
  CHECK(record.at("exit_status") == 129);
  CHECK(CheckpointDirectory(place / "run/ckpt").load_latest().has_value());
  const Result outlived = train("nohup", "2000", true);
  CHECK(outlived.code == 0);
  CHECK(outlived.err.empty());
}

TEST_CASE("signals: the limit of processor time ends training with a save") {
  const TemporaryDirectory place;
  write_contents(place / "tiny.toml", kTinyConfig);
  Process process(place.path(), {"train", "tiny.toml", "--device", "cpu", "--threads", "1", "--run-dir", "run", "-o",
                                 "train.steps=100000000"});
  REQUIRE(process.wait_for_guard());
  wait_for_output(process, "step ");
  process.signal(SIGXCPU);
  CHECK(process.wait() == 152);
  CHECK(last_line(process.err()).starts_with("graft: error: interrupted after step "));
  CHECK(CheckpointDirectory(place / "run/ckpt").load_latest().has_value());
}

TEST_CASE("signals: an evaluation stops wherever it is asked, and a later one is whole") {
  const RunConfig config = tiny_config({"eval.baselines=[\"tree_full\", \"knn3\"]", "eval.baseline_prompts=8"});
  TinySession tiny(config);
  tiny.session.initialize();
  Evaluator whole(tiny.session, {});
  std::atomic<std::int64_t> asked{0};
  whole.watch([&] { return ++asked < 0; }, {});
  const EvaluationResult expected = whole.run(3);
  CHECK_FALSE(expected.interrupted);
  const std::int64_t all = asked;
  CHECK(all > 150);  // batches, resamples, prompts, points
  Evaluator evaluator(tiny.session, {});
  std::int64_t places = 0;
  for (std::int64_t last = 1; last <= all; last += last < 30 ? 1 : 7) {
    CAPTURE(last);
    asked = 0;
    evaluator.watch([&] { return ++asked >= last; }, {});
    CHECK(evaluator.run(3).interrupted);
    CHECK(asked == last);  // nothing goes on after it
    ++places;
  }
  MESSAGE("stopped at " << places << " of " << all << " places");
  evaluator.watch({}, {});
  const EvaluationResult again = evaluator.run(3);
  CHECK_FALSE(again.interrupted);
  CHECK(again.positions.mean == expected.positions.mean);
  CHECK(again.positions.upper == expected.positions.upper);
  CHECK(again.baselines == expected.baselines);
}

TEST_CASE("signals: eval ends soon at random moments and keeps the suites that are finished") {
  const TrainedRun place;
  const fs::path out = place.directory / "eval.jsonl";
  const std::vector<std::string> arguments = {
      "eval",      "run",
      "--suite",   "all",
      "--out",     "eval.jsonl",
      "-o",        "eval.prompts=256",
      "-o",        "eval.bootstrap=500",
      "-o",        "eval.baseline_prompts=8",
      "--device",  "cpu",
      "--threads", "1",
      "-o",        "eval.baselines=[\"boosted_trees\", \"two_layer_net\", \"lasso_0.01\"]"};
  const auto started = Clock::now();
  REQUIRE(run_graft(place.directory.path(), arguments).code == 0);
  const auto whole_time = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - started).count();
  const std::vector<nlohmann::json> whole = lines_without_times(out);
  REQUIRE(whole.size() > 3);
  double slowest = 0;
  std::size_t kept = 0, interrupted = 0;
  constexpr std::uint32_t kTrials = 8;
  for (std::uint32_t trial = 0; trial < kTrials; ++trial) {
    CAPTURE(trial);
    write_contents(out, "earlier\n");
    Process process(place.directory.path(), arguments);
    REQUIRE(process.wait_for_guard());
    std::this_thread::sleep_for(trial == 0 ? std::chrono::microseconds(0) : random_time(whole_time, trial));
    const auto sent = Clock::now();
    process.signal(trial % 2 == 0 ? SIGINT : SIGTERM);
    const int code = process.wait();
    slowest = std::max(slowest, std::chrono::duration<double>(Clock::now() - sent).count());
    CAPTURE(process.err());
    if (code == 0) {  // it was faster this time
      CHECK(lines_without_times(out) == whole);
      continue;
    }
    ++interrupted;
    CHECK(code == (trial % 2 == 0 ? 130 : 143));
    const std::size_t done = count_of(process.out(), ", suite ");
    kept += done;
    CHECK(
        last_line(process.err())
            .starts_with(fmt::format("graft: error: interrupted with {} of {} evaluations done", done, whole.size())));
    if (done == 0) {
      CHECK(contents(out) == "earlier\n");
    } else {
      CHECK(lines_without_times(out) == std::vector(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(done)));
    }
  }
  MESSAGE(interrupted << " of " << kTrials << " evaluations interrupted, " << kept << " suites kept, slowest end after "
                      << slowest << " s");
  CHECK(slowest < kMostSeconds);
}

TEST_CASE("signals: eval ends soon inside of baselines on long prompts") {
  const TemporaryDirectory place;
  train_in(place / "run",
           tiny_config({"train.steps=1", "task.curriculum.enabled=false", "task.points=401", "task.dim=20",
                        "train.batch=1", "eval.prompts=1", "eval.batch=1", "eval.baselines=[]"}));
  for (const char* baseline : {"boosted_trees", "two_layer_net", "tree_full"}) {
    CAPTURE(std::string(baseline));
    // One prompt on one thread, every position: minutes, if nothing asked before it is done.
    Process process(place.path(),
                    {"eval", "run", "--device", "cpu", "--threads", "1", "-o", "eval.baseline_positions=400", "-o",
                     fmt::format("eval.baselines=[\"{}\"]", baseline)});
    REQUIRE(process.wait_for_guard());
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    process.signal(SIGTERM);
    const auto sent = Clock::now();
    const int code = process.wait();
    CHECK(std::chrono::duration<double>(Clock::now() - sent).count() < kMostSeconds);
    CHECK((code == 143 || (code == 0 && baseline == std::string("tree_full"))));
  }
}

TEST_CASE("signals: training that has not begun ends soon, and the same command does it all") {
  const TemporaryDirectory place;
  write_contents(place / "tiny.toml", kTinyConfig);
  const std::uint64_t whole = train_in(place / "whole", tiny_config()).parameter_hash;
  int before = 0;
  for (std::uint32_t trial = 0; trial < 8; ++trial) {
    CAPTURE(trial);
    const std::string run = fmt::format("run_{}", trial);
    const std::vector<std::string> arguments = {"train",     "tiny.toml", "--device",  "cpu",
                                                "--threads", "1",         "--run-dir", run};
    Process process(place.path(), arguments);
    REQUIRE(process.wait_for_guard());
    std::this_thread::sleep_for(random_time(1 + 3000 * std::int64_t{trial}, 100 + trial));
    process.signal(SIGTERM);
    const int code = process.wait();
    if (code != 0) {
      CAPTURE(process.err());
      CHECK(code == 143);
      const std::string line = last_line(process.err());
      CHECK(line.starts_with("graft: error: interrupted "));
      CHECK(line.find("graft train") != std::string::npos);
      before += line.find("before the first step") != std::string::npos ? 1 : 0;
    }
    const Result resumed = run_graft(place.path(), arguments);
    CHECK(resumed.code == 0);
    CHECK(resumed.out.find(fmt::format("{:016x}", whole)) != std::string::npos);
  }
  MESSAGE(before << " of 8 runs were interrupted before their first step");
}

TEST_CASE("signals: sample ends soon") {
  const TrainedRun place;
  for (const int signal : {SIGINT, SIGTERM}) {
    Process process(place.directory.path(), {"sample", "tiny.toml", "-n", "1000000", "--json"});
    wait_for_output(process, "\"index\":3,");
    end_with(process, signal, "after ");
    std::string out = process.out();
    CHECK(out.ends_with("}\n"));  // whole lines
    CHECK(process.err().find(fmt::format("after {} of 1000000", count_of(out, "\n"))) != std::string::npos);
  }
}

TEST_CASE("signals: a second SIGINT ends what is no training, too") {
  const TrainedRun place;
  Process process(place.directory.path(), {"sample", "tiny.toml", "-n", "1000000"});
  REQUIRE(process.wait_for_guard());
  process.signal(SIGINT);
  process.signal(SIGINT);
  CHECK(process.wait() == 130);
  CHECK(last_line(process.err()).starts_with("graft: error: "));
}

TEST_CASE("signals: output that nobody reads is no error") {
  const TrainedRun place;
  const DeadPipe pipe;
  const auto run = [&](const std::vector<std::string>& arguments, Process::Streams streams) {
    Process process(place.directory.path(), arguments, streams);
    const int code = process.wait();
    return Result{code, process.out(), process.err()};
  };
  const Result sampled = run({"sample", "tiny.toml", "-n", "1000000"}, {.out = pipe.fd()});
  CHECK(sampled.code == 0);
  CHECK(sampled.err.empty());
  const Result evaluated =
      run({"eval", "run", "--suite", "all", "--out", "eval.jsonl", "--device", "cpu"}, {.out = pipe.fd()});
  CHECK(evaluated.code == 0);
  CHECK(evaluated.err.empty());
  CHECK(json_lines(place.directory / "eval.jsonl").size() > 3);  // somebody wants the file
  CHECK(run({"eval", "run", "--suite", "nothing", "--device", "cpu"}, {.err = pipe.fd()}).code == 2);

  const int full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  REQUIRE(full >= 0);
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"sample", "tiny.toml"}, {"train", "tiny.toml", "--dry-run"}}) {
    const Result refused = run(arguments, {.out = full});
    CHECK(refused.code == 3);
    CHECK(last_line(refused.err).starts_with("graft: error: stdout cannot be written"));
  }
  // A run has something to warn of, and goes on.
  std::string model = contents(place.directory / "run/ckpt/step_4/model.safetensors");
  fs::create_directory(place.directory / "run/ckpt/step_5");
  write_contents(place.directory / "run/ckpt/step_5/model.safetensors", model);
  const std::vector<std::string> longer = {"train",     "tiny.toml", "--device", "cpu",
                                           "--run-dir", "run",       "-o",       "train.steps=8"};
  CHECK(run(longer, {.out = full, .err = pipe.fd()}).code == 0);
  CHECK(fs::exists(place.directory / "run/ckpt/step_8/manifest.json"));
  ::close(full);

  // As `graft train 2>&1 | tee log` is, when Ctrl-C ends both.
  Process process(place.directory.path(),
                  {"train", "tiny.toml", "--device", "cpu", "--run-dir", "long", "-o", "train.steps=1000000"},
                  {.out = pipe.fd(), .err = pipe.fd()});
  for (int i = 0; i < 60000 && !fs::exists(place.directory / "long/metrics.jsonl"); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  process.signal(SIGINT);
  CHECK(process.wait() == 130);
  CHECK(nlohmann::json::parse(contents(place.directory / "long/run.json")).at("exit_status") == 130);
}

TEST_CASE("signals: benchmarks end soon and report what is timed") {
  const TemporaryDirectory place;
  if (run_graft(place.path(), {"--help"}).out.find("bench") == std::string::npos) return;  // built without them
  for (const char* what : {"ops", "step"}) {
    CAPTURE(std::string(what));
    std::vector<std::string> arguments = {"bench", what, "--device", "cpu", "--threads", "1", "--json", "out.json"};
    if (what == std::string_view("step")) {
      arguments.insert(arguments.end(), {"--filter", "2x128", "-o", "train.batch=1"});
    } else {
      arguments.insert(arguments.end(), {"--filter", "activation|residual", "--warm"});
    }
    Process process(place.path(), arguments);
    wait_for_output(process, what == std::string_view("step") ? "2x128" : "/fp32");
    end_with(process, SIGTERM, "with ");
    const nlohmann::json written = nlohmann::json::parse(contents(place / "out.json"));
    const std::size_t done = written.at(what == std::string_view("step") ? "rows" : "benchmarks").size();
    CHECK(done >= 1);
    CHECK(last_line(process.err()).find(fmt::format("interrupted with {} of ", done)) != std::string::npos);
  }
}

}  // namespace
}  // namespace graft::test
