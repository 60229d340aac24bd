#include "train/checkpoint_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/error.h"
#include "train/file_io.h"

namespace graft {

CheckpointLock::~CheckpointLock() {
  if (fd_ >= 0) ::close(fd_);
}

bool CheckpointLock::take(const std::filesystem::path& folder) {
  if (fd_ >= 0 && find_at(folder, fd_) == FoundAt::Same) return true;
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return true;
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const bool held = errno == EWOULDBLOCK;
    ::close(fd);
    return !held;
  }
  if (const int before = std::exchange(fd_, fd); before >= 0) ::close(before);
  return true;
}

void CheckpointLock::require(const std::filesystem::path& folder) {
  if (take(folder)) return;
  throw EnvironmentError(fmt::format("checkpoint: {} is in use by another process; wait for it", folder.string()));
}

}  // namespace graft
