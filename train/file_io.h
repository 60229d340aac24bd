#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace graft {

/// Size and XXH3-128 of a file's content; the hash in its canonical form, 32 hexadecimal digits.
struct FileDigest {
  std::uint64_t bytes = 0;
  std::string xxh3_128;

  friend bool operator==(const FileDigest&, const FileDigest&) = default;
};

/// A file read by position. Plain reads, no memory mapping: a file that another process cuts short, or
/// a network file system that fails, gives an error and not a signal.
class InputFile {
 public:
  /// Throws DataError if there is no such regular file, EnvironmentError if it cannot be opened.
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  /// Size when it was opened.
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Fills `to` from byte `offset` on. Throws DataError where the file ends before that.
  void read(std::uint64_t offset, std::span<std::byte> to) const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
};

/// A new file written from its beginning to its end, hashed on the way: the digest is of what was meant
/// to be written, so that damage on the way to the disk is found on reading. All functions throw
/// EnvironmentError with the system's reason.
class OutputFile {
 public:
  /// Creates the file, or empties it.
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void append(std::span<const std::byte> bytes);
  void append(std::string_view text) { append(std::as_bytes(std::span(text))); }
  /// Bytes written so far.
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Waits until the content is on the disk and closes the file.
  FileDigest finish();

 private:
  struct Hash;
  std::filesystem::path path_;
  std::unique_ptr<Hash> hash_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
};

[[nodiscard]] FileDigest digest_of_file(const std::filesystem::path& path);
[[nodiscard]] FileDigest digest_of_text(std::string_view text);

/// The whole file. Throws DataError if it is missing or longer than `max_bytes`.
[[nodiscard]] std::string read_text_file(const std::filesystem::path& path, std::uint64_t max_bytes);

/// Replaces the file's content so that a reader, or a crash, sees the old or the new one, never a part:
/// written beside it, synced, renamed, and the directory synced.
void replace_text_file(const std::filesystem::path& path, std::string_view text);

/// A path as a person wrote it, without what means nothing ("a//./b/"). One that ends in or leads over "." or "..",
/// which hide where a file lies, becomes absolute and without links; any other keeps its words.
[[nodiscard]] std::filesystem::path tidy_path(const std::filesystem::path& path);

/// Bytes that can still be written in the directory, or in the nearest one above it that exists.
[[nodiscard]] std::uint64_t available_on_disk(const std::filesystem::path& directory);
/// What every message about a full disk says: "<needed> bytes are needed in <directory> and <available> are available".
[[nodiscard]] std::string room_text(std::uint64_t needed, const std::filesystem::path& directory,
                                    std::uint64_t available);

/// What is now at a path that led to an open file.
enum class FoundAt : std::uint8_t {
  Same,     // the file, or nobody can tell at the moment: a server that does not answer has not moved it
  Another,  // another file
  Nothing,  // none
};
[[nodiscard]] FoundAt find_at(const std::filesystem::path& path, int file_descriptor);

/// Makes creations, renames and removals in a directory survive a power failure.
void sync_directory(const std::filesystem::path& directory);
/// Creates a directory and those above it that are missing, each so that it survives a power failure. Throws
/// EnvironmentError "<what> <path>: <the system's reason>".
void create_directories_durably(std::string_view what, const std::filesystem::path& directory);

/// Throws EnvironmentError "<what> <path>: <the system's reason>".
[[noreturn]] void throw_system_error(std::string_view what, const std::filesystem::path& path, int error_number);

}  // namespace graft
