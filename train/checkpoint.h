#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/dtype.h"
#include "engine/shape.h"

namespace graft {

struct CheckpointTensor {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
  std::vector<std::byte> data;  // row-major, without padding
};

/// Everything a run needs to continue, on the host. Neither the device nor the number of ranks leaves a trace in it.
struct CheckpointData {
  std::vector<CheckpointTensor> model;      // weights
  std::vector<CheckpointTensor> optimizer;  // moments
  nlohmann::json state;                     // what the trainer keeps besides: seed, step state, config hash, ...
  std::int64_t step = 0;
};

enum class CheckpointParts : std::uint8_t { All, ModelOnly };

/// A complete-looking checkpoint: its manifest can be read and every file has its size. Contents are not checked.
struct CheckpointInfo {
  std::filesystem::path path;
  std::int64_t step = 0;
  std::uint64_t bytes = 0;
  std::string problem;  // why it cannot be used; empty if it looks complete
  bool latest = false;  // named by the file `latest`
};

/// What load_latest() did.
struct CheckpointReport {
  struct Skipped {
    std::filesystem::path path;
    std::string reason;
  };
  std::filesystem::path loaded;  // empty if there was no checkpoint
  std::vector<Skipped> skipped;
};

struct RetentionPolicy {
  int keep_last = 3;                 // at least 1
  std::int64_t permanent_every = 0;  // steps that are multiples of it are kept for good; 0: none
};

struct CheckpointOptions {
  /// Bytes that may be written where a directory lies; the file system's answer if empty.
  std::function<std::uint64_t(const std::filesystem::path&)> available_bytes;
};

/// The checkpoints of one run:
///
///   step_<n>/manifest.json           sizes and XXH3-128 of the other files, and of itself
///            model.safetensors  optimizer.safetensors  state.json
///   latest                           a text file: the name of the newest one
///
/// A checkpoint appears whole or not at all: it is written under another name, synced, renamed, and only then named
/// in `latest`. One process at a time may save (see RunDirectory's lock); any number may load.
class CheckpointDirectory {
 public:
  explicit CheckpointDirectory(const std::filesystem::path& directory, CheckpointOptions options = {});

  /// Saves and returns the checkpoint's path; one of the same step is replaced. Throws EnvironmentError if the disk
  /// has not enough room (said before anything is written) or a write fails; what was there before stays valid.
  std::filesystem::path save(const CheckpointData& data);

  /// The newest valid checkpoint, by step (the file `latest` is for people and other programs); nothing if there is
  /// none at all. Every byte is checked. Throws DataError with the reasons if there are checkpoints and none is valid:
  /// starting over would be no continuation. `report` (may be null) tells what was loaded and what was skipped.
  [[nodiscard]] std::optional<CheckpointData> load_latest(CheckpointReport* report = nullptr,
                                                          CheckpointParts parts = CheckpointParts::All) const;

  /// One checkpoint by its path. Throws DataError naming the file that is missing or damaged.
  [[nodiscard]] static CheckpointData load(const std::filesystem::path& path,
                                           CheckpointParts parts = CheckpointParts::All);
  /// Checks every byte of one checkpoint. Throws like load().
  static void verify(const std::filesystem::path& path);

  /// All checkpoints, by step.
  [[nodiscard]] std::vector<CheckpointInfo> list() const;

  /// Removes what the policy does not keep, and what a killed process left behind. Neither the checkpoint that
  /// `latest` names nor the newest valid one is ever removed. Returns what was.
  std::vector<std::filesystem::path> prune(const RetentionPolicy& policy);

  /// Removes checkpoints beyond `step`: a run that goes back to an earlier one writes those steps anew.
  std::vector<std::filesystem::path> discard_after(std::int64_t step);

  [[nodiscard]] const std::filesystem::path& path() const { return directory_; }

 private:
  [[nodiscard]] std::filesystem::path latest_target() const;
  [[nodiscard]] std::vector<std::filesystem::path> by_step() const;
  [[nodiscard]] bool is_valid(const std::filesystem::path& path);
  void write(const CheckpointData& data, const std::filesystem::path& into) const;
  void publish(const std::filesystem::path& from, const std::filesystem::path& to) const;
  void remove(const std::filesystem::path& checkpoint);
  void remove_leftovers() const;
  std::filesystem::path directory_;
  CheckpointOptions options_;
  std::set<std::filesystem::path> known_valid_;  // saved or fully checked by this object
};

}  // namespace graft
