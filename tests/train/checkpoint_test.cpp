#include "train/checkpoint.h"

#include <doctest/doctest.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): POSIX signals
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "tests/support/process_limits.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/example_state.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using test::contents;
using test::FileSizeLimit;
using test::TemporaryDirectory;
using test::write_contents;

CheckpointTensor tensor(const std::string& name, const std::vector<float>& values) {
  CheckpointTensor result{name, DType::F32, {static_cast<std::int64_t>(values.size())}, {}};
  result.data.resize(values.size() * sizeof(float));
  std::memcpy(result.data.data(), values.data(), result.data.size());
  return result;
}

/// A checkpoint whose numbers follow from step and variant.
CheckpointData example(std::int64_t step, float variant = 0, std::size_t elements = 5) {
  CheckpointData data;
  std::vector<float> values(elements);
  for (std::size_t i = 0; i < elements; ++i) values[i] = static_cast<float>(step) + variant + static_cast<float>(i);
  data.model = {tensor("blocks.0.weight", values), tensor("head.bias", {variant})};
  data.optimizer = {tensor("m.blocks.0.weight", values)};
  data.state = test::example_state(step, std::numeric_limits<std::uint64_t>::max());
  data.state["variant"] = variant;
  data.step = step;
  return data;
}

void set_step(CheckpointData& data, std::int64_t step) {
  data.step = step;
  data.state = test::example_state(step);
}

void check_equal(const CheckpointData& a, const CheckpointData& b) {
  CHECK(a.step == b.step);
  CHECK(a.state == b.state);
  for (const auto member : {&CheckpointData::model, &CheckpointData::optimizer}) {
    REQUIRE((a.*member).size() == (b.*member).size());
    for (std::size_t i = 0; i < (a.*member).size(); ++i) {
      CHECK((a.*member)[i].name == (b.*member)[i].name);
      CHECK((a.*member)[i].dtype == (b.*member)[i].dtype);
      CHECK((a.*member)[i].shape == (b.*member)[i].shape);
      CHECK((a.*member)[i].data == (b.*member)[i].data);
    }
  }
}

std::vector<std::string> names(const fs::path& directory) {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(directory)) found.push_back(entry.path().filename().string());
  std::sort(found.begin(), found.end());
  return found;
}

/// Flips one bit in the middle of a file.
void damage(const fs::path& file) {
  std::string text = contents(file);
  REQUIRE(!text.empty());
  text[text.size() / 2] = static_cast<char>(text[text.size() / 2] ^ 1);
  write_contents(file, text);
}

TEST_CASE("checkpoint: what is saved comes back, the newest one first") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory / "ckpt");
  CHECK_FALSE(checkpoints.load_latest().has_value());
  CHECK(checkpoints.list().empty());

  CHECK(checkpoints.save(example(100)).path == directory / "ckpt" / "step_100");
  checkpoints.save(example(1000, 0.5F));
  CHECK(names(directory / "ckpt") == std::vector<std::string>{"latest", "step_100", "step_1000"});
  CHECK(names(directory / "ckpt" / "step_100") ==
        std::vector<std::string>{"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"});
  CHECK(contents(directory / "ckpt" / "latest") == "step_1000\n");

  CheckpointReport report;
  check_equal(checkpoints.load_latest(&report).value(), example(1000, 0.5F));
  CHECK(report.loaded == directory / "ckpt" / "step_1000");
  CHECK(report.skipped.empty());
  check_equal(CheckpointDirectory::load(directory / "ckpt" / "step_100"), example(100));
  check_equal(CheckpointDirectory::load((directory / "ckpt" / "step_100").string() + "/"), example(100));

  const CheckpointData model = CheckpointDirectory::load(directory / "ckpt" / "step_100", CheckpointParts::ModelOnly);
  CHECK(model.model.size() == 2);
  CHECK(model.optimizer.empty());

  const auto infos = checkpoints.list();
  REQUIRE(infos.size() == 2);
  CHECK(infos[0].step == 100);
  CHECK(infos[1].step == 1000);
  CHECK_FALSE(infos[0].latest);
  CHECK(infos[1].latest);
  CHECK(infos[0].problem.empty());
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(infos[0].path)) bytes += fs::file_size(entry);
  CHECK(infos[0].bytes == bytes);
}

TEST_CASE("checkpoint: numbers in the state that are not finite do not make it unreadable") {
  const TemporaryDirectory directory;
  CheckpointData data = example(1);
  data.state["gradient_norm"] = std::numeric_limits<double>::infinity();
  CheckpointDirectory(directory.path()).save(data);
  CHECK(CheckpointDirectory::load(directory / "step_1").state["gradient_norm"] == "inf");
}

TEST_CASE("checkpoint: any damaged or missing file is found, named, and the next best one is taken") {
  for (const char* file : {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}) {
    for (const bool missing : {false, true}) {
      CAPTURE(file);
      CAPTURE(missing);
      const TemporaryDirectory directory;
      CheckpointDirectory checkpoints(directory.path());
      for (const std::int64_t step : {1, 2, 3}) checkpoints.save(example(step));
      const fs::path victim = directory / "step_3" / file;
      missing ? static_cast<void>(fs::remove(victim)) : damage(victim);
      CHECK_THROWS_WITH_AS((void)CheckpointDirectory::load(directory / "step_3"), doctest::Contains(file), DataError);
      CHECK_THROWS_WITH_AS((void)CheckpointDirectory::load(directory / "step_3", CheckpointParts::ModelOnly),
                           doctest::Contains(file), DataError);
      CHECK_THROWS_WITH_AS(CheckpointDirectory::verify(directory / "step_3"), doctest::Contains(file), DataError);

      CheckpointReport report;
      check_equal(checkpoints.load_latest(&report).value(), example(2));
      CHECK(report.loaded == directory / "step_2");
      REQUIRE(report.skipped.size() == 1);
      CHECK(report.skipped[0].path == directory / "step_3");
      CHECK(report.skipped[0].reason.find(file) != std::string::npos);
    }
  }
}

TEST_CASE("checkpoint: files cut short, exchanged or lengthened are found") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(example(1));
  checkpoints.save(example(2, 1));
  const fs::path model = directory / "step_2" / "model.safetensors";
  const std::string good = contents(model);
  write_contents(model, good.substr(0, good.size() - 4));
  CHECK_THROWS_WITH_AS((void)CheckpointDirectory::load(directory / "step_2"), doctest::Contains("bytes, expected"),
                       DataError);
  CHECK(checkpoints.list()[1].problem.find("model.safetensors") != std::string::npos);
  write_contents(model, good + "x");
  CHECK_THROWS_AS((void)CheckpointDirectory::load(directory / "step_2"), DataError);
  write_contents(model, contents(directory / "step_1" / "model.safetensors"));  // valid, but of another step
  CHECK_THROWS_WITH_AS((void)CheckpointDirectory::load(directory / "step_2"), doctest::Contains("damaged"), DataError);
  write_contents(model, good);
  CHECK_NOTHROW((void)CheckpointDirectory::load(directory / "step_2"));
  fs::rename(directory / "step_2", directory / "step_7");
  CHECK_THROWS_WITH_AS((void)CheckpointDirectory::load(directory / "step_7"), doctest::Contains("another step"),
                       DataError);
  fs::rename(directory / "step_7", directory / "best");  // a name of the user's own
  CHECK(CheckpointDirectory::load(directory / "best").step == 2);
}

TEST_CASE("checkpoint: nothing valid among what is there is an error, not a fresh start") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(example(1));
  damage(directory / "step_1" / "state.json");
  CHECK_THROWS_WITH_AS((void)checkpoints.load_latest(), doctest::Contains("none of the 1"), DataError);
  CHECK_THROWS_WITH_AS((void)checkpoints.load_latest(), doctest::Contains("state.json"), DataError);
  CHECK_THROWS_WITH_AS((void)CheckpointDirectory::load(directory / "step_9"), doctest::Contains("no such file"),
                       DataError);
}

TEST_CASE("checkpoint: the newest valid one is loaded, whatever `latest` says") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  for (const std::int64_t step : {1, 2, 3}) checkpoints.save(example(step));
  // a crash between the rename and the update of `latest` leaves an older name there
  for (const char* text : {"step_2\n", "", "\n", "step_", "step_03", "step_-1", "../../elsewhere", "step_9\n"}) {
    CAPTURE(std::string(text));
    write_contents(directory / "latest", text);
    CheckpointReport report;
    CHECK(checkpoints.load_latest(&report).value().step == 3);
    CHECK(report.skipped.empty());
  }
  fs::remove(directory / "latest");
  CHECK(checkpoints.load_latest().value().step == 3);
  write_contents(directory / "latest", "step_3\n");
  write_contents(directory / "step_3" / "state.json", "{}");
  CheckpointReport report;
  CHECK(checkpoints.load_latest(&report).value().step == 2);
  REQUIRE(report.skipped.size() == 1);
  CHECK(report.skipped[0].path == directory / "step_3");
}

TEST_CASE("checkpoint: saving a step again replaces it whole") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(example(5, 0));
  write_contents(directory / "step_5" / "stray", "x");
  checkpoints.save(example(5, 1));
  check_equal(checkpoints.load_latest().value(), example(5, 1));
  CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_5"});
  CHECK(names(directory / "step_5").size() == 4);
}

TEST_CASE("checkpoint: a replacement that a crash left half done loses nothing") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(example(4));
  checkpoints.save(example(5));
  fs::rename(directory / "step_5", directory / ".old-step_5-4711");  // the new one never got its name
  check_equal(checkpoints.load_latest().value(), example(5));
  CHECK(checkpoints.list().size() == 2);
  checkpoints.save(example(6));
  CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_4", "step_5", "step_6"});
  check_equal(CheckpointDirectory::load(directory / "step_5"), example(5));
}

TEST_CASE("checkpoint: what a killed process was writing is neither loaded nor kept") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(example(1));
  fs::create_directory(directory / ".tmp-step_2-4711");
  write_contents(directory / ".tmp-step_2-4711" / "model.safetensors", "half");
  CHECK(checkpoints.load_latest().value().step == 1);
  checkpoints.save(example(3));
  CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_1", "step_3"});
}

TEST_CASE("checkpoint: too little room is said before anything is written") {
  const TemporaryDirectory directory;
  CheckpointDirectory(directory.path()).save(example(1));
  CheckpointOptions options;
  options.available_bytes = [](const fs::path&) { return std::uint64_t{1000}; };
  CheckpointDirectory full(directory.path(), options);
  CHECK_THROWS_WITH_AS(full.save(example(2)), doctest::Contains("step 2 was not saved"), EnvironmentError);
  CHECK_THROWS_WITH_AS(full.save(example(2)), doctest::Contains("and 1000 are available"), EnvironmentError);
  CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_1"});
  CHECK(full.load_latest().value().step == 1);
}

TEST_CASE("checkpoint: a write that fails leaves the last good one and nothing else") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.save(example(1));
  for (const std::int64_t step : {1, 2}) {  // a replacement, and a new one
    {
      const FileSizeLimit limit(100'000);
      REQUIRE(limit.holds());
      CHECK_THROWS_WITH_AS(checkpoints.save(example(step, 9, 100'000)),
                           doctest::Contains("was not saved: cannot write"), EnvironmentError);
    }
    CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_1"});
    check_equal(checkpoints.load_latest().value(), example(1));
  }
  checkpoints.save(example(2));
  CHECK(checkpoints.load_latest().value().step == 2);
}

TEST_CASE("checkpoint: killed at any time while saving, the last or the new one is there") {
  const TemporaryDirectory directory;
  CheckpointDirectory(directory.path()).save(example(1, 0, 20'000));
  for (int attempt = 0; attempt < 12; ++attempt) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      CheckpointDirectory writer(directory.path());
      for (std::int64_t step = 1;; step = step % 3 + 1) writer.save(example(step, 0, 20'000));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(3 + 5 * attempt));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    CheckpointReport report;
    const auto loaded = CheckpointDirectory(directory.path()).load_latest(&report);
    REQUIRE(loaded.has_value());
    check_equal(*loaded, example(loaded->step, 0, 20'000));
    CHECK(report.skipped.empty());
  }
}

TEST_CASE("checkpoint: pruning keeps the last ones and permanent ones") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  for (std::int64_t step = 0; step <= 120; step += 10) checkpoints.save(example(step));
  const auto removed = checkpoints.prune({.keep_last = 2, .permanent_every = 50});
  CHECK(removed.size() == 9);
  CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_100", "step_110", "step_120", "step_50"});
  CHECK(checkpoints.prune({.keep_last = 2, .permanent_every = 50}).empty());
  CHECK(checkpoints.prune({.keep_last = 100, .permanent_every = 0}).empty());
  CHECK_THROWS_AS(checkpoints.prune({.keep_last = 0, .permanent_every = 0}), ArgumentError);
}

TEST_CASE("checkpoint: pruning never removes the newest valid one, nor what `latest` names") {
  const TemporaryDirectory directory;
  {
    CheckpointDirectory writer(directory.path());
    for (const std::int64_t step : {1, 2, 3, 4, 5}) writer.save(example(step));
  }
  damage(directory / "step_4" / "model.safetensors");
  damage(directory / "step_5" / "state.json");
  write_contents(directory / "latest", "step_2\n");
  CheckpointDirectory checkpoints(directory.path());
  checkpoints.prune({.keep_last = 1, .permanent_every = 0});
  CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_2", "step_3", "step_5"});
}

TEST_CASE("checkpoint: going back sets aside what came later, and `latest` follows") {
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  CHECK_FALSE(checkpoints.set_aside_after(0).has_value());
  for (const std::int64_t step : {1, 2, 3}) checkpoints.save(example(step));
  const auto first = checkpoints.set_aside_after(1);
  REQUIRE(first.has_value());
  CHECK(first->directory == directory / "abandoned_1");
  CHECK(names(directory / "abandoned_1") == std::vector<std::string>{"step_2", "step_3"});
  CHECK(names(directory.path()) == std::vector<std::string>{"abandoned_1", "latest", "step_1"});
  CHECK(contents(directory / "latest") == "step_1\n");
  CHECK(checkpoints.load_latest().value().step == 1);
  check_equal(CheckpointDirectory::load(first->checkpoints[1]), example(3));

  CHECK_FALSE(checkpoints.set_aside_after(1).has_value());
  checkpoints.save(example(2, 1));
  CHECK(checkpoints.set_aside_after(0)->directory == directory / "abandoned_2");
  CHECK(names(directory.path()) == std::vector<std::string>{"abandoned_1", "abandoned_2"});
  CHECK_FALSE(checkpoints.load_latest().has_value());
  CHECK(checkpoints.abandoned().size() == 2);
  checkpoints.prune({});
  checkpoints.remove(checkpoints.abandoned()[0]);
  CHECK(names(directory.path()) == std::vector<std::string>{"abandoned_2"});
}

TEST_CASE("checkpoint: one that is not finite is kept, but is not `latest`, not continued and replaces no finite one") {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const TemporaryDirectory directory;
    CheckpointDirectory checkpoints(directory.path());
    checkpoints.save(example(1));
    CheckpointData data = example(2);
    std::memcpy(data.model[0].data.data() + 12, &bad, 4);
    const SavedCheckpoint saved = checkpoints.save(data);
    CHECK(saved.path == directory / "step_2");
    CHECK(saved.nonfinite.starts_with("blocks.0.weight[3] is "));
    CHECK(contents(directory / "latest") == "step_1\n");
    CHECK_NOTHROW(CheckpointDirectory::verify(directory / "step_2"));
    CHECK(CheckpointDirectory::load(directory / "step_2").nonfinite == saved.nonfinite);
    CheckpointReport report;
    CHECK(checkpoints.load_latest(&report).value().step == 1);
    REQUIRE(report.skipped.size() == 1);
    CHECK(report.skipped[0].reason.find("blocks.0.weight[3] is ") != std::string::npos);
    CHECK_FALSE(checkpoints.list()[1].usable());

    set_step(data, 1);  // again
    CHECK_FALSE(checkpoints.save(data).nonfinite.empty());
    check_equal(CheckpointDirectory::load(directory / "step_1"), example(1));

    // however many come, the last finite one stays
    for (std::int64_t step = 3; step < 10; ++step) {
      set_step(data, step);
      checkpoints.save(data);
      checkpoints.prune({.keep_last = 1, .permanent_every = 1});
    }
    CHECK(checkpoints.load_latest().value().step == 1);
    checkpoints.save(example(10));
    checkpoints.prune({.keep_last = 1, .permanent_every = 0});
    CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_10"});
  }
  const TemporaryDirectory directory;
  CheckpointDirectory checkpoints(directory.path());
  CheckpointData data = example(1);
  const double infinity = -std::numeric_limits<double>::infinity();
  data.optimizer.push_back({"wide", DType::F64, {2, 1}, std::vector<std::byte>(16)});
  std::memcpy(data.optimizer.back().data.data() + 8, &infinity, 8);
  CHECK(checkpoints.save(data).nonfinite == "wide[1] is -inf");
  CHECK_THROWS_WITH_AS((void)checkpoints.load_latest(), doctest::Contains("wide[1] is -inf"), DataError);
}

TEST_CASE("checkpoint: pruning keeps the one with the best score, in either sense of better") {
  for (const bool higher : {false, true}) {
    const TemporaryDirectory directory;
    CheckpointDirectory checkpoints(directory.path());
    for (std::int64_t step = 1; step <= 9; ++step) {
      CheckpointData data = example(step);
      const auto distance = static_cast<double>((step - 4) * (step - 4));  // best at 4
      data.score = CheckpointScore{higher ? -distance : distance, "score", higher};
      if (step % 2 == 1) data.score.reset();
      checkpoints.save(data);
      checkpoints.prune({.keep_last = 2, .permanent_every = 0});
    }
    CHECK(names(directory.path()) == std::vector<std::string>{"latest", "step_4", "step_8", "step_9"});
    CHECK(checkpoints.list()[0].best);
    CHECK(checkpoints.list()[0].score->value == 0);
    CHECK_FALSE(checkpoints.list()[1].best);
  }
}

TEST_CASE("checkpoint: rows with gaps between them are written without the gaps") {
  const TemporaryDirectory directory;
  std::vector<float> padded(4 * 8, std::nanf(""));  // gaps are nobody's numbers
  std::vector<float> packed;
  for (std::size_t row = 0; row < 4; ++row) {
    for (std::size_t column = 0; column < 5; ++column) {
      padded[8 * row + column] = static_cast<float>(10 * row + column);
      packed.push_back(padded[8 * row + column]);
    }
  }
  CheckpointView view;
  view.step = 3;
  view.state = test::example_state(3);
  view.model.push_back({"w", DType::F32, {4, 5}, reinterpret_cast<const std::byte*>(padded.data()), 4, 20, 32});
  CheckpointDirectory checkpoints(directory.path());
  CHECK(checkpoints.save(view).nonfinite.empty());
  const CheckpointData loaded = CheckpointDirectory::load(directory / "step_3");
  REQUIRE(loaded.model.size() == 1);
  std::vector<float> values(packed.size());
  REQUIRE(loaded.model[0].data.size() == values.size() * sizeof(float));
  std::memcpy(values.data(), loaded.model[0].data.data(), loaded.model[0].data.size());
  CHECK(values == packed);
}

TEST_CASE("checkpoint: a tensor of the wrong size is refused and leaves nothing") {
  const TemporaryDirectory directory;
  CheckpointData data = example(1);
  data.model[0].data.pop_back();
  CheckpointDirectory checkpoints(directory.path());
  CHECK_THROWS_WITH_AS(checkpoints.save(data), doctest::Contains("'blocks.0.weight' has 19 bytes, expected 20"),
                       ArgumentError);
  data = example(1);
  data.model.push_back(data.model[0]);
  CHECK_THROWS_WITH_AS(checkpoints.save(data), doctest::Contains("given twice"), ArgumentError);
  CHECK(names(directory.path()).empty());
}

}  // namespace
}  // namespace graft
