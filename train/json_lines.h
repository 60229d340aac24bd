#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace graft {

/// A file's JSON; discarded (is_discarded()) where the text is not JSON, or nested more than 64 deep: no file of ours
/// is, and copying or printing what is nested without bound would end the process for want of stack.
[[nodiscard]] nlohmann::json parse_json(std::string_view text);

/// The same object with every number that JSON cannot write as a string: "nan", "inf" or "-inf".
[[nodiscard]] nlohmann::ordered_json with_finite_numbers(nlohmann::ordered_json value);
[[nodiscard]] nlohmann::json with_finite_numbers(nlohmann::json value);

/// A number written by with_finite_numbers(). Throws DataError if `value` is neither a number nor one of its strings.
[[nodiscard]] double number_of(const nlohmann::json& value);

/// A file of one JSON object a line, each with an integer "step". A line reaches the file in one write, so that a
/// reader at any time sees whole lines (and, after a crash, at most one part of a line at the end).
class JsonLines {
 public:
  /// Opens `path` for appending, creating it if need be. Part of a line at its end, left by a crash, is cut off.
  /// Throws EnvironmentError if the file cannot be written.
  explicit JsonLines(std::filesystem::path path);
  ~JsonLines();
  JsonLines(JsonLines&& other) noexcept;
  JsonLines& operator=(JsonLines&&) = delete;

  /// Appends one line, or of an array each element as one: in one write, so that all of them are there or none. If the
  /// disk is full the file keeps its whole lines and EnvironmentError is thrown.
  void append(const nlohmann::ordered_json& object);
  /// Waits until all lines are on the disk: before a checkpoint says that they are.
  void sync();
  /// Size of the file: what a checkpoint may record.
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// Whether the file is still the one of its name: somebody may have removed or replaced it since.
  [[nodiscard]] bool in_place() const;
  /// Goes on in whatever file has the name now, or a new one. Throws like the constructor.
  void reopen();
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  void open();
  std::filesystem::path path_;
  int fd_ = -1;
  std::uint64_t bytes_ = 0;
};

struct JsonLinesTruncation {
  std::int64_t kept = 0;     // lines that stayed
  std::int64_t dropped = 0;  // lines removed, unreadable ones at the end included
  std::int64_t foreign = 0;  // of them, whole lines that are unreadable: no crash leaves them, somebody else wrote them
  std::int64_t last_step = -1;  // largest step that stayed; -1 if none
};

/// Keeps the lines with "step" <= step: what a run that continues from a checkpoint of that step must do, so that no
/// step appears twice. Unreadable lines at the end are removed. A missing file is an empty one. To be
/// called before a JsonLines has the file open, since the file may be replaced.
/// Where several lines belong to a step and are written at once, a crash may leave some of them: with `completes`,
/// which tells the line that a step must have, those of steps behind the last one that has it are removed too. Throws
/// DataError naming the line if an unreadable one has readable ones behind it: dropping it would lose a step.
JsonLinesTruncation truncate_json_lines(const std::filesystem::path& path, std::int64_t step,
                                        const std::function<bool(const nlohmann::json& line)>& completes = {});

}  // namespace graft
