#pragma once

#include <filesystem>

namespace graft {

/// Keeps a folder of checkpoints to one process as long as this object lives: the folder itself is locked, so that it
/// counts by whatever path or link it is reached. The lock of a run's directory (RunDirectory) does not tell of a run
/// whose folder lies elsewhere.
class CheckpointLock {
 public:
  CheckpointLock() = default;
  ~CheckpointLock();
  CheckpointLock(const CheckpointLock&) = delete;
  CheckpointLock& operator=(const CheckpointLock&) = delete;

  /// Whether the folder is this process's now, or already was. A folder that is not there yet, or cannot be locked
  /// (some network file systems have no locks), has nobody who could hold it. False: another process has it.
  [[nodiscard]] bool take(const std::filesystem::path& folder);
  /// Throws EnvironmentError if another process has it.
  void require(const std::filesystem::path& folder);

 private:
  int fd_ = -1;
};

}  // namespace graft
