// The program in surroundings that a shell can give it: closed streams, limits of size and of addresses.

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/support/process_limits.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

constexpr int kKilled = 137;

/// Runs a line of shell in the directory, $graft being the program with a limit of time; returns the exit code, kKilled
/// where that was reached.
int shell(const fs::path& directory, const std::string& line) {
  const std::string text =
      fmt::format("cd '{}' && graft='timeout -s KILL 60 {}' && {}", directory.string(), program().string(), line);
  const int status = std::system(text.c_str());
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

const std::string kTrain = "$graft train tiny.toml --device cpu --threads 1 --run-dir ";

TEST_CASE("program: a run without standard streams writes its own files only") {
  const TemporaryDirectory place;
  write_contents(place / "tiny.toml", kTinyConfig);
  REQUIRE(shell(place.path(), kTrain + "open > /dev/null") == 0);
  for (const std::string closed : {"<&- >&- 2>&-", ">&- 2>&-", "<&-", "2>&-"}) {
    CAPTURE(closed);
    const fs::path run = place / "closed";
    fs::remove_all(run);
    // What is left open is a file, so that its number is no reason to be safe.
    CHECK(shell(place.path(), fmt::format("({} -o eval.every=10 {}) > out.txt 2>&1", kTrain + "closed", closed)) == 0);
    CHECK(lines_without_times(run / "metrics.jsonl") == lines_without_times(place / "open/metrics.jsonl"));
    CHECK(steps_of(run / "eval.jsonl") == std::vector<std::int64_t>{10, 20, 30, 40, 50, 60});
    CHECK(contents(run / ".lock").size() < 100);
    CHECK(contents(run / ".lock").find("step") == std::string::npos);
  }
  // Output that goes nowhere is still an error where it is all there is.
  CHECK(shell(place.path(), "$graft sample tiny.toml >&- 2> said.txt") == 3);
  CHECK(contents(place / "said.txt").find("graft: error: stdout cannot be written") != std::string::npos);
}

TEST_CASE("program: a limit on the size of files ends a command with a line") {
  const TemporaryDirectory place;
  write_contents(place / "tiny.toml", kTinyConfig);
  train_in(place / "run", tiny_config({"train.steps=2"}));
  for (const std::string arguments :
       {"--version", "--help", "ckpt ls run", "ckpt ls --json run", "inspect tiny.toml", "sample tiny.toml"}) {
    CAPTURE(arguments);
    CHECK(
        shell(place.path(), fmt::format("{{ (ulimit -f 0; $graft {} > out.txt) 2>&1; echo code $?; }} | cat > said.txt",
                                        arguments)) == 0);
    const std::string said = contents(place / "said.txt");
    CHECK(said.find("graft: error: stdout cannot be written: ") != std::string::npos);
    CHECK(said.ends_with("code 3\n"));
  }
}

TEST_CASE("program: under a limit on addresses it works in what there is, or says what there is not") {
  if (addresses_are_taken()) return;
  const TemporaryDirectory place;
  write_contents(place / "tiny.toml", kTinyConfig);
  const auto limited = [&](int kibibytes, const std::string& command) {
    // A second thread of OpenBLAS, which never ends where it finds no addresses for its buffer.
    const int code = shell(place.path(), fmt::format("(export OPENBLAS_NUM_THREADS=2; ulimit -s 8192 2> said.txt; "
                                                     "ulimit -v {} && {}; exit $?) 2> shell.txt",
                                                     kibibytes, command));
    CAPTURE(kibibytes);
    CHECK(code != kKilled);  // it hung
    return code;
  };
  // What the loader and OpenBLAS need before the program begins is theirs and depends on their builds. Below that they
  // end the process in ways of their own. A step needs more than this `high` leaves.
  int low = 20'000, high = 700'000;
  const std::string version = "$graft --version > out.txt 2> said.txt";
  if (shell(place.path(), "ulimit -v 4000000 2> said.txt") != 0) {
    MESSAGE("skipped: this process may not have 4000000 KiB of addresses");
    return;
  }
  REQUIRE(limited(high, version) == 0);
  while (high - low > 1000) {
    const int middle = (low + high) / 2;
    (limited(middle, version) == 0 ? high : low) = middle;
  }
  CAPTURE(high);
  for (const int kibibytes : {high + 2000, (high + 700'000) / 2, 700'000}) {
    CAPTURE(kibibytes);
    CHECK(limited(kibibytes, version) == 0);
    CHECK(contents(place / "out.txt").starts_with("graft "));
    const int code = limited(kibibytes, kTrain + "small > out.txt 2> said.txt");
    if (kibibytes < high + 50'000) continue;  // messages need some room, too
    CHECK(code == 3);
    CHECK(contents(place / "said.txt").find("ulimit -v") != std::string::npos);
  }
  REQUIRE(shell(place.path(), kTrain + "free > out.txt") == 0);
  for (const int kibibytes : {2'000'000, 4'000'000}) {  // less than any machine's memory, as a rule
    CAPTURE(kibibytes);
    CHECK(limited(kibibytes, kTrain + "limited > out.txt") == 0);
    CHECK(contents(place / "limited/ckpt/step_60/model.safetensors") ==
          contents(place / "free/ckpt/step_60/model.safetensors"));
    fs::remove_all(place / "limited");
  }
}

}  // namespace
}  // namespace graft::test
