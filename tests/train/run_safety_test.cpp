// What must not cost a run its checkpoints or logs: paths that hide where they lead, directories that move, files that
// vanish, checkpoints from elsewhere, JSON that no program of ours wrote.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/error.h"
#include "tests/support/process_limits.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/watched_stream.h"
#include "tests/train/process.h"
#include "tests/train/tiny_run.h"
#include "train/json_lines.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

/// A finished run of 60 steps with checkpoints at 10, 20, ..., beside its configuration.
struct Place {
  Place() : config(tiny_config({"checkpoint.every=10", "checkpoint.keep=10"})) {
    write_contents(directory / "tiny.toml", resolved_toml(config));
    train_in(run(), config);
  }
  [[nodiscard]] fs::path run() const { return directory / "run"; }
  [[nodiscard]] fs::path ckpt() const { return run() / "ckpt"; }
  [[nodiscard]] fs::path step(int number) const { return ckpt() / fmt::format("step_{}", number); }
  [[nodiscard]] Result graft(const std::vector<std::string>& arguments) const {
    return run_graft(directory.path(), arguments);
  }
  [[nodiscard]] Result train(const std::vector<std::string>& more = {}, const std::string& into = "run") const {
    std::vector<std::string> words = {"train", "tiny.toml", "--device", "cpu", "--threads", "1", "--run-dir", into};
    words.insert(words.end(), more.begin(), more.end());
    return graft(words);
  }
  [[nodiscard]] Result eval(const std::vector<std::string>& more) const {
    std::vector<std::string> words = {"eval", "--device", "cpu", "--threads", "1", "-o", "eval.baselines=[]"};
    words.insert(words.end(), more.begin(), more.end());
    return graft(words);
  }
  TemporaryDirectory directory;
  RunConfig config;
};

void check_refused(const Result& result, int code, const std::string& part) {
  CAPTURE(result.err);
  CHECK(result.code == code);
  CHECK(result.last_error_line().starts_with("graft: error: "));
  CHECK(result.err.find(part) != std::string::npos);
}

/// Goes on from `checkpoint` in `directory` as --resume PATH does, and dies at step `end`, before anything is saved.
void die_after_going_back(const fs::path& checkpoint, const fs::path& directory, int end) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const WatchedStream out([end](std::string_view text) {
      if (text.find(fmt::format("eval at step {}", end)) != std::string_view::npos) ::_exit(9);
    });
    const RunConfig config = tiny_config({"checkpoint.keep=10", fmt::format("train.steps={}", end)});
    TinySession tiny(config);
    RunDirectory run(options_in(directory, config));
    Trainer trainer(tiny.session, run, out.file());
    trainer.resume(CheckpointDirectory::load(checkpoint), true);
    static_cast<void>(trainer.run());
    ::_exit(1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) == 9);
}

/// What is created meanwhile can be read by everybody, whatever the user's habits are.
class OpenToRead {
 public:
  OpenToRead() : before_(::umask(0022)) {}
  ~OpenToRead() { ::umask(before_); }
  OpenToRead(const OpenToRead&) = delete;
  OpenToRead& operator=(const OpenToRead&) = delete;

 private:
  mode_t before_;
};

/// What `action` returns in a process that may not do everything, but look into `place`; none where root cannot become
/// such a process (a container that knows one user) or everybody's way to `place` is closed.
std::optional<int> as_nobody(const fs::path& place, const std::function<int()>& action) {
  constexpr int kNotNobody = 100, kNoWay = 101;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) ::_exit(kNotNobody);
    if (::access(place.c_str(), R_OK | X_OK) != 0) ::_exit(kNoWay);
    ::_exit(action());
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  const int result = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  if (result != kNotNobody && result != kNoWay) return result;
  MESSAGE("skipped: nobody " << (result == kNoWay ? "may look into " + place.string() : "is not a user here"));
  return std::nullopt;
}

/// Saves a checkpoint whose first weight is another one.
void save_changed(const fs::path& from, std::int64_t step, float value, const fs::path& into) {
  CheckpointData data = CheckpointDirectory::load(from);
  std::memcpy(data.model.front().data.data(), &value, sizeof(value));
  data.step = step;
  for (const char* key : {"step", "updates"}) data.state["step_state"][key] = step;
  CheckpointDirectory(into).save(data);
}

bool same_file(const fs::path& a, const fs::path& b, const char* name = "model.safetensors") {
  return contents(a / name) == contents(b / name);
}

TEST_CASE("run safety: gc finds the run, its lock and its retention however the folder is named") {
  const Place place;
  const int lock = ::open((place.run() / ".lock").c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(::flock(lock, LOCK_EX) == 0);
  fs::create_directory(place.ckpt() / ".tmp-step_70-1");
  fs::create_directory_symlink(place.ckpt(), place.directory / "link");
  check_refused(run_graft(place.ckpt(), {"ckpt", "gc", "--keep", "1", "."}), 3, "in use by another process");
  check_refused(run_graft(place.step(60), {"ckpt", "gc", "--keep", "1", ".."}), 3, "in use by another process");
  check_refused(place.graft({"ckpt", "gc", "--keep", "1", "link"}), 3, "in use by another process");
  check_refused(place.graft({"ckpt", "gc", "--keep", "1", "run/ckpt/../ckpt"}), 3, "in use by another process");
  CHECK(fs::exists(place.step(10)));
  CHECK(fs::exists(place.ckpt() / ".tmp-step_70-1"));
  ::close(lock);
  CHECK(run_graft(place.ckpt(), {"ckpt", "gc", "."}).out == "nothing to remove: keep 10, keep_every 100000\n");

  // The folder lies on another disk, where nothing tells whose it is.
  fs::rename(place.ckpt(), place.directory / "scratch");
  fs::create_directory_symlink(place.directory / "scratch", place.ckpt());
  fs::create_directory(place.directory / "scratch/.tmp-step_70-1");
  check_refused(place.graft({"ckpt", "gc", "--keep", "1", "scratch"}), 3, "may be a save under way");
  CHECK(fs::exists(place.directory / "scratch/step_10"));
  CHECK(place.graft({"ckpt", "gc", "--keep", "1", "run"}).code == 0);
  CHECK_FALSE(fs::exists(place.directory / "scratch/step_10"));
}

TEST_CASE("run safety: a ckpt folder that leads nowhere, or is none, is no run without checkpoints") {
  const Place place;
  const std::string metrics = contents(place.run() / "metrics.jsonl");
  fs::rename(place.ckpt(), place.directory / "scratch");
  fs::create_directory_symlink(place.directory / "not_mounted", place.ckpt());
  check_refused(place.train(), 3, "not_mounted, which is not there");
  fs::remove(place.ckpt());
  write_contents(place.ckpt(), "");
  check_refused(place.train(), 3, "is not a directory");
  CHECK(contents(place.run() / "metrics.jsonl") == metrics);
  // In a new run, too.
  fs::create_directory(place.directory / "new");
  write_contents(place.directory / "new/.lock", "");
  CHECK(place.train({"-o", "train.steps=1"}, "new").code == 0);
}

TEST_CASE("run safety: a folder in which nothing can be created is found out before training") {
  const OpenToRead everybody;
  const TemporaryDirectory directory;
  REQUIRE(::chmod(directory.path().c_str(), 0755) == 0);
  fs::create_directory(directory / "ckpt");
  const CheckpointDirectory checkpoints(directory / "ckpt");
  const auto attempt = [&] {
    try {
      checkpoints.check_writable();
    } catch (const EnvironmentError& error) {
      return std::string_view(error.what()).find("Permission denied") == std::string_view::npos ? 2 : 1;
    }
    return 0;
  };
  CHECK_NOTHROW(CheckpointDirectory(directory / "later").check_writable());
  CHECK_FALSE(fs::exists(directory / "later"));
  REQUIRE(::chmod((directory / "ckpt").c_str(), 0555) == 0);
  const std::optional<int> refused = as_nobody(directory.path(), attempt);
  REQUIRE(::chmod((directory / "ckpt").c_str(), 0777) == 0);
  if (!refused) return;
  CHECK(*refused == 1);
  CHECK(as_nobody(directory.path(), attempt) == 0);
  CHECK(fs::is_empty(directory / "ckpt"));
}

TEST_CASE("run safety: what --resume PATH takes from elsewhere is the run's own before the first step") {
  const Place place;
  // From another run, into a new one.
  const fs::path copy = place.directory / "copy";
  die_after_going_back(place.step(30), copy, 35);
  CHECK(CheckpointDirectory(copy / "ckpt").load_latest().value().step == 30);
  CHECK(same_file(copy / "ckpt/step_30", place.step(30)));
  CHECK(same_file(copy / "ckpt/step_30", place.step(30), "optimizer.safetensors"));
  train_in(copy, place.config);
  CHECK(same_file(copy / "ckpt/step_60", place.step(60)));
  CHECK(same_file(copy / "ckpt/step_60", place.step(60), "optimizer.safetensors"));

  // Into a run with another checkpoint of that step: both branches stay.
  const fs::path elsewhere = place.directory / "elsewhere";
  save_changed(place.step(50), 50, 0.25F, elsewhere);
  const std::string old_weights = contents(place.step(50) / "model.safetensors");
  die_after_going_back(elsewhere / "step_50", place.run(), 55);
  CHECK(same_file(place.step(50), elsewhere / "step_50"));
  CHECK(contents(place.ckpt() / "abandoned_1/step_50/model.safetensors") == old_weights);
  CHECK(fs::exists(place.ckpt() / "abandoned_1/step_60/manifest.json"));
  CHECK(CheckpointDirectory(place.ckpt()).load_latest().value().step == 50);
  // Again: it is the run's own by now.
  die_after_going_back(elsewhere / "step_50", place.run(), 55);
  CHECK_FALSE(fs::exists(place.ckpt() / "abandoned_2"));
}

TEST_CASE("run safety: a start says what it removes, and starts nothing where only branches are") {
  const Place place;
  const std::string metrics = contents(place.run() / "metrics.jsonl");
  fs::rename(place.ckpt(), place.directory / "kept");
  fs::create_directories(place.ckpt() / "abandoned_1");
  fs::copy(place.directory / "kept/step_60", place.ckpt() / "abandoned_1/step_60", fs::copy_options::recursive);
  check_refused(place.train(), 4, "only branches that were left");
  CHECK(contents(place.run() / "metrics.jsonl") == metrics);
  fs::remove_all(place.ckpt());
  const auto lines = json_lines(place.run() / "metrics.jsonl").size() + json_lines(place.run() / "eval.jsonl").size();
  const Result again = place.train();
  CHECK(again.code == 0);
  CHECK(again.out.find(fmt::format("training starts over, and the {} lines in its logs are removed", lines)) !=
        std::string::npos);
  CHECK(same_file(place.step(60), place.directory / "kept/step_60"));
}

TEST_CASE("run safety: --resume PATH takes no checkpoint that is not finite, nor one of another configuration") {
  const Place place;
  save_changed(place.step(60), 61, std::nanf(""), place.directory / "bad");
  check_refused(place.train({"--resume", "bad/step_61"}, "new"), 5, "is not finite");
  check_refused(place.train({"--resume", "run/ckpt/step_60", "-o", "optimizer.lr=1e-2"}, "new"), 2, "hash");
  CHECK_FALSE(fs::exists(place.directory / "new"));
  REQUIRE(place.train({"-o", "optimizer.lr=1e-2", "-o", "train.steps=2"}, "other").code == 0);
  const std::string record = contents(place.directory / "other/run.json");
  check_refused(
      place.train({"--resume", "run/ckpt/step_60", "-o", "optimizer.lr=1e-2", "-o", "train.steps=2"}, "other"), 2,
      "hash");
  CHECK(contents(place.directory / "other/run.json") == record);
}

TEST_CASE("run safety: JSON nested without end is damage, not a crash") {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK_FALSE(parse_json(nested(64)).is_discarded());
  CHECK(parse_json(nested(65)).is_discarded());
  CHECK(parse_json(fmt::format(R"(["\"{}", 1])", nested(100))).size() == 2);  // brackets in a text are none
  CHECK(parse_json(R"([[1], [2], [3]])").size() == 3);
  CHECK(parse_json("[1").is_discarded());

  const Place place;
  write_contents(place.step(60) / "manifest.json", fmt::format(R"({{"checksum":"x","a":{}}})", nested(500'000)));
  CHECK(place.graft({"ckpt", "ls", "run"}).out.find("not a manifest") != std::string::npos);
  check_refused(place.graft({"ckpt", "verify", "run"}), 4, "step_60");
  CHECK(place.graft({"ckpt", "gc", "run", "--dry-run"}).code == 0);
  CHECK(place.eval({"run"}).code == 0);
  check_refused(place.eval({"run/ckpt/step_60"}), 4, "not a manifest");
  CHECK(place.train().code == 0);
  nlohmann::json baselines = nlohmann::json::parse(contents(place.run() / "baselines.json"));
  baselines["positions"]["zero"] = "here";
  std::string cache = baselines.dump();
  cache.replace(cache.find("\"here\""), 6, nested(500'000));
  write_contents(place.run() / "baselines.json", cache);
  CHECK(place.train().code == 0);
  CHECK(contents(place.run() / "baselines.json").size() < cache.size());  // computed again

  std::string metrics = contents(place.run() / "metrics.jsonl");
  metrics.insert(0, nested(500'000) + "\n");
  write_contents(place.run() / "metrics.jsonl", metrics);
  check_refused(place.train(), 4, "line 1 is not a JSON object");
  write_contents(place.run() / "run.json", fmt::format(R"({{"config_hash":{}}})", nested(3'000'000)));
  check_refused(place.train(), 4, "run.json is damaged");
}

TEST_CASE("run safety: a run's directory that moves away while it trains ends in an error, not in silence") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"checkpoint.every=30", "eval.every=20"});
  for (const bool replaced : {false, true}) {
    CAPTURE(replaced);
    const fs::path run = directory / (replaced ? "replaced" : "moved"), away = run.string() + "_away";
    const WatchedStream out([&](std::string_view text) {
      if (text.find("eval at step 20") == std::string_view::npos || fs::exists(away)) return;
      fs::rename(run, away);
      if (replaced) train_in(run, tiny_config({"train.steps=1"}));  // somebody else's now
    });
    TinySession tiny(config);
    RunDirectory directory_of_run(options_in(run, config));
    Trainer trainer(tiny.session, directory_of_run, out.file());
    tiny.session.initialize();
    CHECK_THROWS_WITH_AS(
        static_cast<void>(trainer.run()),
        doctest::Contains("moved, removed or replaced; say with --run-dir where it is now to continue from step 0"),
        EnvironmentError);
    CHECK_THROWS_AS(directory_of_run.finish(3), EnvironmentError);
    CHECK(out.holds("checkpoint of step 30 not saved: run: "));
    CHECK(fs::exists(run) == replaced);
    if (replaced) CHECK(steps_of(run / "metrics.jsonl") == std::vector<std::int64_t>{1});
    if (replaced) CHECK(nlohmann::json::parse(contents(run / "run.json")).at("exit_status") == 0);
  }
}

TEST_CASE("run safety: a log that is removed while the run goes on is said and begun again") {
  const TemporaryDirectory directory;
  const fs::path run = directory / "run";
  const WatchedStream out([&](std::string_view text) {
    if (text.find("eval at step 20") != std::string_view::npos) fs::remove(run / "metrics.jsonl");
  });
  train_in(run, tiny_config({"checkpoint.every=30", "eval.every=20"}), out.file());
  CHECK(out.holds("metrics.jsonl was removed or replaced"));
  REQUIRE(fs::exists(run / "metrics.jsonl"));
  CHECK(steps_of(run / "metrics.jsonl").back() == 60);
  CHECK(CheckpointDirectory(run / "ckpt").load_latest().value().step == 60);
}

TEST_CASE("run safety: a resume says that lines of a log are lost, and only then") {
  const TemporaryDirectory directory;
  const fs::path run = directory / "run";
  train_in(run, tiny_config({"train.steps=30", "checkpoint.every=10"}));
  const WatchedStream whole([](std::string_view) {});
  train_in(run, tiny_config({"train.steps=40", "checkpoint.every=10"}), whole.file());
  CHECK_FALSE(whole.holds("warning"));
  std::string metrics = contents(run / "metrics.jsonl");
  metrics.erase(0, metrics.find('\n') + 1);
  write_contents(run / "metrics.jsonl", metrics);
  const WatchedStream cut([](std::string_view) {});
  train_in(run, tiny_config({"train.steps=50", "checkpoint.every=10"}), cut.file());
  CHECK(cut.holds("metrics.jsonl holds "));
  CHECK(cut.holds("lines are lost"));
}

TEST_CASE("run safety: a resume says that it removes what somebody else wrote into a log, and nothing of a cut line") {
  const TemporaryDirectory directory;
  const fs::path run = directory / "run";
  const auto continued = [&](int steps, const std::string& metrics, const std::string& evaluations) {
    write_contents(run / "metrics.jsonl", contents(run / "metrics.jsonl") + metrics);
    write_contents(run / "eval.jsonl", contents(run / "eval.jsonl") + evaluations);
    std::string said;
    const WatchedStream out([&said](std::string_view text) { said += text; });
    train_in(run, tiny_config({fmt::format("train.steps={}", steps)}), out.file());
    return said;
  };
  train_in(run, tiny_config({"train.steps=20"}));
  CHECK(continued(24, "{\"step\": 2", "{").find("warning") == std::string::npos);
  const std::string one = continued(28, "# lr was too high here\n", "");
  CHECK(one.find("metrics.jsonl: 1 line at the end is no JSON object") != std::string::npos);
  CHECK(one.find("eval.jsonl") == std::string::npos);
  const std::string both = continued(32, "{\"note\": \"x\"}\n\n", "\n{\"note\": \"y\"}\n7\n{\"st");
  CHECK(both.find("metrics.jsonl: 2 lines at the end are no JSON object") != std::string::npos);
  CHECK(both.find("eval.jsonl: 3 lines at the end are no JSON object") != std::string::npos);
  CHECK(steps_of(run / "metrics.jsonl").back() == 32);
}

TEST_CASE("run safety: a run whose checkpoints would have too long a path does not start") {
  const TemporaryDirectory directory;
  const std::size_t most = PATH_MAX - 1;
  // Paths of `bytes` bytes in folders that are not there: whether they could be made is not asked.
  const auto path_of = [&](std::size_t bytes) {
    std::string text = directory.path().string();
    while (bytes - text.size() > 220) text += "/" + std::string(199, 'x');
    return fs::path(text + "/" + std::string(bytes - text.size() - 1, 'x'));
  };
  CHECK_NOTHROW(CheckpointDirectory(path_of(most - 100)).check_writable());
  CHECK_THROWS_WITH_AS(CheckpointDirectory(path_of(most - 30)).check_writable(),
                       doctest::Contains("choose a shorter --run-dir"), EnvironmentError);
  CHECK_THROWS_AS(CheckpointDirectory(path_of(most + 30)).check_writable(), EnvironmentError);

  write_contents(directory / "tiny.toml", resolved_toml(tiny_config()));
  const fs::path run = path_of(most - 40);
  const Result result = run_graft(directory.path(), {"train", "tiny.toml", "--device", "cpu", "--threads", "1", "-o",
                                                     "train.steps=1000000", "--run-dir", run.string()});
  check_refused(result, 3, "choose a shorter --run-dir");
  CHECK_FALSE(fs::exists(run / "metrics.jsonl"));
}

TEST_CASE("run safety: eval refuses what it cannot or must not write before it works") {
  const Place place;
  const fs::path directory = place.directory.path();
  fs::create_directory(directory / "folder");
  check_refused(place.eval({"run", "--out", "folder"}), 2, "is a directory");
  const std::string evaluations = contents(place.run() / "eval.jsonl");
  for (const char* own : {"run/eval.jsonl", "run/ckpt/../metrics.jsonl", "run/ckpt/latest", "run/ckpt/step_60/x"}) {
    CAPTURE(own);
    check_refused(place.eval({"run", "--out", own}), 2, "training writes");
  }
  CHECK(contents(place.run() / "eval.jsonl") == evaluations);
  fs::create_symlink("target.json", directory / "link.json");
  CHECK(place.eval({"run", "--out", "link.json"}).code == 0);
  CHECK(fs::is_symlink(directory / "link.json"));
  CHECK(json_lines(directory / "target.json").size() == 1);
  CHECK(place.eval({"run", "--out", "run/own.json"}).code == 0);
}

TEST_CASE("run safety: eval takes no other model than the one that was trained") {
  const Place place;
  check_refused(place.eval({"run", "-o", "model.heads=4"}), 2, "model.heads: 2, now 4");
  CHECK(place.eval({"run", "-o", "eval.prompts=8"}).code == 0);
}

TEST_CASE("run safety: a checkpoint is found from inside, and an empty path is a mistake") {
  const Place place;
  const std::vector<std::string> here = {"eval", ".", "--device", "cpu", "--threads", "1", "-o", "eval.baselines=[]"};
  CHECK(run_graft(place.step(50), here).out.find("at step 50") != std::string::npos);
  check_refused(place.eval({""}), 2, "is empty");
  check_refused(place.eval({"run", "--out", ""}), 2, "is empty");
  check_refused(place.train({}, ""), 2, "is empty");
  check_refused(place.graft({"ckpt", "ls", ""}), 2, "is empty");
  check_refused(place.graft({"ckpt", "verify", "run", ""}), 2, "is empty");
  CHECK_FALSE(fs::exists(place.directory / "runs"));
}

TEST_CASE("run safety: checkpoints are listed whatever the folder's name and its `latest`") {
  const OpenToRead everybody;
  const Place place;
  const std::string name = "bad\xe9name";
  fs::rename(place.run(), place.directory / name);
  const Result listed = place.graft({"ckpt", "ls", "--json", name});
  CHECK(listed.code == 0);
  CHECK(nlohmann::json::parse(listed.out.substr(0, listed.out.find('\n'))).at("step") == 10);
  CHECK(place.graft({"ckpt", "diff", "--json", name, name}).code == 0);

  REQUIRE(::chmod(place.directory.path().c_str(), 0755) == 0);
  REQUIRE(::chmod((place.directory / name / "ckpt/latest").c_str(), 0000) == 0);
  const std::optional<int> listed_by_nobody = as_nobody(place.directory.path(), [&] {
    return static_cast<int>(CheckpointDirectory(place.directory / name / "ckpt").list().size());
  });
  if (listed_by_nobody) CHECK(*listed_by_nobody == 6);
}

TEST_CASE("run safety: what is no checkpoint is not called a damaged one") {
  const Place place;
  for (const char* target : {"nope", "/etc", "run/ckpt/step_41", "tiny.toml"}) {
    CAPTURE(target);
    const Result result = place.graft({"ckpt", "verify", target});
    check_refused(result, 4, "no such checkpoint");
    CHECK(result.out.empty());
  }
  const Result both = place.graft({"ckpt", "verify", "nope", "run/ckpt/step_50"});
  check_refused(both, 4, "nope: no such checkpoint");
  CHECK(both.out.find("step_50: good") != std::string::npos);
  fs::remove(place.step(50) / "manifest.json");
  CHECK(place.graft({"ckpt", "verify", "run/ckpt/step_50"}).out.find("DAMAGED") != std::string::npos);
}

TEST_CASE("run safety: the reason at the end is that of the last save") {
  const TemporaryDirectory directory;
  const RunConfig config = tiny_config({"checkpoint.every=10", "train.log_every=1"});
  TinySession tiny(config);
  RunDirectory run(options_in(directory / "run", config));
  const NullStream out;
  Trainer trainer(tiny.session, run, out.file());
  tiny.session.initialize();
  std::string message;
  try {
    const FileSizeLimit limit(5000);  // room for the log's lines until about step 24, never for weights
    REQUIRE(limit.holds());
    static_cast<void>(trainer.run());
  } catch (const EnvironmentError& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(message.starts_with("step 60 is not saved: cannot append to "));
}

}  // namespace
}  // namespace graft::test
