// The file that `eval --out` and `bench --json` name.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"
#include "train/result_file.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

ResultFile file_at(const fs::path& path) { return {"bench ops", "--json", path.string()}; }

/// What arrives at the end of a pipe that nobody has open for writing any more.
std::string drained(int fd) {
  std::string text(1U << 16U, '\0');
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(::read(fd, text.data(), text.size()), 0)));
  return text;
}

TEST_CASE("result file: finding out whether it can be written leaves everything as it was") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "out", link = directory / "link";
  write_contents(path, "earlier");
  fs::create_symlink("later", link);
  { const ResultFile file = file_at(path), other = file_at(link), fresh = file_at(directory / "fresh"); }
  CHECK(contents(path) == "earlier");
  CHECK(fs::is_symlink(link));
  CHECK(std::distance(fs::directory_iterator(directory.path()), fs::directory_iterator()) == 2);
  CHECK_THROWS_WITH_AS(file_at(directory.path()), doctest::Contains("is a directory, expected a file"), ArgumentError);
  CHECK_THROWS_WITH_AS(file_at(directory / "no/file"), doctest::Contains("No such file or directory"),
                       EnvironmentError);
  fs::create_symlink("no/file", directory / "astray");
  CHECK_THROWS_AS(file_at(directory / "astray"), EnvironmentError);
  write_contents(directory / "run.json", "{}");
  CHECK_THROWS_WITH_AS(file_at(directory / "metrics.jsonl"), doctest::Contains("training writes"), ArgumentError);
}

TEST_CASE("result file: lines are there at once, a text is replaced whole, and a link stays one") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "out", link = directory / "link";
  write_contents(path, "earlier");
  ResultFile lines = file_at(path);
  lines.append("1\n");
  CHECK(contents(path) == "1\n");
  lines.append("2\n");
  CHECK(contents(path) == "1\n2\n");

  ResultFile text = file_at(path);
  text.write("one");
  CHECK(contents(path) == "one");
  text.write("two");
  text.close();
  CHECK(contents(path) == "two");

  fs::create_symlink("target", link);
  ResultFile behind = file_at(link);
  behind.write("one");
  CHECK_FALSE(fs::exists(directory / "target"));  // once, at the end
  behind.write("two");
  behind.close();
  CHECK(fs::is_symlink(link));
  CHECK(contents(directory / "target") == "two");
}

TEST_CASE("result file: a pipe gets lines as they come and a text at the end") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "pipe";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  for (const bool whole : {false, true}) {
    CAPTURE(whole);
    const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    REQUIRE(reader >= 0);
    {
      ResultFile file = file_at(path);
      if (whole) {
        file.write("one");
        file.write("two\n");
        CHECK(drained(reader).empty());
        file.close();
      } else {
        file.append("two\n");
      }
      CHECK(drained(reader) == "two\n");
    }
    ::close(reader);
  }
}

TEST_CASE("result file: eval writes to a pipe") {
  const TemporaryDirectory directory;
  train_in(directory / "run", tiny_config({"train.steps=2"}));
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  Process process(
      directory.path(),
      {"eval", "run", "--device", "cpu", "--threads", "1", "-o", "eval.baselines=[]", "--out", "/dev/stdout"},
      {.out = ends[1]});
  const int code = process.wait();
  ::close(ends[1]);
  const std::string out = drained(ends[0]);
  ::close(ends[0]);
  CAPTURE(process.err());
  CHECK(code == 0);
  CHECK(nlohmann::json::parse(out.substr(0, out.find('\n'))).at("suite") == "standard");
}

TEST_CASE("result file: benchmarks write behind a link to nothing") {
  const TemporaryDirectory directory;
  if (run_graft(directory.path(), {"--help"}).out.find("bench") == std::string::npos) return;  // built without them
  fs::create_symlink("target.json", directory / "link.json");
  const std::vector<std::string> arguments = {"bench",  "ops",       "--device",
                                              "cpu",    "--threads", "1",
                                              "--warm", "--filter",  "^activation/forward/gelu_tanh/5248x512/fp32$",
                                              "--json", "link.json"};
  const Result result = run_graft(directory.path(), arguments);
  CAPTURE(result.err);
  CHECK(result.code == 0);
  CHECK(fs::is_symlink(directory / "link.json"));
  CHECK(nlohmann::json::parse(contents(directory / "target.json")).at("benchmarks").size() == 1);
}

}  // namespace
}  // namespace graft::test
