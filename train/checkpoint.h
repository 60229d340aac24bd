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

/// Where a tensor's bytes lie in memory that somebody else keeps: rows that may be further apart than they are long.
struct CheckpointTensorView {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
  const std::byte* data = nullptr;
  std::size_t rows = 1;
  std::size_t row_bytes = 0;
  std::size_t stride = 0;  // bytes from one row to the next

  [[nodiscard]] std::size_t bytes() const { return rows * row_bytes; }
};

/// What the evaluation at a checkpoint's step found: the best checkpoint is never pruned.
struct CheckpointScore {
  double value = 0;
  std::string name;  // "squared error", "accuracy"
  bool higher_is_better = false;
};

/// What save() writes.
struct CheckpointView {
  std::vector<CheckpointTensorView> model;
  std::vector<CheckpointTensorView> optimizer;
  nlohmann::json state;
  std::int64_t step = 0;
  std::optional<CheckpointScore> score;
};

/// Everything a run needs to continue, on the host. Neither the device nor the number of ranks leaves a trace in it.
struct CheckpointData {
  std::vector<CheckpointTensor> model;      // weights
  std::vector<CheckpointTensor> optimizer;  // moments
  nlohmann::json state;                     // what the trainer keeps besides: seed, step state, config hash, ...
  std::int64_t step = 0;
  std::optional<CheckpointScore> score = {};
  std::string nonfinite = {};       // the first number that is not finite, for people; empty: there is none
  std::filesystem::path path = {};  // what load() read; empty for one that was not read

  /// The same without a copy. Throws ArgumentError naming a tensor whose bytes do not fit its shape.
  [[nodiscard]] CheckpointView view() const;
};

enum class CheckpointParts : std::uint8_t { All, ModelOnly };

/// A complete-looking checkpoint: its manifest can be read and every file has its size. Contents are not checked.
struct CheckpointInfo {
  std::filesystem::path path;
  std::int64_t step = 0;
  std::uint64_t bytes = 0;
  std::string problem;    // why it cannot be used; empty if it looks complete
  bool latest = false;    // named by the file `latest`
  std::string nonfinite;  // as in CheckpointData: it is not continued, and never `latest`
  std::optional<CheckpointScore> score;
  bool best = false;  // of all that can be used, the one with the best score

  [[nodiscard]] bool usable() const { return problem.empty() && nonfinite.empty(); }
};

struct SavedCheckpoint {
  std::filesystem::path path;
  std::string nonfinite;  // if not empty, `latest` still names an earlier one
};

/// Checkpoints that a run left behind when it went back to an earlier one.
struct AbandonedCheckpoints {
  std::filesystem::path directory;  // abandoned_<k>
  std::vector<std::filesystem::path> checkpoints;
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
///   step_<n>/manifest.json           sizes and XXH3-128 of the other files, and of itself; score, non-finite numbers
///            model.safetensors  optimizer.safetensors  state.json
///   latest                           a text file: the name of the newest one that is finite
///   abandoned_<k>/step_<n>/          what a run left behind by going back to an earlier step
///
/// A checkpoint appears whole or not at all: it is written under another name, every file and the directory synced,
/// renamed, the parent synced, and only then named in `latest`. One process at a time may save (see RunDirectory's
/// lock), from one thread at a time; any number may load.
class CheckpointDirectory {
 public:
  explicit CheckpointDirectory(const std::filesystem::path& directory, CheckpointOptions options = {});

  /// Saves, in a directory that it creates if need be, but not one above it: a run's directory that is gone was moved
  /// or removed. One of the same step is replaced, unless that is finite and the new one is not. Throws
  /// EnvironmentError if the disk has not enough room (said before anything is written, with the bytes needed and
  /// available), a write fails, or load() would not accept what is to be written; what was there before stays valid.
  SavedCheckpoint save(const CheckpointView& content);
  SavedCheckpoint save(const CheckpointData& data) { return save(data.view()); }

  /// An upper bound of the bytes a checkpoint takes, and what the file system offers here. The directory need not
  /// exist.
  [[nodiscard]] static std::uint64_t bytes_needed(const CheckpointView& content);
  [[nodiscard]] std::uint64_t bytes_available() const;
  /// Throws EnvironmentError if nothing can be created in the directory, or its path is too long for the files of a
  /// checkpoint. One that is not there yet is in order: save() makes it.
  void check_writable() const;

  /// The newest valid checkpoint whose numbers are finite, by step (the file `latest` is for people and other
  /// programs); nothing if there is none at all. Every byte is checked. Throws DataError with the reasons if there are
  /// checkpoints and none can be used: starting over would be no continuation. `report` (may be null) tells what was
  /// loaded and what was skipped. `accept` may throw an Error for what else makes one unfit: it is skipped, too.
  [[nodiscard]] std::optional<CheckpointData> load_latest(
      CheckpointReport* report = nullptr, CheckpointParts parts = CheckpointParts::All,
      const std::function<void(const CheckpointData&)>& accept = {}) const;

  /// One checkpoint by its path; every byte of all its files is checked, whichever parts are wanted. Throws DataError
  /// naming the file that is missing or damaged, or holds values that no run can have saved.
  [[nodiscard]] static CheckpointData load(const std::filesystem::path& path,
                                           CheckpointParts parts = CheckpointParts::All);
  /// Checks every byte of one checkpoint, and its values. Throws like load(). Returns its first number that is not
  /// finite, for people; empty: all are.
  static std::string verify(const std::filesystem::path& path);

  /// Whether this directory's checkpoint of that step is `checkpoint` or, intact, has the same weights and moments.
  [[nodiscard]] bool holds(const std::filesystem::path& checkpoint) const;

  /// All checkpoints, by step, without those that were set aside.
  [[nodiscard]] std::vector<CheckpointInfo> list() const;

  /// What prune() would remove, and nothing is touched.
  [[nodiscard]] std::vector<std::filesystem::path> surplus(const RetentionPolicy& policy);
  /// Removes what the policy does not keep, and what a killed process left behind. Never removed: the checkpoint that
  /// `latest` names, the newest one that is valid and finite, the best. Returns what was.
  std::vector<std::filesystem::path> prune(const RetentionPolicy& policy);

  /// Moves checkpoints beyond `step` to a new directory abandoned_<k>, newest first, and lets `latest` name what is
  /// newest then: a run that goes back to an earlier step must not be continued from a later one.
  std::optional<AbandonedCheckpoints> set_aside_after(std::int64_t step);
  /// What earlier calls moved, oldest first.
  [[nodiscard]] std::vector<AbandonedCheckpoints> abandoned() const;
  void remove(const AbandonedCheckpoints& abandoned);

  [[nodiscard]] const std::filesystem::path& path() const { return directory_; }

 private:
  [[nodiscard]] std::filesystem::path latest_target() const;
  [[nodiscard]] std::vector<std::filesystem::path> by_step() const;
  [[nodiscard]] bool is_valid(const std::filesystem::path& path);
  /// Throws EnvironmentError unless the directory is one, or not there yet.
  void require_reachable() const;
  void publish(const std::filesystem::path& from, const std::filesystem::path& to) const;
  void remove_tree(const std::filesystem::path& path) const;
  void remove_leftovers() const;
  std::filesystem::path directory_;
  CheckpointOptions options_;
  std::set<std::filesystem::path> known_valid_;  // saved or fully checked by this object, and finite
};

}  // namespace graft
