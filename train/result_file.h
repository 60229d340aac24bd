#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace graft {

/// The file that a command's option names for its results (`eval --out`, `bench --json`). What was there stays as long
/// as there is no result.
///
/// append() is for results that each stand for themselves, a line each: they are in the file as soon as they are there.
/// write() and close() are for a text that is whole only with its end. Where the file can be replaced, it holds all
/// that was written last at any time, and neither a crash nor a full disk leaves a part of it; what cannot be replaced
/// (a pipe, a device, a link, a file in a folder that takes no other) is written once, by close().
class ResultFile {
 public:
  /// `path` empty: none. Before the work: ArgumentError for a directory or a file that training writes,
  /// EnvironmentError if it cannot be written. A link may lead to a file that is not there yet.
  ResultFile(std::string_view command, std::string_view option, std::string path);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;

  [[nodiscard]] bool wanted() const { return !path_.empty(); }
  [[nodiscard]] const std::string& path() const { return path_; }
  /// Adds a line to those of this object. Where it does not fit, the lines before it stay, whole, and EnvironmentError
  /// says how much room it takes.
  void append(std::string_view line);
  /// What the file is to hold from now on. A disk that refuses is asked again with the next one.
  void write(std::string text);
  /// Throws EnvironmentError if the file does not hold what was written last, with the bytes needed and available.
  void close();

 private:
  void open(int how);
  void put();
  [[nodiscard]] std::string room_for(std::size_t bytes) const;
  std::string command_, path_;
  int fd_ = -1;              // append()
  std::uint64_t whole_ = 0;  // bytes of its lines
  bool replaces_ = false;    // write()
  std::string text_, problem_;
};

}  // namespace graft
