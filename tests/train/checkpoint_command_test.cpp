// `graft ckpt`, as its users meet it.

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>

#include <fcntl.h>

#include "tests/support/temporary_directory.h"
#include "tests/train/tiny_run.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

struct Result {
  int status = -1;
  std::string out;  // stdout and stderr
  [[nodiscard]] bool holds(const std::string& text) const { return out.find(text) != std::string::npos; }
};

/// Runs the program that lies beside the test programs; arguments are for a shell.
Result graft(const std::string& arguments) {
  const fs::path program = fs::read_symlink("/proc/self/exe").parent_path() / "graft";
  REQUIRE(fs::exists(program));  // not built?
  std::FILE* pipe = ::popen(fmt::format("'{}' {} 2>&1", program.string(), arguments).c_str(), "r");
  REQUIRE(pipe != nullptr);
  Result result;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) result.out += static_cast<char>(c);
  const int status = ::pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return result;
}

void flip_bit(const fs::path& file) {
  std::string text = contents(file);
  text[text.size() / 2] = static_cast<char>(text[text.size() / 2] ^ 1);
  write_contents(file, text);
}

/// A finished run with checkpoints at steps 10, 20, ..., 60.
struct Run {
  Run() : run(directory / "run") {
    const RunConfig config = tiny_config({"checkpoint.every=10", "checkpoint.keep=10", "eval.every=10"});
    train_in(run, config);
  }
  TemporaryDirectory directory;
  fs::path run;
};

TEST_CASE("ckpt ls: steps, sizes, scores and what is wrong") {
  const Run run;
  Result plain = graft(fmt::format("ckpt ls {}", run.run.string()));
  CHECK(plain.status == 0);
  for (const char* text : {"10", "60", "latest", "best", "squared error"}) CHECK(plain.holds(text));

  fs::remove(run.run / "ckpt/step_30/state.json");
  const Result lines = graft(fmt::format("ckpt ls {}/ckpt/ --json", run.run.string()));
  CHECK(lines.status == 0);
  std::istringstream text(lines.out);
  int count = 0, best = 0;
  for (std::string line; std::getline(text, line); ++count) {
    const nlohmann::json info = nlohmann::json::parse(line);
    CHECK(info.at("step") == 10 * (count + 1));
    CHECK(info.at("latest") == (count == 5));
    CHECK(info.at("usable") == (count != 2));
    CHECK(info.at("problem").get<std::string>().empty() == (count != 2));
    CHECK(info.at("finite") == true);
    CHECK(info.at("score").is_number());
    best += info.at("best").get<bool>() ? 1 : 0;
  }
  CHECK(count == 6);
  CHECK(best == 1);
  const Result nothing = graft(fmt::format("ckpt ls {}", run.directory.path().string()));
  CHECK(nothing.status == 4);
  CHECK(nothing.holds("graft: error: ckpt: "));
  CHECK(graft("ckpt ls /nonexistent").status == 4);
}

TEST_CASE("ckpt verify: reads every byte, names what is damaged, exit 4") {
  const Run run;
  const Result good = graft(fmt::format("ckpt verify {0} {0}/ckpt/step_20 {0}/ckpt", run.run.string()));
  CHECK(good.status == 0);
  CHECK(good.holds("step_60: good"));
  flip_bit(run.run / "ckpt/step_40/optimizer.safetensors");
  const Result bad = graft(fmt::format("ckpt verify {}", run.run.string()));
  CHECK(bad.status == 4);
  CHECK(bad.holds("step_50: good"));
  CHECK(bad.holds("step_40: DAMAGED: "));
  CHECK(bad.holds("optimizer.safetensors: XXH3-128 is"));
  CHECK(bad.holds("graft: error: ckpt: 1 of 6"));
  CHECK(graft(fmt::format("ckpt verify {}/ckpt/step_40", run.run.string())).status == 4);
  CHECK(graft(fmt::format("ckpt verify {}/ckpt/step_41", run.run.string())).status == 4);
  CHECK(graft(fmt::format("eval {}/ckpt/step_40", run.run.string())).status == 4);
}

TEST_CASE("ckpt verify: a path with nothing in it does not keep the others from being read") {
  const Run run;
  const std::string place = run.directory.path().string();
  fs::create_directories(run.directory / "empty/ckpt");
  for (const char* nothing : {"nope/ckpt", "nope", "empty", "empty/ckpt"}) {
    CAPTURE(nothing);
    const Result result = graft(fmt::format("ckpt verify {0}/run/ckpt/step_20 {0}/{1}", place, nothing));
    CHECK(result.status == 4);
    CHECK(result.holds("step_20: good"));
    CHECK(result.holds(std::string_view(nothing).starts_with("nope")
                           ? fmt::format("{}/{}: no such checkpoint, run or ckpt folder", place, nothing)
                           : fmt::format("{}/{}: holds no checkpoint", place, nothing)));
  }
  flip_bit(run.run / "ckpt/step_40/model.safetensors");
  const Result both = graft(fmt::format("ckpt verify {0}/nope/ckpt {0}/empty {0}/run", place));
  CHECK(both.status == 4);
  CHECK(both.holds("step_60: good"));
  CHECK(both.holds("1 of 6 checkpoints cannot be used"));
  CHECK(both.holds("nope/ckpt: no such checkpoint, run or ckpt folder; " + place + "/empty: holds no checkpoint"));
  // One checkpoint whose folder somebody named ckpt.
  fs::create_directory(run.directory / "copy");
  fs::copy(run.run / "ckpt/step_20", run.directory / "copy/ckpt", fs::copy_options::recursive);
  CHECK(graft(fmt::format("ckpt verify {}/copy/ckpt", place)).holds("copy/ckpt: good"));
}

TEST_CASE("ckpt verify, ls: what is intact but not finite is neither good nor damaged") {
  const Run run;
  CheckpointDirectory directory(run.run / "ckpt");
  CheckpointData data = CheckpointDirectory::load(run.run / "ckpt/step_60");
  const float bad = std::nanf("");
  std::memcpy(data.model.front().data.data(), &bad, sizeof(bad));
  data.step = 70;
  for (const char* key : {"step", "updates"}) data.state["step_state"][key] = 70;
  directory.save(data);
  const Result verified = graft(fmt::format("ckpt verify {}", run.run.string()));
  CHECK(verified.status == 5);
  CHECK(verified.holds("step_60: good"));
  CHECK(verified.holds("step_70: INTACT BUT NOT FINITE, never continued from: " + data.model.front().name));
  CHECK(verified.holds("graft: error: ckpt: 1 of 7 checkpoints are intact but not finite"));
  CHECK(graft(fmt::format("ckpt ls {}", run.run.string())).holds("not finite, never continued from: "));
  CHECK(graft(fmt::format("ckpt verify {}/ckpt/step_60", run.run.string())).status == 0);
  flip_bit(run.run / "ckpt/step_40/model.safetensors");
  CHECK(graft(fmt::format("ckpt verify {}", run.run.string())).status == 4);  // what is damaged counts more
}

TEST_CASE("ckpt gc: keeps what the policy says, never the newest good one, the best or a run in use") {
  const Run run;
  const fs::path ckpt = run.run / "ckpt";
  fs::create_directory(ckpt / ".tmp-step_70-1");
  const Result would = graft(fmt::format("ckpt gc {} --keep 1 --dry-run", run.run.string()));
  CHECK(would.status == 0);
  CHECK(would.holds("would remove"));
  CHECK(fs::exists(ckpt / "step_10"));
  CHECK(graft(fmt::format("ckpt gc {}", run.run.string())).holds("nothing to remove: keep 10"));
  CHECK_FALSE(fs::exists(ckpt / ".tmp-step_70-1"));

  const int lock = ::open((run.run / ".lock").c_str(), O_RDWR);
  REQUIRE(::flock(lock, LOCK_EX) == 0);
  const Result busy = graft(fmt::format("ckpt gc {} --keep 1", run.run.string()));
  CHECK(busy.status == 3);
  CHECK(busy.holds("in use by another process"));
  ::close(lock);

  flip_bit(ckpt / "step_60/model.safetensors");
  std::string best;
  for (const CheckpointInfo& info : CheckpointDirectory(ckpt).list()) {
    if (info.best) best = info.path.filename();
  }
  CHECK(graft(fmt::format("ckpt gc {} --keep 1 --keep-every 40", run.run.string())).status == 0);
  for (const std::string name : {"step_10", "step_20", "step_30", "step_40", "step_50", "step_60"}) {
    CAPTURE(name);  // step_60 is `latest`, step_50 the newest good one
    CHECK(fs::exists(ckpt / name) == (name >= "step_40" || name == best));
  }

  fs::create_directory(ckpt / "abandoned_1");
  fs::rename(ckpt / "step_40", ckpt / "abandoned_1/step_40");
  CHECK(graft(fmt::format("ckpt gc {}", run.run.string())).holds("--abandoned removes it"));
  CHECK(fs::exists(ckpt / "abandoned_1"));
  CHECK(graft(fmt::format("ckpt gc {} --abandoned", run.run.string())).holds("removed"));
  CHECK_FALSE(fs::exists(ckpt / "abandoned_1"));
  CHECK(graft(fmt::format("ckpt gc {} --keep 0", run.run.string())).status == 2);
}

TEST_CASE("ckpt diff: same bits, other bits, other shapes") {
  const Run run;
  const std::string ckpt = (run.run / "ckpt").string();
  const Result same = graft(fmt::format("ckpt diff {0}/step_60 {1} --same", ckpt, run.run.string()));
  CHECK(same.status == 0);
  CHECK(same.holds("the same bits"));
  const Result other = graft(fmt::format("ckpt diff {0}/step_50 {0}/step_60", ckpt));
  CHECK(other.status == 0);
  CHECK(other.holds("elements differ, largest"));
  CHECK(other.holds("steps 50 and 60"));
  CHECK(other.holds("/step_state/step"));
  CHECK(graft(fmt::format("ckpt diff {0}/step_50 {0}/step_60 --same", ckpt)).status == 4);
  const nlohmann::json report =
      nlohmann::json::parse(graft(fmt::format("ckpt diff {0}/step_50 {0}/step_60 --json", ckpt)).out);
  CHECK(report.at("identical") == false);
  CHECK(report.at("tensors")[0].at("largest").get<double>() > 0);
  train_in(run.directory / "wide", tiny_config({"model.width=32", "train.steps=1"}));
  const Result wide = graft(fmt::format("ckpt diff {} {}", run.run.string(), (run.directory / "wide").string()));
  CHECK(wide.status == 0);
  CHECK(wide.holds("[16, 3] | float32 [32, 3]"));
  flip_bit(run.run / "ckpt/step_60/state.json");
  CHECK(graft(fmt::format("ckpt diff {0}/step_50 {0}/step_60", ckpt)).status == 4);
}

TEST_CASE("ckpt: help on one screen, with examples") {
  CHECK(graft("ckpt --help").holds("Examples:"));
  for (const char* action : {"ls", "verify", "gc", "diff"}) {
    CAPTURE(action);
    const Result help = graft(fmt::format("ckpt {} --help", action));
    CHECK(help.status == 0);
    CHECK(help.holds("Example:"));
  }
  CHECK(graft("ckpt").status == 2);
}

}  // namespace
}  // namespace graft::test
