#pragma once
// What the system lets this process have, and what it has.

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <fstream>

namespace graft::test {

/// A limit on this process, and on those that it starts, while the object lives.
class ProcessLimit {
 public:
  ProcessLimit(__rlimit_resource what, std::uint64_t value) : what_(what) {
    if (::getrlimit(what, &before_) != 0) return;
    const rlimit limit{value, before_.rlim_max};
    holds_ = ::setrlimit(what, &limit) == 0;
  }
  ~ProcessLimit() {
    if (holds_) ::setrlimit(what_, &before_);
  }
  ProcessLimit(const ProcessLimit&) = delete;
  ProcessLimit& operator=(const ProcessLimit&) = delete;

  /// False where the process is not allowed as much to begin with: nothing has changed then.
  [[nodiscard]] bool holds() const { return holds_; }

 private:
  __rlimit_resource what_;
  rlimit before_{};
  bool holds_ = false;
};

/// A limit on the size of files: writing more is an error, as on a full disk, and no signal that ends the process.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::uint64_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)), limit_(RLIMIT_FSIZE, bytes) {}
  ~FileSizeLimit() { std::signal(SIGXFSZ, handler_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

  [[nodiscard]] bool holds() const { return limit_.holds(); }

 private:
  void (*handler_)(int);
  ProcessLimit limit_;
};

/// Bytes that this process has.
struct MemoryInUse {
  std::size_t addresses = 0, resident = 0;
};
[[nodiscard]] inline MemoryInUse memory_in_use() {
  std::size_t addresses = 0, resident = 0;  // in pages
  std::ifstream("/proc/self/statm") >> addresses >> resident;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return {addresses * page, resident * page};
}

/// Whether a sanitizer runs this process, which takes terabytes of addresses: a limit on them says nothing then.
[[nodiscard]] inline bool addresses_are_taken() { return memory_in_use().addresses > std::size_t{1} << 40U; }

}  // namespace graft::test
