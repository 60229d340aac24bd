// A run whose directory moves, or seems to, while it trains.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "engine/error.h"
#include "tests/support/faults.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"
#include "train/file_io.h"
#include "train/json_lines.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

/// A directory where asking for anything is an error, and not that it is not there: what a network file system may
/// answer for a while.
void make_unreadable(const fs::path& path) {
  fs::rename(path, path.string() + "_away");
  fs::create_symlink(path, path);
}

/// Trains, and has `act` done during the first steps, before anything is evaluated or saved. Returns how the run ended.
std::string message_of(const RunConfig& config, const fs::path& run, const std::function<void()>& act,
                       std::vector<Fault> faults = {}) {
  TinySession tiny(config);
  RunDirectory directory(options_in(run, config));
  const NullStream out;
  TrainerOptions options;
  const auto inject = injecting(tiny.experiment.params, std::move(faults));
  int calls = 0;
  options.intercept = [&](const Context& ctx) {
    if (++calls == 2) act();
    return inject(ctx);
  };
  Trainer trainer(tiny.session, directory, out.file(), std::move(options));
  tiny.session.initialize();
  try {
    static_cast<void>(trainer.run());
  } catch (const Error& error) {
    CHECK_THROWS_AS(directory.finish(static_cast<int>(error.exit_code())), EnvironmentError);
    return error.what();
  }
  return {};
}

TEST_CASE("run place: an error of the file system does not mean that a file is gone") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "run", file = path / "log";
  fs::create_directory(path);
  const JsonLines log(file);
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  REQUIRE(fd >= 0);
  CHECK(find_at(file, fd) == FoundAt::Same);
  make_unreadable(path);
  CHECK(find_at(file, fd) == FoundAt::Same);
  CHECK(log.in_place());
  fs::remove(path);
  CHECK(find_at(file, fd) == FoundAt::Nothing);
  write_contents(path, "no directory");
  CHECK(find_at(file, fd) == FoundAt::Nothing);
  CHECK_FALSE(log.in_place());
  fs::remove(path);
  fs::create_directory(path);
  write_contents(file, "another");
  CHECK(find_at(file, fd) == FoundAt::Another);
  CHECK_FALSE(log.in_place());
  ::close(fd);
}

TEST_CASE("run place: a directory is its own until it is known to be another or none") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "run", away = directory / "run_away";
  RunDirectory run(options_in(path, tiny_config()));
  using Place = RunDirectory::Place;
  CHECK(run.place() == Place::Own);
  make_unreadable(path);
  CHECK(run.place() == Place::Own);
  fs::remove(path);
  CHECK(run.place() == Place::Gone);
  fs::copy(away, path, fs::copy_options::recursive);
  CHECK(run.place() == Place::OtherLock);
  fs::remove(path / "run.json");
  CHECK(run.place() == Place::Gone);
  fs::remove_all(path);
  { const RunDirectory other(options_in(path, tiny_config())); }
  nlohmann::json record = nlohmann::json::parse(contents(path / "run.json"));
  record["pid"] = -1;
  write_contents(path / "run.json", record.dump());
  CHECK(run.place() == Place::Gone);
  fs::remove_all(path);
  fs::rename(away, path);
  CHECK(run.place() == Place::Own);
  fs::remove(path / ".lock");  // taken for a leftover
  CHECK(run.place() == Place::Own);
}

TEST_CASE("run place: a .lock that is replaced is named, and the last save refused") {
  const TemporaryDirectory directory;
  const fs::path run = directory / "run";
  const std::string message = message_of(tiny_config({"train.steps=20"}), run, [&] {
    fs::remove(run / ".lock");
    write_contents(run / ".lock", "");
  });
  CAPTURE(message);
  CHECK(message.find("the .lock in " + run.string() + " was replaced") != std::string::npos);
  CHECK(message.find("and run the same command to continue") != std::string::npos);
  CHECK(message.find("--run-dir") == std::string::npos);
  CHECK_FALSE(fs::exists(run / "ckpt"));
}

TEST_CASE("run place: nothing is written where a directory was, neither baselines nor a report on numerics") {
  const TemporaryDirectory directory;
  for (const bool numerics : {false, true}) {
    CAPTURE(numerics);
    const fs::path run = directory / (numerics ? "numerics" : "baselines");
    std::vector<Fault> faults;
    if (numerics) faults.push_back({.tensor = "gradient of read_in.weight", .steps = 100});
    const std::string message = message_of(
        tiny_config({"train.steps=20"}), run,
        [&] {
          fs::rename(run, run.string() + "_away");
          fs::create_directory(run);
        },
        std::move(faults));
    CAPTURE(message);
    CHECK(message.find("moved, removed or replaced") != std::string::npos);
    CHECK((message.find("the report failed") != std::string::npos) == numerics);
    CHECK(fs::is_empty(run));
  }
}

}  // namespace
}  // namespace graft::test
