#include "train/result_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "engine/error.h"
#include "train/file_io.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 8> kOfARun = {"run.json",   "config.toml",    "resolved.toml", "metrics.jsonl",
                                                "eval.jsonl", "baselines.json", "numerics.json", ".lock"};

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

/// Whether training writes the file: those of a run's directory and all of its checkpoints. One that cannot be found
/// out about is none of them.
bool belongs_to_a_run(const std::string& text) {
  std::error_code error;
  const fs::path path = fs::weakly_canonical(text, error);
  if (error) return false;
  const fs::path directory = path.parent_path();
  if (std::find(kOfARun.begin(), kOfARun.end(), path.filename()) != kOfARun.end() &&
      fs::exists(directory / "run.json", error)) {
    return true;
  }
  return fs::exists(directory / "manifest.json", error) ||
         (directory.filename() == "ckpt" && fs::exists(directory.parent_path() / "run.json", error));
}

/// Writes all of it. Returns the reason if it could not be.
int write_whole(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return written < 0 ? errno : ENOSPC;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return 0;
}

}  // namespace

ResultFile::ResultFile(std::string_view command, std::string_view option, std::string path)
    : command_(command), path_(std::move(path)) {
  if (path_.empty()) return;
  std::error_code ignored;  // what cannot be looked at cannot be opened either, which says why
  const fs::file_status named = fs::symlink_status(path_, ignored), file = fs::status(path_, ignored);
  if (fs::is_directory(file)) {
    throw ArgumentError(fmt::format("{}: {} {} is a directory, expected a file", command_, option, path_));
  }
  // Opening a pipe may wait for its reader, or end what it reads: that is for the results.
  if (fs::exists(file) && !fs::is_regular_file(file)) {
    if (::access(path_.c_str(), W_OK) != 0) throw_system_error(command_ + ": cannot write", path_, errno);
    return;
  }
  if (belongs_to_a_run(path_)) {
    throw ArgumentError(
        fmt::format("{}: {} {} is a file that training writes; choose another one", command_, option, path_));
  }
  open(0);
  ::close(std::exchange(fd_, -1));
  // Where it is a link to nothing, what it leads to goes, not the link.
  if (!fs::exists(file)) fs::remove(fs::canonical(path_, ignored), ignored);
  replaces_ = !fs::is_symlink(named) && ::access(folder_of(path_).c_str(), W_OK) == 0;
}

ResultFile::~ResultFile() {
  if (fd_ >= 0) ::close(fd_);
}

void ResultFile::open(int how) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | how, 0666);
  if (fd_ < 0) throw_system_error(command_ + ": cannot write", path_, errno);
}

void ResultFile::append(std::string_view line) {
  if (!wanted()) return;
  if (fd_ < 0) open(O_TRUNC);
  if (const int reason = write_whole(fd_, line); reason != 0) {
    // Part of a line goes; a pipe or a device has nothing that could be cut.
    [[maybe_unused]] const int cut = ::ftruncate(fd_, static_cast<off_t>(whole_));
    throw EnvironmentError(fmt::format("{} is not written any further: {} ({})", path_,
                                       std::generic_category().message(reason), room_for(line.size())));
  }
  whole_ += line.size();
}

void ResultFile::write(std::string text) {
  text_ = std::move(text);
  if (!wanted() || !replaces_) return;
  try {
    put();
    problem_.clear();
  } catch (const Error& error) {
    problem_ = error.what();
  }
}

void ResultFile::close() {
  if (!wanted()) return;
  try {
    if (!replaces_ || !problem_.empty()) put();
  } catch (const Error& error) {
    throw EnvironmentError(fmt::format("{}: {} does not hold all results: {} ({})", command_, path_, error.what(),
                                       room_for(text_.size())));
  }
}

void ResultFile::put() {
  if (replaces_) return replace_text_file(path_, text_);
  open(O_TRUNC);
  int reason = write_whole(fd_, text_);
  if (::close(std::exchange(fd_, -1)) != 0 && reason == 0) reason = errno;
  if (reason != 0) throw_system_error("cannot write", path_, reason);
}

std::string ResultFile::room_for(std::size_t bytes) const {
  const fs::path folder = fs::absolute(path_).parent_path();
  return room_text(bytes, folder, available_on_disk(folder));
}

}  // namespace graft
