#include "train/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <utility>

namespace graft {
namespace {

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

int columns_of(std::FILE* out) {
  winsize size{};
  if (ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

/// Whether the stream is a terminal that knows escape sequences.
bool can_rewrite_lines(std::FILE* out) {
  const char* const kind = std::getenv("TERM");
  return isatty(fileno(out)) == 1 && kind != nullptr && *kind != '\0' && std::string_view(kind) != "dumb";
}

std::string scaled(double value, double base, const std::array<const char*, 6>& units) {
  std::size_t unit = 0;
  while (std::abs(value) >= base && unit + 1 < units.size()) {
    value /= base;
    ++unit;
  }
  const int digits = unit == 0 ? 0 : (value >= 100 ? 0 : (value >= 10 ? 1 : 2));
  return fmt::format("{:.{}f}{}{}", value, digits, *units[unit] == '\0' ? "" : " ", units[unit]);
}

}  // namespace

std::string duration_text(double total_seconds) {
  if (!std::isfinite(total_seconds)) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(std::max(0.0, total_seconds)));
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string count_text(double count) { return scaled(count, 1000, {"", "k", "M", "G", "T", "P"}); }
std::string bytes_text(double bytes) { return scaled(bytes, 1024, {"B", "KiB", "MiB", "GiB", "TiB", "PiB"}); }

Progress::Progress(std::FILE* out, std::int64_t done, std::int64_t total)
    : out_(out),
      terminal_(can_rewrite_lines(out)),
      total_(total),
      start_(Clock::now()),
      shown_(start_ - std::chrono::seconds(1)),
      rate_time_(start_),
      rate_step_(done),
      next_plain_(1) {}

Progress::~Progress() { finish(); }

void Progress::update(std::int64_t step, double loss) {
  const Clock::time_point now = Clock::now();
  const double since = seconds(now - rate_time_);
  if (since >= 0.5 && step > rate_step_) {
    const double recent = static_cast<double>(step - rate_step_) / since;
    rate_ = rate_ == 0 ? recent : 0.7 * rate_ + 0.3 * recent;
    rate_step_ = step;
    rate_time_ = now;
  }
  if (terminal_) {
    if (seconds(now - shown_) < 0.1 && step != total_) return;
  } else {
    const double elapsed = seconds(now - start_);
    if (elapsed < next_plain_ && step != total_) return;
    for (const double mark : {2.0, 5.0, 10.0, 20.0, 30.0}) {
      if (mark > elapsed) {
        next_plain_ = mark;
        break;
      }
      next_plain_ = elapsed + 30;
    }
  }
  shown_ = now;
  print(step, loss);
}

void Progress::print(std::int64_t step, double loss) {
  const double left = rate_ > 0 ? static_cast<double>(total_ - step) / rate_ : NAN;
  std::string text = fmt::format("step {}/{}  loss {:.4g}", step, total_, loss);
  if (rate_ > 0) text += fmt::format("  {:.4g} steps/s  ETA {}", rate_, duration_text(left));
  if (!terminal_) {
    write(text + "\n");
    return;
  }
  constexpr int kBar = 24;
  const int filled = total_ > 0 ? static_cast<int>(kBar * step / total_) : 0;
  text = fmt::format("[{}{}] {}", std::string(static_cast<std::size_t>(filled), '='),
                     std::string(static_cast<std::size_t>(kBar - filled), ' '), text);
  const auto width = static_cast<std::size_t>(std::max(20, columns_of(out_) - 1));
  if (text.size() > width) text.resize(width);
  write("\r" + text + "\x1b[K");
  line_open_ = true;
}

void Progress::write(const std::string& text) {
  // Nobody may be reading any more; that is no reason to stop.
  static_cast<void>(std::fputs(text.c_str(), out_));
  static_cast<void>(std::fflush(out_));
}

void Progress::say(const std::string& line) {
  write((line_open_ ? "\r\x1b[K" : "") + line + "\n");
  line_open_ = false;
}

void Progress::finish() {
  if (line_open_) {
    write("\n");
  }
  line_open_ = false;
}

}  // namespace graft
