// Damage of every kind, many times: a checkpoint that is not exactly what was saved is never loaded.

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/example_state.h"
#include "train/checkpoint.h"

namespace graft::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFiles[] = {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"};

CheckpointData example(std::int64_t step) {
  CheckpointData data;
  std::mt19937 random(static_cast<unsigned>(step));
  const auto tensor = [&](const std::string& name, std::size_t elements) {
    CheckpointTensor result{name, DType::F32, {static_cast<std::int64_t>(elements)}, {}};
    result.data.resize(4 * elements);
    for (std::size_t i = 0; i < elements; ++i) {
      const auto value = static_cast<float>(random()) * 1e-9F;
      std::memcpy(result.data.data() + 4 * i, &value, 4);
    }
    return result;
  };
  data.model = {tensor("blocks.0.weight", 300), tensor("head.bias", 7)};
  data.optimizer = {tensor("first_moment.blocks.0.weight", 300), tensor("second_moment.blocks.0.weight", 300)};
  data.state = example_state(step);
  data.step = step;
  data.score = CheckpointScore{0.25, "squared error", false};
  return data;
}

/// Two checkpoints; the newer one's files can be damaged and mended.
class Victim {
 public:
  Victim() : checkpoints_(directory_.path()) {
    checkpoints_.save(example(1));
    checkpoints_.save(example(2));
    for (const char* file : kFiles) good_.push_back(contents(path(file)));
  }
  [[nodiscard]] fs::path path(const char* file, int step = 2) const {
    return directory_.path() / ("step_" + std::to_string(step)) / file;
  }
  [[nodiscard]] const std::string& good(std::size_t file) const { return good_[file]; }

  /// Whether every way in refuses the damaged checkpoint and names the file, and a resume takes the older one.
  bool found(const char* file) const {
    const auto named = [&](const auto& call) {
      try {
        call();
      } catch (const DataError& error) {
        return std::string(error.what()).find(file) != std::string::npos;
      }
      return false;
    };
    const fs::path newer = directory_.path() / "step_2";
    CheckpointReport report;
    return named([&] { CheckpointDirectory::verify(newer); }) &&
           named([&] { (void)CheckpointDirectory::load(newer); }) &&
           named([&] { (void)CheckpointDirectory::load(newer, CheckpointParts::ModelOnly); }) &&
           checkpoints_.load_latest(&report).value().step == 1 && report.skipped.size() == 1 &&
           report.skipped[0].reason.find(file) != std::string::npos;
  }
  [[nodiscard]] bool whole() const { return checkpoints_.load_latest().value().step == 2; }

 private:
  TemporaryDirectory directory_;
  CheckpointDirectory checkpoints_;
  std::vector<std::string> good_;
};

TEST_CASE("checkpoint damage: 1,000 flipped bits are found, named and passed over") {
  const Victim victim;
  std::mt19937 random(1);
  for (int trial = 0; trial < 1000; ++trial) {
    const std::size_t file = static_cast<std::size_t>(trial) % std::size(kFiles);
    std::string text = victim.good(file);
    const std::size_t bit = random() % (8 * text.size());
    CAPTURE(kFiles[file]);
    CAPTURE(bit);
    text[bit / 8] = static_cast<char>(static_cast<unsigned char>(text[bit / 8]) ^ (1U << (bit % 8)));
    write_contents(victim.path(kFiles[file]), text);
    REQUIRE(victim.found(kFiles[file]));
    write_contents(victim.path(kFiles[file]), victim.good(file));
  }
  CHECK(victim.whole());
}

TEST_CASE("checkpoint damage: 200 truncations, to nothing and by one byte among them") {
  const Victim victim;
  std::mt19937 random(2);
  for (int trial = 0; trial < 200; ++trial) {
    const std::size_t file = static_cast<std::size_t>(trial) % std::size(kFiles);
    const std::string& good = victim.good(file);
    const int kind = trial / static_cast<int>(std::size(kFiles));
    const std::size_t length = kind == 0 ? 0 : kind == 1 ? good.size() - 1 : random() % good.size();
    CAPTURE(kFiles[file]);
    CAPTURE(length);
    write_contents(victim.path(kFiles[file]), good.substr(0, length));
    REQUIRE(victim.found(kFiles[file]));
    write_contents(victim.path(kFiles[file]), good);
  }
  CHECK(victim.whole());
}

TEST_CASE("checkpoint damage: longer files, zeroed blocks and missing files") {
  const Victim victim;
  std::mt19937 random(3);
  for (std::size_t file = 0; file < std::size(kFiles); ++file) {
    CAPTURE(kFiles[file]);
    const std::string& good = victim.good(file);
    for (const std::string& more : {std::string("\n"), std::string(" "), std::string(1, '\0'), good}) {
      write_contents(victim.path(kFiles[file]), good + more);
      CHECK(victim.found(kFiles[file]));
    }
    for (int trial = 0; trial < 10; ++trial) {  // what a disk may return for a sector that was never written
      std::string text = good;
      const std::size_t from = random() % (text.size() - 40);
      text.replace(from, 40, 40, '\0');
      if (text == good) continue;
      write_contents(victim.path(kFiles[file]), text);
      CHECK(victim.found(kFiles[file]));
    }
    fs::remove(victim.path(kFiles[file]));
    CHECK(victim.found(kFiles[file]));
    fs::create_directory(victim.path(kFiles[file]));
    CHECK(victim.found(kFiles[file]));
    fs::remove(victim.path(kFiles[file]));
    write_contents(victim.path(kFiles[file]), good);
  }
  CHECK(victim.whole());
}

TEST_CASE("checkpoint damage: files exchanged within a checkpoint and between two") {
  const Victim victim;
  for (std::size_t to = 0; to < std::size(kFiles); ++to) {
    CAPTURE(kFiles[to]);
    write_contents(victim.path(kFiles[to]), contents(victim.path(kFiles[to], 1)));  // intact, of another step
    CHECK(victim.found(kFiles[to]));
    for (std::size_t from = 0; from < std::size(kFiles); ++from) {
      if (from == to) continue;
      write_contents(victim.path(kFiles[to]), victim.good(from));
      CHECK(victim.found(kFiles[to]));
    }
    write_contents(victim.path(kFiles[to]), victim.good(to));
  }
  CHECK(victim.whole());
  // All files of another step: every checksum holds, and the name tells.
  for (const char* file : kFiles) write_contents(victim.path(file), contents(victim.path(file, 1)));
  CHECK(victim.found("manifest.json"));
}

}  // namespace
}  // namespace graft::test
