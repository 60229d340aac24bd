// Who may remove checkpoints while a run is using their folder.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <string>

#include "tests/support/temporary_directory.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"
#include "train/checkpoint_lock.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

TEST_CASE("checkpoint lock: a folder has one holder, by whatever path, as long as it lives") {
  const TemporaryDirectory directory;
  const fs::path folder = directory / "ckpt", link = directory / "link";
  fs::create_directory_symlink("ckpt", link);
  CheckpointLock later;
  {
    CheckpointLock lock;
    CHECK(lock.take(folder));  // not there yet
    fs::create_directory(folder);
    CHECK(lock.take(folder));
    CHECK(lock.take(link));  // its own
    CHECK_FALSE(later.take(link));
    CHECK_THROWS_WITH_AS(later.require(link), doctest::Contains("in use by another process"), EnvironmentError);
    // Another folder of that name: the lock goes with the run, which saves there.
    fs::rename(folder, directory / "away");
    fs::create_directory(folder);
    CHECK(lock.take(folder));
    CHECK_FALSE(later.take(folder));
  }
  CHECK(later.take(folder));
}

TEST_CASE("checkpoint lock: a run whose folder lies elsewhere keeps gc and other runs off it") {
  const TemporaryDirectory directory;
  const fs::path scratch = directory / "scratch";
  const RunConfig config = tiny_config({"checkpoint.every=10", "checkpoint.keep=10"});
  for (const char* name : {"run", "other"}) {
    train_in(directory / name, tiny_config({"train.steps=2"}));
    fs::remove_all(scratch);
    fs::rename(directory / name / "ckpt", scratch);
    fs::create_directory_symlink(scratch, directory / name / "ckpt");
  }
  const auto collect = [&] { return run_graft(directory.path(), {"ckpt", "gc", "--keep", "1", "scratch"}); };
  {
    TinySession tiny(config);
    RunDirectory run(options_in(directory / "run", config));
    const NullStream out;
    Trainer trainer(tiny.session, run, out.file());
    trainer.resume(CheckpointDirectory::load(scratch / "step_2"));
    static_cast<void>(trainer.run());
    const Result refused = collect();
    CHECK(refused.code == 3);
    CHECK(refused.err.find("scratch is in use by another process") != std::string::npos);
    CHECK(fs::exists(scratch / "step_10"));
    CHECK_THROWS_WITH_AS(train_in(directory / "other", config), doctest::Contains("in use by another process"),
                         EnvironmentError);
  }
  CHECK(collect().code == 0);
  CHECK_FALSE(fs::exists(scratch / "step_10"));
}

TEST_CASE("checkpoint lock: a folder that the run makes itself is held from the first save on") {
  const TemporaryDirectory directory;
  const fs::path run_path = directory / "run";
  const RunConfig config = tiny_config({"train.steps=4"});
  TinySession tiny(config);
  RunDirectory run(options_in(run_path, config));
  const NullStream out;
  Trainer trainer(tiny.session, run, out.file());
  tiny.session.initialize();
  CHECK_FALSE(fs::exists(run_path / "ckpt"));
  static_cast<void>(trainer.run());
  CheckpointLock other;
  CHECK_FALSE(other.take(run_path / "ckpt"));
}

TEST_CASE("checkpoint lock: gc says which lock is missing where a save may be under way") {
  const TemporaryDirectory directory;
  train_in(directory / "run", tiny_config({"train.steps=4"}));
  fs::create_directory(directory / "run/ckpt/.tmp-step_8-1");
  fs::remove(directory / "run/.lock");
  for (const char* target : {"run", "run/ckpt"}) {
    const Result result = run_graft(directory.path(), {"ckpt", "gc", target});
    CAPTURE(result.err);
    CHECK(result.code == 3);
    CHECK(result.err.find(fmt::format("the .lock in {}, which would tell, is gone", (directory / "run").string())) !=
          std::string::npos);
    CHECK(result.err.find("no run's directory") == std::string::npos);
  }
  fs::remove(directory / "run/run.json");
  const Result copy = run_graft(directory.path(), {"ckpt", "gc", "run/ckpt"});
  CHECK(copy.code == 3);
  CHECK(copy.err.find("no run's directory is around it") != std::string::npos);
}

}  // namespace
}  // namespace graft::test
