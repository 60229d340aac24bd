#include "train/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/error.h"

namespace graft {
namespace {

// Linux transfers at most 2^31 - 4096 bytes a call.
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30U;

std::string hexadecimal(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  std::string text;
  text.reserve(2 * sizeof(canonical.digest));
  for (const unsigned char byte : canonical.digest) text += fmt::format("{:02x}", byte);
  return text;
}

void write_all(int fd, const std::filesystem::path& path, std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        ::pwrite(fd, bytes.data(), std::min(bytes.size(), kMaxTransfer), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error("cannot write", path, errno);
    if (written == 0) throw_system_error("cannot write", path, ENOSPC);  // no reason given; asking again may not end
    offset += static_cast<std::uint64_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

}  // namespace

struct OutputFile::Hash {
  XXH3_state_t state;
};

void throw_system_error(std::string_view what, const std::filesystem::path& path, int error_number) {
  throw EnvironmentError(fmt::format("{} {}: {}", what, path.string(), std::generic_category().message(error_number)));
}

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  // Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever; regular files do not know it.
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) {
    const int reason = errno;
    if (reason == ENOENT || reason == ENOTDIR) throw DataError(fmt::format("{}: no such file", path_.string()));
    throw_system_error("cannot open", path_, reason);
  }
  struct stat status {};
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd_);
    throw DataError(fmt::format("{}: not a regular file", path_.string()));
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void InputFile::read(std::uint64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t count = ::pread(fd_, to.data(), std::min(to.size(), kMaxTransfer), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_system_error("cannot read", path_, errno);
    if (count == 0) {
      throw DataError(fmt::format("{}: ends at byte {}, {} more were expected", path_.string(), offset, to.size()));
    }
    offset += static_cast<std::uint64_t>(count);
    to = to.subspan(static_cast<std::size_t>(count));
  }
}

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)), hash_(std::make_unique<Hash>()) {
  XXH3_128bits_reset(&hash_->state);
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) throw_system_error("cannot create", path_, errno);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::append(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  write_all(fd_, path_, size_, bytes);
  XXH3_128bits_update(&hash_->state, bytes.data(), bytes.size());
  size_ += bytes.size();
}

FileDigest OutputFile::finish() {
  if (::fsync(fd_) != 0) throw_system_error("cannot write to the disk:", path_, errno);
  // A quota or a network file system may report a failed write only here.
  if (::close(std::exchange(fd_, -1)) != 0) throw_system_error("cannot close", path_, errno);
  return {size_, hexadecimal(XXH3_128bits_digest(&hash_->state))};
}

FileDigest digest_of_file(const std::filesystem::path& path) {
  const InputFile file(path);
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  std::vector<std::byte> buffer(std::min<std::uint64_t>(file.size(), std::uint64_t{1} << 20U));
  for (std::uint64_t offset = 0; offset < file.size();) {
    const auto part = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), file.size() - offset));
    file.read(offset, part);
    XXH3_128bits_update(&state, part.data(), part.size());
    offset += part.size();
  }
  return {file.size(), hexadecimal(XXH3_128bits_digest(&state))};
}

FileDigest digest_of_text(std::string_view text) {
  return {text.size(), hexadecimal(XXH3_128bits(text.data(), text.size()))};
}

std::string read_text_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes) {
    throw DataError(fmt::format("{}: {} bytes, expected at most {}", path.string(), file.size(), max_bytes));
  }
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void replace_text_file(const std::filesystem::path& path, std::string_view text) {
  const std::filesystem::path directory = path.has_parent_path() ? path.parent_path() : ".";
  const std::filesystem::path beside = directory / fmt::format(".{}.tmp-{}", path.filename().string(), ::getpid());
  try {
    OutputFile file(beside);
    file.append(text);
    file.finish();
    if (::rename(beside.c_str(), path.c_str()) != 0) throw_system_error("cannot replace", path, errno);
  } catch (...) {
    ::unlink(beside.c_str());
    throw;
  }
  sync_directory(directory);
}

std::filesystem::path tidy_path(const std::filesystem::path& path) {
  const bool climbs = std::find(path.begin(), path.end(), "..") != path.end();
  std::filesystem::path plain = climbs ? path : path.lexically_normal();
  if (!plain.has_filename()) plain = plain.parent_path();
  if (!climbs && plain != ".") return plain;
  std::error_code error;
  std::filesystem::path whole = std::filesystem::weakly_canonical(plain, error);
  if (error) throw_system_error("cannot find", path, error.value());
  return whole;
}

std::uint64_t available_on_disk(const std::filesystem::path& directory) {
  std::filesystem::path existing = std::filesystem::absolute(directory);
  std::error_code error;
  while (!std::filesystem::exists(existing, error) && existing.has_relative_path()) existing = existing.parent_path();
  struct statvfs status {};
  if (::statvfs(existing.c_str(), &status) != 0) throw_system_error("cannot ask for free space of", existing, errno);
  return static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
}

std::string room_text(std::uint64_t needed, const std::filesystem::path& directory, std::uint64_t available) {
  return fmt::format("{} bytes are needed in {} and {} are available", needed, directory.string(), available);
}

FoundAt find_at(const std::filesystem::path& path, int file_descriptor) {
  struct stat open_file {
  }, named{};
  if (::fstat(file_descriptor, &open_file) != 0) return FoundAt::Same;
  if (::stat(path.c_str(), &named) != 0) {
    return errno == ENOENT || errno == ENOTDIR ? FoundAt::Nothing : FoundAt::Same;
  }
  const bool same = open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
  return same ? FoundAt::Same : FoundAt::Another;
}

void sync_directory(const std::filesystem::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw_system_error("cannot open directory", directory, errno);
  const int result = ::fsync(fd);
  const int reason = errno;
  ::close(fd);
  // Some network file systems cannot sync a directory and say so with EINVAL: nothing more can be done there.
  if (result != 0 && reason != EINVAL) throw_system_error("cannot sync directory", directory, reason);
}

void create_directories_durably(std::string_view what, const std::filesystem::path& directory) {
  std::filesystem::path made;
  for (const std::filesystem::path& part : directory) {
    const std::filesystem::path parent = made.empty() ? std::filesystem::path(".") : made;
    made /= part;
    std::error_code error;
    if (std::filesystem::is_directory(made, error)) continue;  // network file systems may refuse to try
    error.clear();
    if (std::filesystem::create_directory(made, error)) sync_directory(parent);
    if (error) throw_system_error(what, made, error.value());
  }
}

}  // namespace graft
