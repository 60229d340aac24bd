#include "train/checkpoint_writer.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/example_state.h"

namespace graft::test {
namespace {

CheckpointView empty_view(std::int64_t step) {
  CheckpointView view;
  view.state = example_state(step);
  view.step = step;
  return view;
}

CheckpointWriter::Job job(std::int64_t step) {
  return {step, [step] { return empty_view(step); }};
}

TEST_CASE("checkpoint writer: saves in the background, one at a time, and prunes") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  CheckpointWriter writer(checkpoints, {.keep_last = 2});
  std::atomic<bool> release = false;
  writer.start({1, [&] {
                  while (!release) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                  return empty_view(1);
                }});
  CHECK(writer.busy());  // start() did not wait
  CHECK(writer.take_reports().empty());
  release = true;
  for (const std::int64_t step : {2, 3, 4}) writer.start(job(step));
  writer.wait();
  CHECK_FALSE(writer.busy());
  const auto reports = writer.take_reports();
  REQUIRE(reports.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(reports[i].step == static_cast<std::int64_t>(i) + 1);
    CHECK(reports[i].problem.empty());
    CHECK(reports[i].final);
  }
  CHECK(writer.take_reports().empty());
  CHECK(checkpoints.list().size() == 2);
  CHECK(checkpoints.list()[1].latest);
}

TEST_CASE("checkpoint writer: a save that fails is tried again and every failure is told") {
  const TemporaryDirectory directory;
  int asked = 0;
  CheckpointOptions options;
  options.available_bytes = [&](const auto&) { return std::uint64_t{++asked <= 2 ? 10U : 1U << 30U}; };
  CheckpointDirectory checkpoints(directory.path(), options);
  CheckpointWriter writer(checkpoints, {}, {.attempts = 3, .first_pause = 0.01, .factor = 1});
  writer.start(job(7));
  writer.wait();
  const auto reports = writer.take_reports();
  REQUIRE(reports.size() == 3);
  CHECK(reports[0].problem.find("10 are available") != std::string::npos);
  CHECK_FALSE(reports[1].final);
  CHECK(reports[2].problem.empty());
  CHECK(checkpoints.load_latest().value().step == 7);
}

TEST_CASE("checkpoint writer: gives up after its attempts, and the next save starts anew") {
  const TemporaryDirectory directory;
  bool full = true;
  CheckpointOptions options;
  options.available_bytes = [&](const auto&) { return std::uint64_t{full ? 10U : 1U << 30U}; };
  CheckpointDirectory checkpoints(directory.path(), options);
  CheckpointWriter writer(checkpoints, {}, {.attempts = 2, .first_pause = 1000, .factor = 1});
  writer.start(job(1));
  const auto before = std::chrono::steady_clock::now();
  writer.wait();  // does not sit through the pause
  CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds(100));
  auto reports = writer.take_reports();
  REQUIRE(reports.size() == 2);
  CHECK(reports[1].final);
  CHECK_FALSE(reports[1].problem.empty());
  full = false;
  writer.start(job(2));
  writer.wait();
  CHECK(checkpoints.load_latest().value().step == 2);
}

TEST_CASE("checkpoint writer: what is no file system's failure is not tried again") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  CheckpointWriter writer(checkpoints, {});
  writer.start({1, []() -> CheckpointView { throw DeviceError("the device is gone"); }});
  writer.wait();
  const auto reports = writer.take_reports();
  REQUIRE(reports.size() == 1);
  CHECK(reports[0].final);
  CHECK(reports[0].problem == "the device is gone");
  CHECK_THROWS_AS(CheckpointWriter(checkpoints, {}, {.attempts = 0}), ArgumentError);
}

TEST_CASE("checkpoint writer: several at once, and destroying one finishes its save") {
  std::vector<std::unique_ptr<TemporaryDirectory>> directories;
  for (int i = 0; i < 4; ++i) directories.push_back(std::make_unique<TemporaryDirectory>());
  std::vector<std::thread> owners;
  owners.reserve(directories.size());
  for (const auto& directory : directories) {
    owners.emplace_back([&directory] {
      CheckpointDirectory checkpoints(directory->path());
      CheckpointWriter writer(checkpoints, {.keep_last = 2});
      for (std::int64_t step = 1; step <= 20; ++step) writer.start(job(step));
    });
  }
  for (std::thread& owner : owners) owner.join();
  for (const auto& directory : directories) {
    CHECK(CheckpointDirectory(directory->path()).load_latest().value().step == 20);
  }
}

}  // namespace
}  // namespace graft::test
