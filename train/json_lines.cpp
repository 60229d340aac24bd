#include "train/json_lines.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "train/file_io.h"

namespace graft {
namespace {

constexpr std::uint64_t kMaxFile = std::uint64_t{1} << 32U;
constexpr int kDeepest = 64;

/// Whether arrays and objects are nested deeper than `most`. Exact up to the first character that is not JSON, and the
/// parser goes no further.
bool is_deeper(std::string_view text, int most) {
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > most) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

template <class Json>
void make_finite(Json& value) {
  if (value.is_structured()) {
    for (auto& element : value) make_finite(element);
  } else if (value.is_number_float()) {
    const double number = value.template get<double>();
    if (std::isnan(number)) {
      value = "nan";
    } else if (std::isinf(number)) {
      value = number > 0 ? "inf" : "-inf";
    }
  }
}

/// The step of a parsed line; none if it is not an object with an integer "step".
std::optional<std::int64_t> step_of(const nlohmann::json& object) {
  if (!object.is_object()) return std::nullopt;
  const auto step = object.find("step");
  if (step == object.end() || !step->is_number_integer()) return std::nullopt;
  return step->get<std::int64_t>();
}

/// Length of the part of the file that consists of whole lines.
std::uint64_t whole_lines(const InputFile& file) {
  std::vector<std::byte> buffer(4096);
  std::uint64_t end = file.size();
  while (end > 0) {
    const std::uint64_t begin = end > buffer.size() ? end - buffer.size() : 0;
    file.read(begin, std::span(buffer).first(end - begin));
    const std::string_view text(reinterpret_cast<const char*>(buffer.data()), end - begin);
    const auto newline = text.rfind('\n');
    if (newline != std::string_view::npos) return begin + newline + 1;
    end = begin;
  }
  return 0;
}

}  // namespace

nlohmann::json parse_json(std::string_view text) {
  if (is_deeper(text, kDeepest)) return nlohmann::json::value_t::discarded;
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

nlohmann::ordered_json with_finite_numbers(nlohmann::ordered_json value) {
  make_finite(value);
  return value;
}

nlohmann::json with_finite_numbers(nlohmann::json value) {
  make_finite(value);
  return value;
}

double number_of(const nlohmann::json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  throw DataError(
      fmt::format("json: {} is not a number", value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
}

JsonLines::JsonLines(std::filesystem::path path) : path_(std::move(path)) { open(); }

void JsonLines::open() {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0) throw_system_error("cannot open", path_, errno);
  try {
    bytes_ = whole_lines(InputFile(path_));
    if (::ftruncate(fd_, static_cast<off_t>(bytes_)) != 0) throw_system_error("cannot shorten", path_, errno);
  } catch (...) {
    ::close(std::exchange(fd_, -1));
    throw;
  }
}

bool JsonLines::in_place() const { return find_at(path_, fd_) == FoundAt::Same; }

void JsonLines::reopen() {
  JsonLines fresh(path_);
  std::swap(fd_, fresh.fd_);
  bytes_ = fresh.bytes_;
}

JsonLines::JsonLines(JsonLines&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), bytes_(other.bytes_) {}

JsonLines::~JsonLines() {
  if (fd_ >= 0) ::close(fd_);
}

void JsonLines::append(const nlohmann::ordered_json& object) {
  std::string text;
  const auto add = [&text](const nlohmann::ordered_json& line) {
    text += with_finite_numbers(line).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    text += '\n';
  };
  if (object.is_array()) {
    for (const nlohmann::ordered_json& line : object) add(line);
  } else {
    add(object);
  }
  ssize_t written = 0;
  do {
    written = ::write(fd_, text.data(), text.size());
  } while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(text.size())) {
    bytes_ += text.size();
    return;
  }
  // A short write to a file means that the next one would fail: the disk or the quota is full.
  const int reason = written < 0 ? errno : ENOSPC;
  if (::ftruncate(fd_, static_cast<off_t>(bytes_)) != 0) {
    throw_system_error("cannot remove part of a line from", path_, errno);
  }
  throw_system_error("cannot append to", path_, reason);
}

void JsonLines::sync() {
  if (::fdatasync(fd_) != 0) throw_system_error("cannot write to the disk:", path_, errno);
}

JsonLinesTruncation truncate_json_lines(const std::filesystem::path& path, std::int64_t step,
                                        const std::function<bool(const nlohmann::json& line)>& completes) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return {};
  const std::string text = read_text_file(path, kMaxFile);
  struct Line {
    std::string_view text;
    std::int64_t step;
  };
  std::vector<Line> lines;
  std::int64_t last_complete = -1;
  std::int64_t line_number = 0;
  std::int64_t unreadable = 0;        // the last unreadable line
  std::int64_t unreadable_count = 0;  // how many stand at the end
  std::int64_t cut = 0;               // 1 if the last of them is only part of a line
  for (std::size_t begin = 0; begin < text.size();) {
    ++line_number;
    const std::size_t newline = text.find('\n', begin);
    const bool whole = newline != std::string::npos;
    const std::size_t end = whole ? newline + 1 : text.size();
    const auto line = std::string_view(text).substr(begin, end - begin);
    begin = end;
    const nlohmann::json object = whole ? parse_json(line) : nlohmann::json();
    const auto line_step = step_of(object);
    if (!line_step) {
      unreadable = line_number;
      ++unreadable_count;
      if (!whole) cut = 1;
      continue;
    }
    if (unreadable_count > 0) {
      throw DataError(fmt::format("{}: line {} is not a JSON object with a \"step\"; repair or remove that line",
                                  path.string(), unreadable));
    }
    lines.push_back({line, *line_step});
    if (*line_step <= step && (!completes || completes(object))) last_complete = std::max(last_complete, *line_step);
  }
  JsonLinesTruncation result;
  result.dropped = unreadable_count;
  result.foreign = unreadable_count - cut;
  result.last_step = last_complete;
  std::string kept;
  for (const Line& line : lines) {
    if (line.step > last_complete) {
      ++result.dropped;
      continue;
    }
    kept += line.text;
    ++result.kept;
  }
  if (kept.size() != text.size()) replace_text_file(path, kept);
  return result;
}

}  // namespace graft
