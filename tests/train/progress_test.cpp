#include "train/progress.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): setenv and posix_openpt are POSIX
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>

namespace graft::test {
namespace {

/// A stream that is no terminal and keeps what is written to it.
class TextStream {
 public:
  TextStream() : file_(std::tmpfile()) { REQUIRE(file_ != nullptr); }
  ~TextStream() { std::fclose(file_); }
  TextStream(const TextStream&) = delete;
  TextStream& operator=(const TextStream&) = delete;
  [[nodiscard]] std::FILE* file() { return file_; }
  [[nodiscard]] std::string text() {
    std::fflush(file_);
    std::string result(static_cast<std::size_t>(std::ftell(file_)), '\0');
    std::rewind(file_);
    REQUIRE(std::fread(result.data(), 1, result.size(), file_) == result.size());
    return result;
  }

 private:
  std::FILE* file_;
};

TEST_CASE("progress: durations") {
  CHECK(duration_text(0) == "0:00");
  CHECK(duration_text(4.4) == "0:04");
  CHECK(duration_text(59.6) == "1:00");
  CHECK(duration_text(245) == "4:05");
  CHECK(duration_text(3599.6) == "1:00:00");
  CHECK(duration_text(3723) == "1:02:03");
  CHECK(duration_text(360000) == "100:00:00");
  CHECK(duration_text(-5) == "0:00");
  CHECK(duration_text(std::numeric_limits<double>::quiet_NaN()) == "?");
  CHECK(duration_text(std::numeric_limits<double>::infinity()) == "?");
}

TEST_CASE("progress: counts and bytes") {
  CHECK(count_text(0) == "0");
  CHECK(count_text(999) == "999");
  CHECK(count_text(1500) == "1.50 k");
  CHECK(count_text(9477632) == "9.48 M");
  CHECK(count_text(170110464) == "170 M");
  CHECK(bytes_text(0) == "0 B");
  CHECK(bytes_text(512) == "512 B");
  CHECK(bytes_text(1536) == "1.50 KiB");
  CHECK(bytes_text(1.42 * 1024 * 1024 * 1024) == "1.42 GiB");
  CHECK(bytes_text(40.0 * 1024 * 1024) == "40.0 MiB");
}

TEST_CASE("progress: elsewhere than on a terminal the last step gets a line, without control characters") {
  TextStream out;
  {
    Progress progress(out.file(), 0, 3);
    progress.update(1, 2.5);
    progress.say("eval at step 1");
    progress.update(3, 0.125);
    progress.finish();
  }
  const std::string text = out.text();
  CHECK(text.starts_with("eval at step 1\n"));
  CHECK(text.find("step 3/3  loss 0.125") != std::string::npos);
  CHECK(text.ends_with("\n"));
  CHECK(text.find('\r') == std::string::npos);
  CHECK(text.find('\x1b') == std::string::npos);
}

/// What a terminal of this kind (nullptr: none is named) gets; none where there are no terminals to be had.
std::optional<std::string> on_terminal(const char* kind) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (terminal < 0) {
    MESSAGE("skipped: no pseudo-terminal: " << std::string(std::strerror(errno)));
    return std::nullopt;
  }
  const char* const given = std::getenv("TERM");
  const std::string before = given == nullptr ? "" : given;
  if (kind == nullptr) {
    unsetenv("TERM");
  } else {
    setenv("TERM", kind, 1);
  }
  REQUIRE(grantpt(terminal) == 0);
  REQUIRE(unlockpt(terminal) == 0);
  const int end = open(ptsname(terminal), O_WRONLY | O_NOCTTY | O_CLOEXEC);  // not to become this session's terminal
  REQUIRE(end >= 0);
  std::FILE* const out = fdopen(end, "w");
  REQUIRE(out != nullptr);
  {
    Progress progress(out, 0, 3);
    progress.update(3, 0.125);
    progress.say("a line");
  }
  std::string text;
  std::array<char, 256> part{};
  while (text.find("a line") == std::string::npos) {
    const ssize_t count = read(terminal, part.data(), part.size());
    REQUIRE(count > 0);
    text.append(part.data(), static_cast<std::size_t>(count));
  }
  std::fclose(out);
  close(terminal);
  if (given == nullptr) {
    unsetenv("TERM");
  } else {
    setenv("TERM", before.c_str(), 1);
  }
  return text;
}

TEST_CASE("progress: escape sequences are for terminals that know them") {
  const std::optional<std::string> rewritten = on_terminal("xterm");
  if (!rewritten) return;
  CHECK(rewritten->find("\x1b[K") != std::string::npos);
  CHECK(rewritten->find("[====") != std::string::npos);
  for (const char* kind : {"dumb", "", static_cast<const char*>(nullptr)}) {
    const std::string plain = on_terminal(kind).value();
    CHECK(plain.find('\x1b') == std::string::npos);
    CHECK(plain.starts_with("step 3/3  loss 0.125"));
  }
}

TEST_CASE("progress: nothing to do prints nothing") {
  TextStream out;
  {
    Progress progress(out.file(), 5, 5);
    CHECK(progress.steps_per_second() == 0);
  }
  CHECK(out.text().empty());
}

}  // namespace
}  // namespace graft::test
