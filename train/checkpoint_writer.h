#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "train/checkpoint.h"

namespace graft {

/// Saves checkpoints in a thread of its own, one at a time. A save that fails for the file system's sake is tried
/// again, with every file written anew.
///
/// All functions belong to one thread, the owner's.
class CheckpointWriter {
 public:
  struct Job {
    std::int64_t step = 0;
    /// What is to be saved, called in the writer's thread before every attempt: waits for a copy, say. What the result
    /// points to must stay until the job is reported.
    std::function<CheckpointView()> content;
  };
  struct Report {
    std::int64_t step = 0;
    bool final = true;       // false: it will be tried again
    std::string problem;     // why it was not saved; empty: it was
    std::string nonfinite;   // as in SavedCheckpoint
    std::string not_pruned;  // why old checkpoints could not be removed; empty: they were
  };
  struct Patience {
    int attempts = 3;
    double first_pause = 0.5;  // seconds before the second attempt
    double factor = 10;        // a later pause is so many times longer than the one before
  };

  CheckpointWriter(CheckpointDirectory& directory, RetentionPolicy policy, Patience patience);
  CheckpointWriter(CheckpointDirectory& directory, RetentionPolicy policy)
      : CheckpointWriter(directory, policy, Patience{}) {}
  /// Waits for the save under way.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Waits for the save under way, then starts another.
  void start(Job job);
  /// Waits until none is under way. Pauses between attempts are cut short.
  void wait();
  [[nodiscard]] bool busy() const;
  /// What happened since the last call, oldest first.
  [[nodiscard]] std::vector<Report> take_reports();

 private:
  void work();
  void attempt_all(const Job& job);
  [[nodiscard]] Report attempt(const Job& job);
  CheckpointDirectory& directory_;
  RetentionPolicy policy_;
  Patience patience_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Job> job_;  // under way
  std::vector<Report> reports_;
  bool hurry_ = false;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace graft
