// Signals at any moment, resumes at any step of any model, and runs long enough to show a leak.

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "engine/philox.h"
#include "tests/support/parity.h"
#include "tests/support/process_limits.h"
#include "tests/support/share.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/watched_stream.h"
#include "tests/train/tiny_run.h"
#include "train/signals.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

std::int64_t below(std::int64_t bound, std::uint32_t index) {
  return Draw{29, RandomDomain::Bootstrap, 0, 0}.below(static_cast<std::uint32_t>(bound), 2, index);
}

/// One process of a run, stopped by SIGTERM after a while unless it is done before. Returns whether it was stopped.
bool train_for(const fs::path& directory, const RunConfig& config, Backend backend, std::chrono::microseconds while_) {
  const NullStream out;
  TinySession tiny(config, backend);
  RunDirectory run(options_in(directory, config));
  TrainerOptions trainer_options;
  trainer_options.guards_signals = false;  // this guard is there before the signal can come
  const SignalGuard guard;
  Trainer trainer(tiny.session, run, out.file(), trainer_options);
  if (const auto checkpoint = CheckpointDirectory(run.checkpoints()).load_latest()) {
    trainer.resume(*checkpoint);
  } else {
    tiny.session.initialize();
  }
  std::thread interrupter([while_] {
    std::this_thread::sleep_for(while_);
    std::raise(SIGTERM);
  });
  const TrainingOutcome outcome = trainer.run();
  interrupter.join();
  return outcome.signal != 0;
}

void check_signals(Backend backend, int trials) {
  // Evaluations with a baseline that takes its time, and checkpoints, so that a signal hits each of them too.
  const std::int64_t steps = test_steps(60);
  const RunConfig config =
      tiny_config({fmt::format("train.steps={}", steps), "eval.every=7", "checkpoint.every=9", "eval.prompts=64",
                   "eval.baselines=[\"tree_full\", \"zero\"]", "eval.baseline_prompts=64"});
  const TemporaryDirectory directory;
  const auto start = std::chrono::steady_clock::now();
  train_in(directory / "whole", config, nullptr, backend);
  std::int64_t unit = 2000;  // microseconds
  if (is_shared()) {         // under a tool a step may take a second: that many signals would come before the first one
    const std::chrono::microseconds whole =
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start);
    unit = std::max<std::int64_t>(unit, whole.count() / 40);
  }
  int interruptions = 0;
  int runs = 0;
  for (int trial = 0; trial < trials; ++trial) {
    if (!in_share(fmt::format("trial {}", trial))) continue;
    ++runs;
    const fs::path run = directory / fmt::format("trial_{}", trial);
    bool stopped = true;
    for (std::uint32_t part = 0; stopped; ++part) {
      REQUIRE(part < 400);
      // longer and longer, so that the run ends however slow the machine is
      const std::int64_t most = unit * (1 + std::int64_t{part});
      stopped = train_for(run, config, backend,
                          std::chrono::microseconds(below(most, 1000 * static_cast<std::uint32_t>(trial) + part)));
      interruptions += stopped ? 1 : 0;
    }
    CHECK(lines_without_times(run / "metrics.jsonl") == lines_without_times(directory / "whole/metrics.jsonl"));
    CHECK(lines_without_times(run / "eval.jsonl") == lines_without_times(directory / "whole/eval.jsonl"));
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      const fs::path last = fmt::format("ckpt/step_{}/{}", steps, file);
      CHECK(contents(run / last) == contents(directory / "whole" / last));
    }
  }
  CHECK(interruptions >= runs);  // the first signal comes before a run can be done
  MESSAGE(runs << " runs, " << interruptions << " signals at random moments");
}

TEST_CASE("interruption: signals at random moments leave the run that was never interrupted") {
  check_signals(Backend::Cpu, 4);
}
TEST_CASE("interruption: CUDA: signals at random moments leave the run that was never interrupted") {
  if (skip_cuda()) return;
  check_signals(Backend::Cuda, 2);
}

TEST_CASE("interruption: a second SIGINT leaves at once, with the old checkpoint intact") {
  const TemporaryDirectory directory;
  // Steps of about a second: the second signal arrives while one of them is under way.
  const RunConfig config = tiny_config({"train.batch=4096", "model.width=64", "checkpoint.every=1"});
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    static_cast<void>(std::freopen((directory / "stderr").c_str(), "w", stderr));
    try {
      train_in(directory / "run", config);
    } catch (...) {
      _exit(99);
    }
    _exit(0);
  }
  const auto deadline = std::chrono::steady_clock::now() + 60s;
  while (!fs::exists(directory / "run/ckpt/latest") && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(5ms);
  }
  kill(child, SIGINT);
  std::this_thread::sleep_for(20ms);
  kill(child, SIGINT);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
  CHECK(contents(directory / "stderr").find("graft: error: stopped at once") != std::string::npos);
  const auto checkpoint = CheckpointDirectory(directory / "run/ckpt").load_latest();
  REQUIRE(checkpoint.has_value());
  CHECK(checkpoint->step >= 1);
}

/// Ends in the same weights whether or not it stopped on the way.
void check_resume(const std::vector<std::string>& keys, Backend backend, std::uint32_t draw) {
  const auto config = [&](std::int64_t steps) {
    std::vector<std::string> all = keys;
    all.push_back(fmt::format("train.steps={}", steps));
    return tiny_config(all);
  };
  constexpr std::int64_t kSteps = 24;
  const TemporaryDirectory directory;
  const std::uint64_t whole = train_in(directory / "whole", config(kSteps), nullptr, backend).parameter_hash;
  const std::int64_t stop = 1 + below(kSteps - 1, draw);
  CAPTURE(stop);
  train_in(directory / "run", config(stop), nullptr, backend);
  CHECK(train_in(directory / "run", config(kSteps), nullptr, backend).parameter_hash == whole);
}

void check_families(Backend backend, const std::vector<const char*>& precisions) {
  std::uint32_t draw = 5000;
  for (const char* precision : precisions) {
    const std::string mode = fmt::format("train.precision={}", precision);
    CAPTURE(mode);
    for (const char* preset : {"transformer", "transformer_nope", "mamba", "s4", "s4_mamba", "standard_hybrid",
                               "mambaformer", "transformer_initial_mamba", "mamba_middle_hybrid"}) {
      CAPTURE(std::string(preset));
      const std::uint32_t own = draw++;
      if (!in_share(fmt::format("{} {}", preset, precision))) continue;
      check_resume({mode, fmt::format("model.preset={}", preset), "eval.baselines=[]"}, backend, own);
    }
  }
}

TEST_CASE("interruption: every model of the in-context-learning study resumes at random steps") {
  check_families(Backend::Cpu, {"fp32", "bf16"});
}
TEST_CASE("interruption: CUDA: every model of the in-context-learning study resumes at random steps") {
  if (skip_cuda()) return;
  check_families(Backend::Cuda, {"fp32", "tf32", "bf16"});
}

void check_token_families(Backend backend, const std::vector<const char*>& precisions) {
  std::uint32_t draw = 6000;
  for (const char* precision : precisions) {
    for (const char* preset :
         {"gpt_neox", "gpt_neox_nope", "mamba", "mamba2", "hybrid_interleaved", "hybrid_two_stream"}) {
      CAPTURE(std::string(preset));
      CAPTURE(std::string(precision));
      const std::uint32_t own = draw++;
      if (!in_share(fmt::format("{} {}", preset, precision))) continue;
      std::vector<std::string> keys = {"task.name=ngram_retrieval",
                                       fmt::format("model.preset={}", preset),
                                       fmt::format("train.precision={}", precision),
                                       "task.length_min=20",
                                       "task.length_max=30",
                                       "task.eval_length=30",
                                       "model.width=32",
                                       "model.heads=2",
                                       "model.layers=2",
                                       "train.batch=8",
                                       "schedule.total=24",
                                       "schedule.warmup=3",
                                       "eval.every=0",
                                       "eval.prompts=8",
                                       "eval.batch=8",
                                       "train.log_every=4"};
      if (preset == std::string_view("mamba2")) keys.emplace_back("model.head_dim=32");
      const auto config = [&](std::int64_t steps) {
        std::vector<std::string> all = keys;
        all.push_back(fmt::format("train.steps={}", steps));
        return parse_config("# all defaults\n", "tokens.toml", all);
      };
      const TemporaryDirectory directory;
      const std::uint64_t whole = train_in(directory / "whole", config(24), nullptr, backend).parameter_hash;
      const std::int64_t stop = 1 + below(23, own);
      CAPTURE(stop);
      train_in(directory / "run", config(stop), nullptr, backend);
      CHECK(train_in(directory / "run", config(24), nullptr, backend).parameter_hash == whole);
    }
  }
}

TEST_CASE("interruption: every model of the retrieval study resumes at random steps") {
  check_token_families(Backend::Cpu, {"fp32", "bf16"});
}
TEST_CASE("interruption: CUDA: every model of the retrieval study resumes at random steps") {
  if (skip_cuda()) return;
  check_token_families(Backend::Cuda, {"fp32", "tf32", "bf16"});
}

/// What the process holds.
struct Held {
  std::int64_t resident;  // bytes
  std::int64_t descriptors;
};

Held held_now() {
  const auto resident = static_cast<std::int64_t>(memory_in_use().resident);
  std::int64_t descriptors = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd")) ++descriptors;
  return {resident, descriptors};
}

void check_endurance(Backend backend) {
  const TemporaryDirectory directory;
  std::vector<Held> samples;  // whenever an evaluation is printed
  const WatchedStream out([&](std::string_view line) {
    if (line.find("eval at step") != std::string_view::npos) samples.push_back(held_now());
  });
  const RunConfig config = tiny_config({"train.steps=4000", "schedule.total=4000", "eval.every=50",
                                        "checkpoint.every=40", "checkpoint.keep=2", "checkpoint.keep_every=0"});
  CHECK(train_in(directory / "run", config, out.file(), backend).step == 4000);
  REQUIRE(samples.size() == 80);
  // A checkpoint under way has files open; the number may vary, and must not rise.
  std::int64_t early = 0;
  std::int64_t late = 0;
  for (std::size_t i = 10; i < 45; ++i) early = std::max(early, samples[i].descriptors);
  for (std::size_t i = 45; i < 80; ++i) late = std::max(late, samples[i].descriptors);
  const std::int64_t growth = samples.back().resident - samples[20].resident;  // over 3000 steps
  MESSAGE("4000 steps, 100 checkpoints, 80 evaluations: resident memory "
          << samples[20].resident / 1024 << " KiB after 1050 steps, " << samples.back().resident / 1024
          << " KiB at the end; descriptors at most " << early << " and " << late);
  CHECK(late <= early + 1);
  CHECK(growth < 2 * 1024 * 1024);
}

TEST_SUITE("slow") {
  TEST_CASE("interruption: memory and descriptors do not grow over thousands of steps") {
    check_endurance(Backend::Cpu);
  }
  TEST_CASE("interruption: CUDA: memory and descriptors do not grow over thousands of steps") {
    if (skip_cuda()) return;
    check_endurance(Backend::Cuda);
  }
}

}  // namespace
}  // namespace graft::test
