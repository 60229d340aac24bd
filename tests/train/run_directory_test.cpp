#include "train/run_directory.h"

#include <doctest/doctest.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): setenv is POSIX
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <optional>
#include <string>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::contents;
using test::TemporaryDirectory;
using test::write_contents;

RunOptions example(const TemporaryDirectory& directory) {
  RunOptions options;
  options.root = directory / "runs";
  options.name = "quickstart";
  options.config_hash = "0123456789abcdef";
  options.config_text = "# mine\n[run]\nname = \"quickstart\"\n";
  options.resolved_text = "resolved\n";
  options.info = {{"seed", 7}, {"command_line", {"graft", "train"}}, {"versions", {{"graft", "1"}}}};
  return options;
}

json record(const fs::path& run) { return json::parse(contents(run / "run.json")); }

/// Every file of a directory with its content and time.
std::map<std::string, std::pair<std::string, fs::file_time_type>> snapshot(const fs::path& directory) {
  std::map<std::string, std::pair<std::string, fs::file_time_type>> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    files[entry.path().string()] = {entry.is_regular_file() ? contents(entry.path()) : "", fs::last_write_time(entry)};
  }
  return files;
}

TEST_CASE("run directory: a new run") {
  const TemporaryDirectory directory;
  const RunOptions options = example(directory);
  CHECK(RunDirectory::locate(options) == directory / "runs" / "quickstart-01234567");
  RunDirectory::check(options);
  CHECK_FALSE(fs::exists(directory / "runs"));
  ::setenv("SLURM_JOB_ID", "4711", 1);
  {
    RunDirectory run(options);
    ::unsetenv("SLURM_JOB_ID");
    CHECK_FALSE(run.existed());
    CHECK(run.warnings().empty());
    CHECK(contents(run.path() / "config.toml") == options.config_text);
    CHECK(contents(run.path() / "resolved.toml") == options.resolved_text);
    json r = record(run.path());
    CHECK(r["name"] == "quickstart");
    CHECK(r["config_hash"] == "0123456789abcdef");
    CHECK(r["seed"] == 7);
    CHECK(r["command_line"] == json({"graft", "train"}));
    CHECK(r["job"] == json{{"SLURM_JOB_ID", "4711"}});
    CHECK(r["exit_status"].is_null());
    CHECK(r["ended"].is_null());
    CHECK(r["earlier"].empty());
    CHECK(r["host"].is_string());
    CHECK(r["started"].get<std::string>().size() == std::string("2024-01-01T00:00:00Z").size());
    run.update({{"parameters", 123}});
    CHECK(record(run.path())["parameters"] == 123);
    run.finish(5, "numerics");
    r = record(run.path());
    CHECK(r["exit_status"] == 5);
    CHECK(r["message"] == "numerics");
    CHECK(r["ended"].is_string());
    CHECK(r["parameters"] == 123);
  }
}

TEST_CASE("run directory: continuing keeps the record of what ran before") {
  const TemporaryDirectory directory;
  RunOptions options = example(directory);
  RunDirectory(options).finish(85, "requeue");
  write_contents(RunDirectory::locate(options) / "metrics.jsonl", "{}\n");
  options.resolved_text = "more steps\n";
  options.info["seed"] = 7;
  const RunDirectory run(options);
  CHECK(run.existed());
  const json r = record(run.path());
  CHECK(r["exit_status"].is_null());
  REQUIRE(r["earlier"].size() == 1);
  CHECK(r["earlier"][0]["exit_status"] == 85);
  CHECK(r["earlier"][0]["resolved_toml"] == "resolved\n");
  CHECK_FALSE(r["earlier"][0].contains("earlier"));
  CHECK(contents(run.path() / "resolved.toml") == "more steps\n");
  CHECK(contents(run.metrics()) == "{}\n");
}

TEST_CASE("run directory: a directory with another run is refused and not touched") {
  const TemporaryDirectory directory;
  RunOptions options = example(directory);
  options.directory = directory / "mine";
  options.resolved_text = "[a]\nc = 2\nd = 3\n\n[optimizer]\nlr = 0.001\n\n[train]\nbatch = 64\nsteps = 1\n";
  { const RunDirectory run(options); }
  const auto before = snapshot(directory.path());

  RunOptions other = options;
  other.config_hash = "fedcba9876543210";
  CHECK_THROWS_WITH_AS(RunDirectory{other}, doctest::Contains("0123456789abcdef"), ConfigError);
  CHECK_THROWS_WITH_AS(RunDirectory{other}, doctest::Contains("fedcba9876543210"), ConfigError);
  CHECK_THROWS_AS(RunDirectory::check(other), ConfigError);
  other.resolved_text = "[optimizer]\nlr = 0.1\n\n[train]\nbatch = 1\nsteps = 9\n";
  CHECK_THROWS_WITH_AS(RunDirectory::check(other),
                       doctest::Contains("  optimizer.lr: 0.001, now 0.1\n  ... and 1 more\nrun: "), ConfigError);
  CHECK_THROWS_WITH_AS(RunDirectory::check(other), doctest::Contains("  a.d: 3, now not set\n"), ConfigError);
  RunOptions never = options;
  never.resume = Resume::parse("never");
  CHECK_THROWS_WITH_AS(RunDirectory{never}, doctest::Contains("--resume is never"), ConfigError);
  RunOptions missing = options;
  missing.resume = Resume::parse((directory / "no" / "step_5").string());
  CHECK_THROWS_WITH_AS(RunDirectory{missing}, doctest::Contains("no such checkpoint"), DataError);
  CHECK(snapshot(directory.path()) == before);
}

TEST_CASE("run directory: files of something else are refused and not touched") {
  const TemporaryDirectory directory;
  RunOptions options = example(directory);
  options.directory = directory / "mine";
  write_contents(options.directory, "a file");
  CHECK_THROWS_WITH_AS(RunDirectory{options}, doctest::Contains("not a directory"), ConfigError);
  fs::remove(options.directory);
  fs::create_directory(options.directory);
  write_contents(options.directory / "thesis.tex", "text");
  const auto before = snapshot(directory.path());
  CHECK_THROWS_WITH_AS(RunDirectory{options}, doctest::Contains("holds no run"), ConfigError);
  CHECK(snapshot(directory.path()) == before);
  fs::remove(options.directory / "thesis.tex");
  { CHECK_FALSE(RunDirectory(options).existed()); }  // an empty one will do
  write_contents(options.directory / "run.json", "{\"name\":");
  CHECK_THROWS_WITH_AS(RunDirectory{options}, doctest::Contains("run.json is damaged"), DataError);
}

TEST_CASE("run directory: a place among another run's checkpoints is refused") {
  const TemporaryDirectory directory;
  RunOptions options = example(directory);
  options.directory = directory / "outer";
  { const RunDirectory outer(options); }
  fs::create_directories(directory / "outer/ckpt/step_2");
  fs::create_directory_symlink(directory / "outer/ckpt", directory / "elsewhere");
  for (const char* place : {"outer/ckpt/step_2", "outer/ckpt/step_2/inner", "outer/ckpt/mine", "elsewhere/mine"}) {
    CAPTURE(place);
    options.directory = directory / place;
    CHECK_THROWS_WITH_AS(RunDirectory{options}, doctest::Contains("lies among the checkpoints of the run"),
                         ConfigError);
  }
  options.directory = directory / "ckpt/mine";  // a folder that only has the name
  CHECK_NOTHROW(RunDirectory{options});
}

TEST_CASE("run directory: folders above it are made") {
  const TemporaryDirectory directory;
  RunOptions options = example(directory);
  options.directory = directory / "a/b//c/../d/";
  { const RunDirectory made(options); }
  CHECK(fs::exists(directory / "a/b/d/run.json"));
  options.directory = directory / "a/b/d/run.json/e";
  CHECK_THROWS_WITH_AS(RunDirectory{options}, doctest::Contains("run.json"), Error);
}

TEST_CASE("run directory: what a process left that died while creating it is no run") {
  const TemporaryDirectory directory;
  RunOptions options = example(directory);
  options.directory = directory / "mine";
  options.resume = Resume::parse("never");
  fs::create_directory(options.directory);
  write_contents(options.directory / ".lock", "pid 1 on nowhere");
  write_contents(options.directory / ".run.json.tmp-1", "{");
  CHECK_FALSE(RunDirectory(options).existed());
}

TEST_CASE("run directory: one process at a time") {
  const TemporaryDirectory directory;
  const RunOptions options = example(directory);
  std::optional<RunDirectory> first(options);
  CHECK_THROWS_WITH_AS(RunDirectory{options}, doctest::Contains("in use by another process: pid"), EnvironmentError);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int result = 1;
    try {
      const RunDirectory second(options);
    } catch (const EnvironmentError&) {
      result = 0;
    }
    ::_exit(result);
  }
  int status = 1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  first.reset();
  CHECK(RunDirectory(options).existed());
}

TEST_CASE("run directory: names and --resume") {
  const TemporaryDirectory directory;
  RunOptions options = example(directory);
  for (const char* name : {"", "..", "a/b", ".hidden", "a b", "a\n"}) {
    options.name = name;
    CHECK_THROWS_WITH_AS(RunDirectory{options}, doctest::Contains("run.name"), ConfigError);
  }
  options.name = "lr_2-128.v1";
  CHECK(RunDirectory::locate(options).filename() == "lr_2-128.v1-01234567");
  CHECK_FALSE(fs::exists(directory / "runs"));
  CHECK(Resume::parse("auto").mode == Resume::Mode::Auto);
  CHECK(Resume::parse("never").mode == Resume::Mode::Never);
  CHECK(Resume::parse("./auto").mode == Resume::Mode::Path);
  CHECK(Resume::parse("ckpt/step_5").path == "ckpt/step_5");
  CHECK_THROWS_AS((void)Resume::parse(""), ConfigError);
}

}  // namespace
}  // namespace graft
